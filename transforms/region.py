"""Looking inside one organ only: what lies outside its mask is background, to network and score."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from mcmiad_monai.transforms.checks import VolumeError
from mcmiad_monai.transforms.metadata import plain
from mcmiad_monai.transforms.volume import mask_on_grid_of


class LoadOrganMaskd(MapTransform):
    """Replace paths of organ masks by masks (1, X, Y, Z) on the grid of the loaded image.

    Use this before the image is reoriented.

    Parameters
    ----------
    keys : KeysCollection
        Keys of the masks.
    ref_key : str
        Key of the loaded image.
    label : int, optional
        Value of the organ in a mask of many organs; see `lesion_of` if left.
    """

    def __init__(
        self, keys: KeysCollection, *, ref_key: str = "image", label: int | None = None
    ) -> None:
        super().__init__(keys)
        self.ref_key, self.label = ref_key, label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load every key.

        Raises
        ------
        VolumeError
            If there is no mask, it is empty, or it does not lie on the image's grid.
        """
        d = dict(data)
        image = d[self.ref_key]
        for key in self.keys:
            path = d.get(key)
            if path is None:
                raise VolumeError(
                    f"{image.meta.get('filename_or_obj', 'the study')} has no organ mask, which "
                    f"region: organ needs. Put one beside it ({key!r} in a datalist, or a file "
                    "whose name ends in liver_mask), or use a model for region: whole."
                )
            mask = mask_on_grid_of(image, path, label=self.label)
            if not mask.any():
                wanted = "above 0" if self.label is None else f"of the value {self.label}"
                raise VolumeError(
                    f"{path} has no voxel {wanted}; a mask of the organ is needed. Check the file "
                    "and organ_label."
                )
            d[key] = mask
        return d


class OrganRegiond(MapTransform):
    """Set a normalised image to 0, which is background, outside an organ mask; drop the mask.

    Parameters
    ----------
    keys : KeysCollection
        Normalised volumes (1, X, Y, Z).
    organ_key : str
        Key of the organ mask on the same grid.
    """

    def __init__(self, keys: KeysCollection, *, organ_key: str = "organ") -> None:
        super().__init__(keys)
        self.organ_key = organ_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Confine every key."""
        d = dict(data)
        inside = plain(d.pop(self.organ_key)) > 0
        for key in self.key_iterator(d):
            d[key] = d[key] * inside.to(d[key].dtype)
        return d
