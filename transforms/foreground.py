"""Where the body is: head in MRI, trunk in CT."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mcmiad_monai.transforms.counting import counts, look_up

Mask = NDArray[np.bool_]
Volume = NDArray[np.float32]
Scalar = TypeVar("Scalar", bound=np.generic)

STATISTICS_VOXELS = 500_000
"""Thresholds and percentiles are taken on an even subsample of about this many voxels."""

PADDED_SHARE = 0.1
"""A minimum or zero that fills at least this share of the volume is empty background."""

DARK_LEVEL = 0.15
"""Relative to bright tissue: what is darker may be noise of the air."""

NOISE_SHARE = 0.1
"""With fewer dark voxels than this outside the empty background, the air is free of noise."""

LOG_GAIN = 20.0
"""Intensity over bright tissue is multiplied by this before the logarithm that tames the skull."""

AIR_TO_TISSUE = 0.3
"""Air is darker than this share of tissue; otherwise the dark class is tissue as well."""

SPECK_SHARE = 0.02
"""Components smaller than this share of the largest one are dropped."""

LIMB_SHARE = 0.1
"""The same for CT: legs and arms are kept, the table is not."""

OPENING_WIDTH = 5
"""Voxels: thinner sheets in a CT slice, such as the shell of the table, are no body."""

BODY_THRESHOLD = -500.0
"""Hounsfield units between air with lung (below) and soft tissue with fat (above)."""


def mri_foreground(values: Volume) -> Mask:
    """Head or body in an MR volume.

    Air is either one exact value (skull-stripped or masked volumes, whatever their sign), or dark
    noise that Otsu's threshold on logarithmic intensities separates from tissue. The logarithm
    keeps a skull that is several times brighter than the brain from forming a class of its own.
    A volume without air is foreground as a whole.

    Parameters
    ----------
    values : (X, Y, Z) ndarray of float32
        Intensities; holes are filled within slices, which lie across the last axis.
    """
    sample = subsample(values)
    padding = _padding(sample)
    if padding is not None and _noiseless(sample, padding):
        return fill_holes(values != padding)
    threshold = _tissue_threshold(sample)
    if threshold is None:
        return np.ones(values.shape, dtype=bool)
    return fill_holes(largest_components(values > threshold))


def ct_foreground(hounsfield: Volume) -> Mask:
    """Body in a CT volume: the largest components above -500 HU, with lungs and bowel gas filled.

    An opening within slices comes first, so that the thin shell of the table falls off.

    Parameters
    ----------
    hounsfield : (X, Y, Z) ndarray of float32
        Hounsfield units; slices lie across the last axis.
    """
    body = fill_holes(hounsfield > BODY_THRESHOLD)
    opened = _open(body)  # after filling, or a thin chest wall would fall off as well
    body = opened if opened.any() else body  # tiny volumes do not outlive an opening
    return largest_components(body, LIMB_SHARE)


def subsample(values: NDArray[Scalar]) -> NDArray[Scalar]:
    """An even subsample in the two longest axes that keeps at least every slice of the third."""
    step = max(1, int(np.sqrt(values.size / STATISTICS_VOXELS)))
    longest = np.argsort(values.shape)[-2:]
    return values[tuple(slice(None, None, step if a in longest else 1) for a in range(3))]


def largest_components(mask: Mask, share: float = SPECK_SHARE) -> Mask:
    """Drop components of less than a share of the largest one."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = counts(labels, count + 1)
    sizes[0] = 0
    return look_up(sizes >= share * sizes.max(), labels)


def fill_holes(mask: Mask) -> Mask:
    """Fill what is enclosed within its slice: one labelling of the background for all slices."""
    part = _box(mask, margin=1)
    filled = mask.copy()
    filled[part] = _without_holes(mask[part])
    return filled


def _box(mask: Mask, *, margin: int) -> tuple[slice, ...]:
    """Smallest box around a mask, wider by a margin where the volume goes on."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        (used,) = mask.any(axis=others).nonzero()
        first, last = (used[0], used[-1]) if used.size else (0, -1)
        box.append(slice(max(first - margin, 0), last + 1 + margin))
    return tuple(box)


def _without_holes(mask: Mask) -> Mask:
    """Background that touches no side of its slice becomes part of the mask."""
    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[:, :, [0, 2]] = False
    labels, count = ndimage.label(~mask, structure=in_plane)
    open_labels = np.zeros(count + 1, dtype=bool)
    for side in (0, 1):
        for end in (0, -1):
            open_labels[np.unique(labels.take(end, axis=side))] = True
    open_labels[0] = False  # label 0 is the mask itself
    return look_up(~open_labels, labels)


def _open(mask: Mask) -> Mask:
    """Opening by a square within slices."""
    out = mask.view(np.uint8)
    for filter1d in (ndimage.minimum_filter1d, ndimage.maximum_filter1d):
        for side in (0, 1):
            out = filter1d(out, OPENING_WIDTH, axis=side)
    opened: Mask = out.view(np.bool_)
    return opened


def _padding(sample: Volume) -> float | None:
    """The exact value of empty background, if there is one."""
    for value in (float(sample.min()), 0.0):
        if float((sample == value).mean()) >= PADDED_SHARE:
            return value
    return None


def _noiseless(sample: Volume, padding: float) -> bool:
    """Whether everything that differs from the padding is tissue."""
    if float(sample.min()) < padding:
        return True  # tissue on both sides of zero: standardised after masking
    tissue = sample[sample != padding] - padding
    if tissue.size == 0:
        return False
    return float((tissue < DARK_LEVEL * np.percentile(tissue, 75)).mean()) < NOISE_SHARE


def _tissue_threshold(sample: Volume) -> float | None:
    """Threshold between air and tissue, or None where there is no air."""
    low = float(sample.min())
    raised = (sample - low).ravel()
    if not raised.any():
        return None
    bright = float(np.median(raised[raised > raised.mean()]))
    cut = float(np.expm1(_otsu(np.log1p(LOG_GAIN / bright * raised))) * bright / LOG_GAIN)
    below, above = raised[raised <= cut], raised[raised > cut]
    if below.size == 0 or above.size == 0:
        return None
    if np.median(below) > AIR_TO_TISSUE * np.median(above):
        return None
    return low + cut


def _otsu(values: NDArray[np.float32], bins: int = 256) -> float:
    """Otsu's threshold: the cut with the largest variance between the two classes."""
    counts, edges = np.histogram(values, bins=bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    total = np.cumsum(counts * centres)
    mean_below = total[:-1] / np.maximum(below, 1)
    mean_above = (total[-1] - total[:-1]) / np.maximum(above, 1)
    between = below * above * (mean_below - mean_above) ** 2.0
    return float(edges[1 + int(np.argmax(between))])
