"""Canonical orientation: axes are permuted and flipped, voxels are never resampled."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.transforms.spatial.functional import orientation
from monai.utils import MetaKeys, SpaceKeys, TraceKeys
from numpy.typing import NDArray

from mcmiad_monai.transforms.metadata import check_volume, plain, with_metadata_of

RAS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))
LPS_LABELS = (("R", "L"), ("A", "P"), ("I", "S"))


class CanonicalOrientation(InvertibleTransform):
    """Bring the voxel axes as close to `axcodes` as permutations and flips can.

    It is MONAI's orientation with an inverse that holds for every affine: MONAI derives the way
    back from the reoriented affine anew, which is ambiguous for axes at 45 degrees; here the
    permutation of the way forth is undone, and the source affine comes back to the last bit.

    Parameters
    ----------
    axcodes : str
        Where the three axes grow to, e.g. ``"LPS"``: left, posterior, superior.
    """

    def __init__(self, axcodes: str = "LPS") -> None:
        self.axcodes = axcodes

    def __call__(self, volume: MetaTensor) -> MetaTensor:
        """Reorient a volume (1, X, Y, Z).

        Raises
        ------
        ValueError
            If it is a plain tensor, which knows no affine, or has another shape.
        """
        if not isinstance(volume, MetaTensor):
            raise ValueError(
                f"a {type(volume).__name__} has no affine, so its orientation is unknown; a "
                "MetaTensor is expected. Load the volume with load_volume."
            )
        check_volume(volume)
        affine = volume.affine.cpu().numpy()
        source = with_metadata_of(plain(volume), volume)
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), self._target(volume))
        return self._turn(source, turn, affine)

    def inverse(self, volume: MetaTensor) -> MetaTensor:
        """Undo the orientation: the source grid with the source affine."""
        affine = np.asarray(self.pop_transform(volume)[TraceKeys.EXTRA_INFO]["original_affine"])
        turn = nib.orientations.ornt_transform(self._target(volume), nib.io_orientation(affine))
        with self.trace_transform(False):
            out = self._turn(volume, turn, volume.affine.cpu().numpy())
        out.affine = torch.from_numpy(affine.copy())
        return out

    def _turn(
        self, volume: MetaTensor, turn: NDArray[Any], affine: NDArray[np.float64]
    ) -> MetaTensor:
        info = self.get_transform_info()
        out: Any = orientation(volume, affine, turn, lazy=False, transform_info=info)
        contiguous: MetaTensor = out.contiguous()
        return contiguous

    def _target(self, volume: MetaTensor) -> NDArray[Any]:
        lps = volume.meta.get(MetaKeys.SPACE) == SpaceKeys.LPS.value
        codes = nib.orientations.axcodes2ornt(self.axcodes, LPS_LABELS if lps else RAS_LABELS)
        return np.asarray(codes)


class CanonicalOrientationd(MapTransform, InvertibleTransform):
    """`CanonicalOrientation` of the volumes under `keys`; made for MONAI's Invertd.

    Parameters
    ----------
    keys : KeysCollection
        Keys of the volumes.
    axcodes : str
        Where the three axes grow to.
    allow_missing_keys : bool
        Whether a missing key is passed over.
    """

    def __init__(
        self, keys: KeysCollection, axcodes: str = "LPS", *, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.orient = CanonicalOrientation(axcodes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Reorient every key."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.orient(d[key])
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo the orientation of every key."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.orient.inverse(d[key])
        return d
