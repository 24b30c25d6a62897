"""The preprocessing of one study, from its path to a normalised canonical volume."""

from __future__ import annotations

from monai.transforms import Compose, MapTransform

from mcmiad_monai.modality import IntensityRecipe, Modality, get_modality
from mcmiad_monai.transforms.intensity import NormalizeCTd, NormalizeMRId, NormalizeOCTd
from mcmiad_monai.transforms.orientation import CanonicalOrientationd
from mcmiad_monai.transforms.volume import LoadMaskd, LoadVolumed

_NORMALIZERS: dict[IntensityRecipe, type[MapTransform]] = {
    "mri": NormalizeMRId,
    "ct": NormalizeCTd,
    "oct": NormalizeOCTd,
}


def preprocessing(
    modality: Modality | str, *, key: str = "image", mask_key: str | None = None
) -> Compose:
    """Load, orient and normalise the volume under `key`, and bring its lesion mask along.

    Its inverse, through MONAI's Invertd, brings a heatmap on the canonical grid back to the grid of
    the file.

    Parameters
    ----------
    modality : Modality or str
        Or its name, e.g. ``"brain_mri"``.
    key : str
        Key of the path, which becomes the key of the volume (1, X, Y, Z).
    mask_key : str, optional
        Key of the mask's path; a study without one gets an empty mask.
    """
    chosen = get_modality(modality) if isinstance(modality, str) else modality
    masks = [] if mask_key is None else [mask_key]
    return Compose(
        [
            LoadVolumed(key),
            *(LoadMaskd(mask, ref_key=key) for mask in masks),
            CanonicalOrientationd([key, *masks], axcodes=chosen.axcodes),
            _NORMALIZERS[chosen.intensity](key),
        ]
    )
