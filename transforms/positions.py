"""Which array index of the source volume a canonical slice is."""

from __future__ import annotations

import nibabel as nib
from monai.data import MetaTensor


def source_slices(volume: MetaTensor, axis: int) -> tuple[int, list[int]]:
    """Axis and indices, on the volume's own grid, of its canonical slices.

    Parameters
    ----------
    volume : MetaTensor (1, X, Y, Z)
        On the source grid.
    axis : int
        Slice axis after :class:`CanonicalOrientation` to LPS, which every modality has.

    Returns
    -------
    (int, list of int)
        The array axis of the source, and for each canonical slice its index along that axis.
    """
    source = nib.io_orientation(volume.affine.numpy())
    canonical = nib.orientations.axcodes2ornt("LPS")
    # the row of a source axis names the world axis it runs along, and its direction
    source_axis = next(a for a in range(3) if source[a, 0] == canonical[axis, 0])
    n = int(volume.shape[1 + source_axis])
    same_direction = source[source_axis, 1] == canonical[axis, 1]
    return source_axis, list(range(n)) if same_direction else list(range(n - 1, -1, -1))
