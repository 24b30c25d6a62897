"""The preprocessing of one study, from its path to a normalised canonical volume."""

from __future__ import annotations

from monai.transforms import Compose, MapTransform

from mcmiad_monai.modality import IntensityRecipe, Modality, get_modality
from mcmiad_monai.transforms.intensity import NormalizeCTd, NormalizeMRId, NormalizeOCTd
from mcmiad_monai.transforms.orientation import CanonicalOrientationd
from mcmiad_monai.transforms.volume import LoadVolumed

_NORMALIZERS: dict[IntensityRecipe, type[MapTransform]] = {
    "mri": NormalizeMRId,
    "ct": NormalizeCTd,
    "oct": NormalizeOCTd,
}


def preprocessing(modality: Modality | str, *, key: str = "image") -> Compose:
    """Load, orient and normalise the volume under `key`.

    Its inverse, through MONAI's Invertd, brings a heatmap on the canonical grid back to the grid of
    the file.

    Parameters
    ----------
    modality : Modality or str
        Or its name, e.g. ``"brain_mri"``.
    key : str
        Key of the path, which becomes the key of the volume (1, X, Y, Z).
    """
    chosen = get_modality(modality) if isinstance(modality, str) else modality
    return Compose(
        [
            LoadVolumed(key),
            CanonicalOrientationd(key, axcodes=chosen.axcodes),
            _NORMALIZERS[chosen.intensity](key),
        ]
    )
