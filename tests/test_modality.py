from __future__ import annotations

import pytest

from mcmiad_monai.modality import get_modality, normal_prompts


def test_prompts_are_fifteen_five_for_each_modality() -> None:
    prompts = normal_prompts()
    assert len(prompts) == len(set(prompts)) == 15


@pytest.mark.parametrize("name", ["brain_mri", "liver_ct", "retina_oct"])
def test_every_modality_knows_its_axes_and_intensities(name: str) -> None:
    modality = get_modality(name)
    assert modality.slice_axis in (0, 1, 2)
    assert len(modality.axcodes) == 3
    assert modality.intensity in ("mri", "ct", "oct")


def test_unknown_modality_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="brain_mri"):
        get_modality("knee_mri")
