from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcmiad_monai.data.bmad import OFFICIAL, find_bmad, own_set, patient_of_name
from mcmiad_monai.data.bmad_phantom import LAYOUTS, PATIENTS, SLICES, Layout, write_bmad_phantom
from mcmiad_monai.data.bmad_report import bmad_report
from mcmiad_monai.data.studies import iterate_slices
from mcmiad_monai.data.volumes import CaseError

EVERY = pytest.mark.parametrize("layout", LAYOUTS)


@EVERY
def test_every_layout_holds_the_same_images(tmp_path: Path, layout: Layout) -> None:
    sets = find_bmad(write_bmad_phantom(tmp_path, layout=layout, size=32))
    assert list(sets) == [n for n in OFFICIAL if layout != "ader" or n != "oct2017"]
    for name, found in sets.items():
        for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
            healthy, ill = PATIENTS[folder]
            expected = (healthy * SLICES, ill * SLICES)
            if layout == "ader" and split == "val":
                expected = (0, 0)
            assert found.counts(split) == expected, (name, split)  # type: ignore[arg-type]
        assert found.problems == ()
        assert found.has_masks == (name != "oct2017")


@EVERY
def test_masks_are_those_of_their_images(tmp_path: Path, layout: Layout) -> None:
    brain = find_bmad(write_bmad_phantom(tmp_path, layout=layout, size=32, sets=["brain"]))["brain"]
    for case in brain.cases("test"):
        assert (case["label"] is not None) == case["anomalous"]
        if case["label"]:
            assert Path(case["label"]).name == Path(case["image"]).name
            assert Path(case["label"]) != Path(case["image"])


def test_sets_are_told_by_folders_of_any_case_and_a_set_can_be_given_itself(tmp_path: Path) -> None:
    write_bmad_phantom(tmp_path / "a", sets=["liver"], size=32)
    (tmp_path / "a" / "Liver_AD").rename(tmp_path / "a" / "LIVER_ad")
    assert list(find_bmad(tmp_path / "a")) == ["liver"]
    assert list(find_bmad(tmp_path / "a" / "LIVER_ad")) == ["liver"]


def test_slices_of_a_patient_are_told_by_name(tmp_path: Path) -> None:
    brain = find_bmad(write_bmad_phantom(tmp_path, sets=["brain"], size=32))["brain"]
    patients = {case["patient"] for case in brain.cases("train")}
    assert len(patients) == PATIENTS["train"][0]


@pytest.mark.parametrize(
    ("stem", "patient"),
    [
        ("BraTS2021_00123_78", "BraTS2021_00123"),
        ("NORMAL-101880-1", "NORMAL-101880"),
        ("12_55", "12"),
        ("0001", "0001"),
        ("slice_12", "slice_12"),
        ("case7", "case7"),
        ("volume-3 slice 4", "volume-3 slice"),
        ("healthy", "healthy"),
    ],
)
def test_patient_is_what_stands_before_the_last_number(stem: str, patient: str) -> None:
    assert patient_of_name(stem) == patient


@EVERY
def test_images_become_slices_with_their_masks(tmp_path: Path, layout: Layout) -> None:
    sets = find_bmad(write_bmad_phantom(tmp_path, layout=layout, size=32))
    for found in sets.values():
        failures: dict[str, str] = {}
        cases = found.cases("test")
        samples = list(
            iterate_slices(cases, found.modality, min_foreground=0, size=32, failures=failures)
        )
        assert failures == {}
        assert len(samples) == len(cases)
        for case, sample in zip(cases, samples, strict=True):
            if case["label"]:
                mask = np.asarray(Image.open(case["label"])) > 0  # (rows, columns), any level
                assert np.array_equal(sample.lesion[0].numpy(), mask)
                assert sample.anomalous == mask.any()  # by mask; by folder it is case["anomalous"]
            else:
                assert sample.anomalous == case["anomalous"]
            assert sample.patient == case["patient"]


def test_colour_mapped_pictures_are_read_as_luminance(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    brain = find_bmad(write_bmad_phantom(tmp_path, sets=["brain"], size=32))["brain"]
    path = Path(brain.cases("train")[0]["image"])
    plt.imsave(path, np.asarray(Image.open(path)), cmap="bone")  # as BMAD's brain slices are
    assert Image.open(path).mode == "RGBA"
    (sample,) = iterate_slices(brain.cases("train")[:1], "brain_mri", size=32, min_foreground=0)
    assert sample.image.shape == (1, 32, 32)
    assert bmad_report({"brain": brain}, verify=True).problems == []


def test_missing_masks_and_lone_masks_are_reported(tmp_path: Path) -> None:
    root = write_bmad_phantom(tmp_path, sets=["liver"], size=32)
    masks = sorted((root / "Liver_AD/test/Ungood/anomaly_mask").iterdir())
    masks[0].unlink()
    masks[1].rename(masks[1].with_name("other_1_2.png"))
    problems = "\n".join(bmad_report(find_bmad(root)).problems)
    assert "2 anomalous images have no mask" in problems
    assert "1 masks have no image: other_1_2.png" in problems


def test_full_check_names_bad_files_and_goes_on(tmp_path: Path) -> None:
    root = write_bmad_phantom(tmp_path, sets=["brain", "oct2017"], size=32)
    images = sorted((root / "Brain_AD/test/Ungood/img").iterdir())
    images[3].write_bytes(images[3].read_bytes()[:100])
    Image.new("L", (16, 32)).save(images[4])
    jpeg = next((root / "Retina_OCT2017_AD/train/good/img").iterdir())
    jpeg.write_text("")
    found = bmad_report(find_bmad(root), verify=True)
    told = "\n".join(found.problems)
    assert len(found.problems) == 3
    assert images[3].stem in told
    assert "(16, 32, " not in told
    assert f"{images[4].stem}: image (16, 32) and mask (32, 32) differ in size" in told
    assert jpeg.stem in told
    assert any("2 anomalous images have an empty mask" in note for note in found.notes)


def test_counts_are_set_against_those_of_the_release(tmp_path: Path) -> None:
    found = bmad_report(find_bmad(write_bmad_phantom(tmp_path, size=32)))
    assert "brain test: 6 + 8 images, released: 640+3075" in found.notes
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["official"] == "7500+0"
    lines = found.text().splitlines()
    assert lines[1].split()[:6] == ["brain", "train", "12", "0", "0", "7500+0"]


def test_folder_without_a_set_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "Brains").mkdir()
    with pytest.raises(CaseError, match=r"holds Brains/.*Brain|brain_ad"):
        find_bmad(tmp_path)
    with pytest.raises(CaseError, match="is no folder"):
        find_bmad(tmp_path / "nowhere")


def test_set_without_training_images_is_refused(tmp_path: Path) -> None:
    root = write_bmad_phantom(tmp_path, sets=["resc"], size=32)
    shutil.rmtree(root / "Retina_RESC_AD/train/good")
    with pytest.raises(CaseError, match="no image was found for train/good"):
        find_bmad(root)


def test_same_set_twice_is_refused(tmp_path: Path) -> None:
    write_bmad_phantom(tmp_path / "x", sets=["brain"], size=32)
    shutil.copytree(tmp_path / "x" / "Brain_AD", tmp_path / "x" / "Brain")
    with pytest.raises(CaseError, match="both BMAD's set 'brain'"):
        find_bmad(tmp_path / "x")


def test_own_folder_is_a_set(tmp_path: Path) -> None:
    root = write_bmad_phantom(tmp_path, sets=["liver"], size=32) / "Liver_AD"
    found = own_set(root, "liver_ct")
    assert found.counts("train") == (12, 0)
    assert found.counts("test") == (6, 8)
    assert found.has_masks
    with pytest.raises(ValueError, match="not known"):
        own_set(root, "heart")


def test_phantom_is_reproducible_and_seeds_differ(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_bmad_phantom(tmp_path / name, sets=["resc"], size=32, seed=seed)
    first, second, third = (
        sorted((tmp_path / n).rglob("test/Ungood/img/*.png"))[0].read_bytes() for n in "abc"
    )
    assert first == second != third


def test_phantom_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="oct2017"):
        write_bmad_phantom(tmp_path / "a", layout="ader", sets=["oct2017"])
    with pytest.raises(ValueError, match="layout"):
        write_bmad_phantom(tmp_path / "a", layout="other")  # type: ignore[arg-type]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(FileExistsError):
        write_bmad_phantom(tmp_path / "full")
