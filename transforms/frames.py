"""Enhanced DICOM files: many frames in a file, each with its own place, slope and intercept.

What differs between frames stands in their functional groups, what does not in the shared ones
(DICOM PS3.3, C.7.6.16).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray

from mcmiad_monai.transforms.checks import VolumeError, check_affine
from mcmiad_monai.transforms.dicom import Slice, stack_affine, unpacked
from mcmiad_monai.transforms.readers import Image
from mcmiad_monai.transforms.sizes import MAX_VOXELS, check_size

FRAME_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("2.1", "2.2", "4.1", "4.4", "77.1.5.4")
)
"""SOP classes of enhanced CT and MR, of the same converted from single slices, and of OPT."""

TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
"""SOP class of ophthalmic tomography (OPT), whose frames may come without positions."""

GREY_FRAMES = "1.2.840.10008.5.1.4.1.1.7.3"
"""SOP class of a secondary capture of several frames in grey."""

IMAGE_PIXELS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
)
"""What a decoder needs to know, and nothing of the patient."""


class Frame(NamedTuple):
    """One frame: where it lies, and how its stored values become those of the image."""

    place: Slice
    stored: NDArray[Any]  # (Y, X)
    slope: float
    intercept: float


def has_frames(path: Path) -> bool:
    """Whether a DICOM file is of a class whose frames each have a place, even if it has one."""
    header = pydicom.dcmread(path, specific_tags=["SOPClassUID"], force=True)
    return header.get("SOPClassUID") in FRAME_CLASSES


def read_frames(paths: Sequence[Path], source: Path, max_voxels: int = MAX_VOXELS) -> Image:
    """Stack the frames of a series' files along their normal.

    Parameters
    ----------
    paths : sequence of Path
        Files of one series, of one or more frames each.
    source : Path
        Names them in errors.
    max_voxels : int
        Of all files together, by their headers.

    Raises
    ------
    VolumeError
        If frames lack a place, are in colour, of unequal size, of several stacks, planes or
        spacings, share a place, or have too many voxels.
    """
    headers = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in paths]
    _check_grey(headers, source)
    count = sum(int(header.get("NumberOfFrames", 1)) for header in headers)
    check_size((headers[0].Columns, headers[0].Rows, count), source, max_voxels)
    frames = [f for p, header in zip(paths, headers, strict=True) for f in _frames_of(p, header)]
    places = [frame.place for frame in frames]
    _check_one_stack(places, source)
    normal = places[0].normal
    frames.sort(key=lambda frame: float(frame.place.position @ normal))
    affine = stack_affine([frame.place for frame in frames], source)
    check_affine(affine, source)
    volume = np.empty((len(frames), *frames[0].stored.shape), np.float32)  # (Z, Y, X)
    for plane, frame in zip(volume, frames, strict=True):
        plane[:] = frame.stored * frame.slope + frame.intercept
    return Image(volume.T, affine, dicom_modality=headers[0].get("Modality"))


def _check_grey(headers: Sequence[Any], source: Path) -> None:
    kinds = {(h.Columns, h.Rows, h.SamplesPerPixel) for h in headers}
    if len(kinds) > 1 or headers[0].SamplesPerPixel > 1:
        found = "; ".join(f"{w}x{h} with {c} channel(s)" for w, h, c in sorted(kinds))
        raise VolumeError(
            f"{source} has frames of {found}; grey frames of one size are needed. Move other files "
            "out of the folder, or use the original series."
        )


def _check_one_stack(places: Sequence[Slice], source: Path) -> None:
    found = {tuple(np.round([*p.position, *p.axes.ravel()], 3)) for p in places}
    if len(found) < len(places):
        raise VolumeError(
            f"{source} has {len(places)} frames at {len(found)} places, as of several time points, "
            "echoes or contrasts; one frame at each place is needed. Split it, for example with "
            "dcm2niix."
        )


def _frames_of(path: Path, header: Any) -> Iterable[Frame]:
    for number, values in enumerate(_stored(path)):
        transform = _group(header, number, "PixelValueTransformationSequence")
        slope = float(getattr(transform, "RescaleSlope", 1))
        intercept = float(getattr(transform, "RescaleIntercept", 0))
        yield Frame(frame_place(path, header, number), values, slope, intercept)


def _group(header: Any, number: int, name: str) -> Any:
    """A functional group of a frame, else the shared one, else None."""
    per_frame = getattr(header, "PerFrameFunctionalGroupsSequence", [])
    groups = [*per_frame[number : number + 1]]
    groups += getattr(header, "SharedFunctionalGroupsSequence", [])
    return next((g[name][0] for g in groups if name in g and len(g[name].value)), None)


def frame_place(path: Path, header: Any, number: int) -> Slice:
    """Where a frame, counted from 0, lies by the header of its file.

    Raises
    ------
    VolumeError
        If it lacks a position, an orientation or a pixel spacing.
    """
    measures = _group(header, number, "PixelMeasuresSequence")
    spacing = getattr(measures, "PixelSpacing", None)
    thickness = getattr(measures, "SpacingBetweenSlices", None)
    thickness = thickness or getattr(measures, "SliceThickness", None)
    position = getattr(_group(header, number, "PlanePositionSequence"), "ImagePositionPatient", 0)
    axes = getattr(_group(header, number, "PlaneOrientationSequence"), "ImageOrientationPatient", 0)
    if header.SOPClassUID == TOMOGRAPHY and not position and not axes and thickness:
        # B-scans in the order of the file, shown as pictures are: x to the left, y to the back
        position, axes = [0, 0, number * float(thickness)], [1, 0, 0, 0, 1, 0]
    if not (position and axes and spacing):
        raise VolumeError(
            f"{path} lacks a position, an orientation or a pixel spacing of frame {number + 1}; "
            "all three are needed to place it. Use the original series, or convert the file to "
            "NIfTI."
        )
    return Slice(
        path / f"frame {number + 1}",
        np.array(position, np.float64),
        np.array(axes, np.float64).reshape(2, 3),
        np.array(spacing, np.float64)[::-1],  # (between rows, between columns), that is (y, x)
        float(thickness or 1),
    )


def _stored(path: Path) -> NDArray[Any]:
    """Values as stored (n, Y, X), without slope and intercept."""
    pixels = pydicom.dcmread(path, specific_tags=list(IMAGE_PIXELS), force=True)
    if pixels.file_meta.TransferSyntaxUID.is_compressed:
        values = _unpacked(pixels, path)
    else:
        unused = pixels.BitsAllocated - pixels.BitsStored  # which may hold an overlay
        values = (pixels.pixel_array << unused) >> unused
    return values.reshape(-1, pixels.Rows, pixels.Columns)


def _unpacked(pixels: Any, path: Path) -> NDArray[Any]:
    """Compressed values by the decoders of SimpleITK, which would apply slopes if it knew them."""
    pixels.SOPClassUID = pixels.file_meta.MediaStorageSOPClassUID = GREY_FRAMES
    pixels.preamble = bytes(128)
    with TemporaryDirectory(prefix="mcmiad_") as folder:
        copy = Path(folder) / "pixels.dcm"
        pixels.save_as(copy)
        return unpacked(copy, of=path)
