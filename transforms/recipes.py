"""The preprocessing of one study, from its path to a normalised canonical volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from monai.transforms import Compose, MapTransform

from mcmiad_monai.modality import IntensityRecipe, Modality, get_modality
from mcmiad_monai.transforms.field_of_view import FieldOfViewd
from mcmiad_monai.transforms.intensity import (
    NormalizeCTd,
    NormalizeMRId,
    NormalizeOCTd,
    NormalizeStudyd,
)
from mcmiad_monai.transforms.kind import StudyModalityd
from mcmiad_monai.transforms.orientation import CanonicalOrientationd
from mcmiad_monai.transforms.region import LoadOrganMaskd, OrganRegiond
from mcmiad_monai.transforms.volume import LoadMaskd, LoadVolumed

Region = Literal["whole", "organ"]
View = Literal["whole", "foreground"]

_NORMALIZERS: dict[IntensityRecipe | None, Callable[..., MapTransform]] = {
    "mri": NormalizeMRId,
    "ct": NormalizeCTd,
    "oct": NormalizeOCTd,
    None: NormalizeStudyd,
}


def preprocessing(
    modality: Modality | str,
    *,
    key: str = "image",
    mask_key: str | None = None,
    mask_label: int | None = None,
    region: Region = "whole",
    organ_label: int | None = None,
    check_modality: bool = True,
    keep_colours: bool = False,
    normalize_images: bool = True,
    mask_background: bool = True,
    field_of_view: View = "whole",
    max_voxels: int | None = None,
) -> Compose:
    """Load, orient and normalise the volume under `key`, and bring its lesion mask along.

    Its inverse, through MONAI's Invertd, brings a heatmap on the canonical grid back to the grid of
    the file.

    Parameters
    ----------
    modality : Modality or str
        Or its name, e.g. ``"brain_mri"``; ``"unified"`` normalises each study by its own.
    key : str
        Key of the path, which becomes the key of the volume (1, X, Y, Z).
    mask_key : str, optional
        Key of the mask's path; a study without one gets an empty mask.
    mask_label : int, optional
        Value of the lesion in the mask; see `lesion_of` if left.
    region : {"whole", "organ"}
        ``"organ"`` keeps what lies inside the organ mask under the key ``organ``, which every study
        then needs.
    organ_label : int, optional
        Value of the organ in a mask of many; see `lesion_of` if left.
    check_modality : bool
        Refuse studies of another modality; see `StudyModalityd`.
    keep_colours : bool
        Give the three channels of a picture in colour; see `load_volume`.
    normalize_images, mask_background : bool
        See `NormalizeMRI` and its sisters.
    field_of_view : {"whole", "foreground"}
        ``"foreground"`` crops image and mask to a square around the foreground, which is the organ
        in the region of an organ; see `FieldOfView`.
    max_voxels : int, optional
        Of a study, by its header; see `load_volume`.

    Raises
    ------
    ValueError
        If the modality, the region or the field of view is not known.
    """
    chosen = get_modality(modality) if isinstance(modality, str) else modality
    masks = [] if mask_key is None else [mask_key]
    organs = organ_keys(region)
    steps: list[Any] = [
        LoadVolumed(key, keep_colours=keep_colours, max_voxels=max_voxels),
        StudyModalityd(key, chosen, check=check_modality),
        *(LoadMaskd(mask, ref_key=key, label=mask_label) for mask in masks),
        *(LoadOrganMaskd(organ, ref_key=key, label=organ_label) for organ in organs),
        CanonicalOrientationd([key, *masks, *organs], axcodes=chosen.axcodes),
        _NORMALIZERS[chosen.intensity](
            key, normalize_images=normalize_images, mask_background=mask_background
        ),
        *(OrganRegiond(key, organ_key=organ) for organ in organs),
    ]
    if crops(field_of_view):
        steps.append(FieldOfViewd([key, *masks], axis=chosen.slice_axis))
    return Compose(steps)


def crops(field_of_view: View) -> bool:
    """Whether images are cropped to their foreground.

    Raises
    ------
    ValueError
        If the field of view is not known.
    """
    if field_of_view not in ("whole", "foreground"):
        message = f'field_of_view {field_of_view!r} is not known; use "whole" or "foreground".'
        raise ValueError(message)
    return field_of_view == "foreground"


def organ_keys(region: Region) -> list[str]:
    """Key of the organ mask for ``"organ"``, none for ``"whole"``.

    Raises
    ------
    ValueError
        If the region is not known.
    """
    if region not in ("whole", "organ"):
        raise ValueError(f'region {region!r} is not known; use "whole" or "organ".')
    return ["organ"] if region == "organ" else []
