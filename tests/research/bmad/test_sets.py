from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, laplace
from sklearn.metrics import roc_auc_score

from mcmiad_monai.data.cases.find import CaseError
from mcmiad_monai.data.studies import iterate_slices
from mcmiad_monai.research.bmad.phantom import LAYOUTS, PATIENTS, SLICES, write_bmad_phantom
from mcmiad_monai.research.bmad.report import bmad_report
from mcmiad_monai.research.bmad.sets import OFFICIAL, SPLITS, find_bmad, own_set, patient_of_name


@pytest.fixture(scope="module", params=LAYOUTS)
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of each layout, to be read only."""
    root = tmp_path_factory.mktemp(request.param)
    return write_bmad_phantom(root / request.param, layout=request.param, size=32)


def test_every_layout_holds_the_same_images(tree: Path) -> None:
    layout, sets = tree.name, find_bmad(tree)
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


def test_masks_are_those_of_their_images(tree: Path) -> None:
    brain = find_bmad(tree)["brain"]
    for case in brain.cases("test"):
        assert (case["label"] is not None) == case["anomalous"]
        if case["label"]:
            assert Path(case["label"]).name == Path(case["image"]).name
            assert Path(case["label"]) != Path(case["image"])


def picture(path: Path, grey: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), grey, np.uint8)).save(path)
    return path


def test_sets_lie_in_folders_around_them(tmp_path: Path) -> None:
    for place in ("MedAD/data/brain", "Liver/Train/hist_DIY", "x/RetinaRESC_AD"):
        picture(tmp_path / place / "train/good/1.png")
    picture(tmp_path / "Chest_AD/train/good/1.png")  # a set of BMAD that is none of ours
    picture(tmp_path / "__MACOSX/Liver_AD/train/good/1.png")
    found = find_bmad(tmp_path)
    assert {name: one.root.name for name, one in found.items()} == {
        "brain": "brain",
        "liver": "hist_DIY",
        "resc": "RetinaRESC_AD",
    }


def test_set_without_training_part_has_the_other_splits(tmp_path: Path) -> None:
    for place in ("good/img/1_1", "Ungood/img/2_1", "Ungood/anomaly_mask/2_1"):
        picture(tmp_path / "Brain_AD/test" / f"{place}.png")
    brain = find_bmad(tmp_path)["brain"]
    assert brain.cases("train") == brain.cases("val") == []
    assert brain.counts("test") == (1, 1)
    assert "brain train: 0 + 0 images, released: 7500+0" in bmad_report({"brain": brain}).notes


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("test/Ungood/3.png", "ground_truth/3_mask.png"),
        ("test/Ungood/3.png", "ground_truth/test/Ungood/3.png"),
        ("TEST/UNGOOD/IMG/3.jpg", "TEST/UNGOOD/Label/3.png"),
        ("test/Ungood/3_seg.png", "test/Ungood/label/3_seg.png"),
        ("Test/test/Ungood/3.tif", "Test/test_label/Ungood/3.bmp"),
    ],
)
def test_mask_is_found_wherever_a_layout_puts_it(tmp_path: Path, image: str, mask: str) -> None:
    root = tmp_path / "liver"
    picture(root / image)
    picture(root / mask)
    picture(root / "valid/Ungood/1.png")  # has no mask of its own in ground_truth
    liver = find_bmad(tmp_path)["liver"]
    assert [(c["image"], c["label"]) for c in liver.cases("test")] == [
        (str(root / image), str(root / mask))
    ]
    assert [c["label"] for c in liver.cases("val")] == [None]


def test_set_can_be_given_as_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "Brain_AD/train/good/1.png")
    monkeypatch.chdir(tmp_path / "Brain_AD")
    assert find_bmad(".")["brain"].root == tmp_path / "Brain_AD"
    assert own_set(".", "brain_mri").name == "Brain_AD"


def test_number_alone_is_no_patient_of_other_splits(tmp_path: Path) -> None:
    for place in ("train/good", "test/good", "test/Ungood"):
        picture(tmp_path / "OCT2017" / place / "1000.jpeg")
    picture(tmp_path / "OCT2017/test/good/CNV-77-1.jpeg")
    picture(tmp_path / "OCT2017/test/Ungood/CNV-77-2.jpeg")
    oct2017 = find_bmad(tmp_path)["oct2017"]
    cases = oct2017.cases("train") + oct2017.cases("test")
    assert len({case["patient"] for case in cases}) == 4
    assert [c["patient"] for c in cases if "CNV" in c["image"]] == ["oct2017_CNV-77"] * 2


def test_case_names_are_unique_where_suffixes_alone_differ(tmp_path: Path) -> None:
    for name in ("1.png", "1.jpeg", "2.png"):
        picture(tmp_path / "brain/train/good" / name)
    names = [case["case"] for case in find_bmad(tmp_path)["brain"].cases("train")]
    assert names == ["brain_train_good_1.jpeg", "brain_train_good_1.png", "brain_train_good_2"]


def test_set_whose_masks_are_all_missing_has_a_problem_unless_released_so(tmp_path: Path) -> None:
    root = write_bmad_phantom(tmp_path, sets=["liver", "oct2017"], size=32)
    for masks in (root / "Liver_AD").rglob("anomaly_mask"):
        shutil.rmtree(masks)
    sets = find_bmad(root)
    assert len(sets["liver"].problems) == 2  # valid and test
    assert "8 anomalous images have no mask" in sets["liver"].problems[1]
    assert not sets["liver"].has_masks
    assert sets["oct2017"].problems == ()


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
        ("00123_78", "00123"),
        ("0001", "0001"),
        ("slice_12", "slice_12"),
        ("case7", "case7"),
        ("volume-3 slice 4", "volume-3 slice"),
        ("healthy", "healthy"),
    ],
)
def test_patient_is_what_stands_before_the_last_number(stem: str, patient: str) -> None:
    assert patient_of_name(stem) == patient


def test_images_become_slices_with_their_masks(tree: Path) -> None:
    for found in find_bmad(tree).values():
        failures: dict[str, str] = {}
        cases = found.cases("test")
        samples = list(
            iterate_slices(cases, found.modality, min_foreground=0, size=32, failures=failures)
        )
        assert failures == {}
        assert len(samples) == len(cases)
        for case, sample in zip(cases, samples, strict=True):
            if case["label"]:
                mask = np.asarray(Image.open(case["label"]).convert("L")) > 0  # (rows, columns)
                assert np.array_equal(sample.lesion[0].numpy(), mask)
                assert sample.anomalous == mask.any()  # by mask; by folder it is case["anomalous"]
            else:
                assert sample.anomalous == case["anomalous"]
            assert sample.patient == case["patient"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_mapped_slice_is_read_as_its_luminance(tmp_path: Path, mode: str) -> None:
    import matplotlib.pyplot as plt

    brain = find_bmad(write_bmad_phantom(tmp_path, sets=["brain"], size=32))["brain"]
    (case,) = brain.cases("train")[:1]
    path = Path(case["image"])
    plt.imsave(path, np.asarray(Image.open(path)), cmap="bone")  # as BMAD's brain slices are
    coloured = Image.open(path).convert(mode)
    coloured.save(path)
    grey = np.asarray(coloured, float)[..., :3] @ [0.299, 0.587, 0.114]  # ITU-R 601
    (sample,) = iterate_slices([case], "brain_mri", size=32, min_foreground=0)
    Image.fromarray(np.rint(grey).astype(np.uint8)).save(path)
    (expected,) = iterate_slices([case], "brain_mri", size=32, min_foreground=0)
    assert np.abs(sample.image - expected.image).max() < 0.02
    assert sample.image.max() > 0.3
    assert bmad_report({"brain": brain}, verify=True).problems == []


def test_phantom_of_the_archives_is_in_the_colours_of_the_release(tmp_path: Path) -> None:
    root = write_bmad_phantom(tmp_path, layout="archive", sets=["brain"], size=32)
    brain = find_bmad(root)["brain"]
    assert Image.open(brain.cases("train")[0]["image"]).mode == "RGBA"
    masks = [Image.open(c["label"]).convert("L") for c in brain.cases("test") if c["label"]]
    levels = {int(v) for mask in masks for v in np.unique(np.asarray(mask))}
    assert 0 in levels
    assert min(levels - {0}) < 128 < max(levels)  # a threshold of a half erases a label


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
    Image.fromarray(np.arange(512, dtype=np.uint16).reshape(32, 16).astype(np.uint8)).save(
        images[4]
    )
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
    found = bmad_report(find_bmad(write_bmad_phantom(tmp_path, sets=["brain"], size=32)))
    assert "brain test: 6 + 8 images, released: 640+3075" in found.notes
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["official"] == "7500+0"
    lines = found.text().splitlines()
    assert lines[1].split()[:6] == ["brain", "train", "12", "0", "0", "7500+0"]


def test_folder_without_a_set_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    picture(tmp_path / "Brains" / "1.png")
    with pytest.raises(CaseError, match=r"holds Brains/\. Expected folders such as Brain_AD"):
        find_bmad(tmp_path)
    picture(tmp_path / "Brains" / "train/good/1.png")
    with pytest.raises(CaseError, match=r"Brains/ in .* no name tells which"):
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
    assert found.cases("test")[0].keys() == find_bmad(root)["liver"].cases("test")[0].keys()
    with pytest.raises(ValueError, match="not known"):
        own_set(root, "heart")


def volume(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two normal volumes, and one with a lesion each in val and in test."""
    grey = np.random.default_rng(0).integers(1, 99, (16, 16, 3)).astype(np.int16)
    lesion = np.zeros(grey.shape, np.uint8)
    lesion[5:9, 5:9, 1] = 1
    for name in ("train/a", "train/b", "val/c", "test/d"):
        volume(tmp_path / "mine" / f"{name}.nii.gz", grey)
    for name in ("val/c", "test/d"):
        volume(tmp_path / "mine" / f"{name}_mask.nii.gz", lesion)
    return tmp_path / "mine"


def test_own_volumes_are_a_set_whose_test_slices_are_judged_by_mask(own: Path) -> None:
    found = own_set(own, "retina_oct")
    assert (found.name, found.modality, found.has_masks) == ("mine", "retina_oct", True)
    assert [c["patient"] for c in found.cases("train")] == ["a", "b"]
    assert [c["anomalous"] for c in found.cases("train")] == [False] * 2
    assert [c["anomalous"] for c in found.cases("test")] == [None]  # its mask tells, not a folder
    # not normal, so not calibrated on
    assert [c["anomalous"] for c in found.cases("val")] == [True]
    slices = iterate_slices(found.cases("test"), found.modality, size=16)
    assert [sample.anomalous for sample in slices] == [False, True, False]


def test_own_images_are_never_in_train_and_test(own: Path) -> None:
    found = own_set(own / "train", "retina_oct")
    assert len(found.cases("train")) == 2
    assert found.cases("val") == found.cases("test") == []
    assert not found.has_masks
    for kind in ("good", "Ungood"):
        picture(own / "classes" / kind / f"{kind}.png")
    found = own_set(own / "classes", "retina_oct")
    assert [found.counts(split) for split in ("train", "test")] == [(1, 0), (0, 1)]


def test_own_set_needs_a_training_part(own: Path) -> None:
    shutil.rmtree(own / "train")
    with pytest.raises(CaseError, match="has no train split"):
        own_set(own, "retina_oct")


def test_phantom_is_reproducible_and_seeds_differ(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_bmad_phantom(tmp_path / name, sets=["resc"], size=32, seed=seed)
    first, second, third = (
        sorted((tmp_path / n).rglob("test/Ungood/img/*.png"))[0].read_bytes() for n in "abc"
    )
    assert first == second != third


def test_phantom_has_the_patients_asked_for(tmp_path: Path) -> None:
    write_bmad_phantom(
        tmp_path, sets=["brain"], size=32, patients={"train": (3, 0), "test": (1, 2)}
    )
    brain = find_bmad(tmp_path)["brain"]
    assert [brain.counts(split) for split in SPLITS] == [(6, 0), (0, 0), (2, 4)]
    assert sum(not np.asarray(Image.open(c["label"])).any() for c in brain.cases("test")[2:]) == 1


def test_phantom_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="oct2017"):
        write_bmad_phantom(tmp_path / "a", layout="ader", sets=["oct2017"])
    with pytest.raises(ValueError, match="layout"):
        write_bmad_phantom(tmp_path / "a", layout="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none ill in train"):
        write_bmad_phantom(tmp_path / "a", patients={"train": (1, 1)})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(FileExistsError):
        write_bmad_phantom(tmp_path / "full")


def test_sharpness_away_from_the_lesion_does_not_tell_the_class(tmp_path: Path) -> None:
    patients = {"train": (1, 0), "valid": (0, 0), "test": (10, 10)}
    root = write_bmad_phantom(tmp_path, sets=["brain", "liver"], patients=patients, size=64)
    for found in find_bmad(root).values():
        cases, sharpness = found.cases("test"), []
        for case in cases:
            grey = np.asarray(Image.open(case["image"]).convert("L"), float)
            lesion = np.zeros(grey.shape, bool)
            if case["label"]:
                lesion = binary_dilation(np.asarray(Image.open(case["label"])) > 0, iterations=5)
            sharpness.append(float(np.abs(laplace(grey))[~lesion].mean()))
        assert 0.1 < roc_auc_score([case["anomalous"] for case in cases], sharpness) < 0.9
