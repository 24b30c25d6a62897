from __future__ import annotations

import itertools

import nibabel as nib
import pytest

from mcmiad_monai.modality import MODALITIES, get_modality, normal_prompts
from mcmiad_monai.networks.text_prior import encode_hashing
from mcmiad_monai.transforms import preprocessing

NAMES = ["brain_mri", "retina_oct", "liver_ct"]


def test_the_three_modalities_of_the_paper_are_known_by_name() -> None:
    assert list(MODALITIES) == NAMES
    assert [get_modality(name).name for name in NAMES] == NAMES
    assert [get_modality(name).intensity for name in NAMES] == ["mri", "oct", "ct"]


@pytest.mark.parametrize("name", ["brain", "Brain_MRI", ""])
def test_unknown_modality_names_those_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' is not known; choose one of \['brain_mri'"):
        get_modality(name)


@pytest.mark.parametrize("name", NAMES)
def test_slices_are_axial_planes_of_a_valid_orientation(name: str) -> None:
    modality = get_modality(name)
    world = nib.orientations.axcodes2ornt(modality.axcodes)[modality.slice_axis, 0]
    assert world == 2  # along the body
    assert preprocessing(modality) is not None


def test_fifteen_prompts_are_five_a_modality_in_the_order_of_the_paper() -> None:
    prompts = normal_prompts()
    assert len(prompts) == len(set(prompts)) == 15
    words = {"brain_mri": "brain", "retina_oct": "OCT", "liver_ct": "liver"}
    for k, (name, word) in enumerate(words.items()):
        own = prompts[5 * k : 5 * k + 5]
        assert own == get_modality(name).prompts
        # the last prompts of brain and retina name the organ in other words
        assert sum(word in prompt for prompt in own) >= 4


@pytest.mark.parametrize("prompt", normal_prompts())
def test_prompt_is_one_whole_sentence_about_normal_anatomy(prompt: str) -> None:
    assert prompt == " ".join(prompt.split())
    assert prompt[0].isupper()
    assert prompt.endswith(".")
    assert prompt.count(". ") == 0
    normal = ("normal", "healthy", "without", "no ", "free of", "intact", "unremarkable", "smooth")
    assert any(word in prompt.lower() for word in normal)


def test_prompts_are_told_apart_by_words_alone() -> None:
    rows = encode_hashing(normal_prompts()).embeddings
    similar = rows @ rows.T
    assert all(similar[i, j] < 0.95 for i, j in itertools.combinations(range(15), 2))


def test_folder_names_of_bmad_belong_to_one_modality() -> None:
    folders = [name for modality in MODALITIES.values() for name in modality.bmad_folders]
    assert len(folders) == len(set(folders))
    assert {"Brain_AD", "Liver_AD", "Retina_RESC_AD", "Retina_OCT2017_AD"} <= set(folders)
