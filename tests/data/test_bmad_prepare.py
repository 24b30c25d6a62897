from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mcmiad_monai.data.bmad import find_bmad
from mcmiad_monai.data.bmad_prepare import find_pairs, prepare_brain, prepare_liver, split_of
from mcmiad_monai.data.volumes import CaseError

SHARES = {"valid": 0.25, "test": 0.5}


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, -1, 1, 1])), path)


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    """Eight patients of 20 slices; tumour, of label 1 and 4, in slices 8 to 13."""
    rng = np.random.default_rng(0)
    for k in range(8):
        volume = rng.integers(10, 500, (12, 14, 20)).astype(np.int16)
        seg = np.zeros(volume.shape, np.uint8)
        seg[4:7, 4:6, 8:14], seg[4, 4, 8:14] = 1, 4
        folder = tmp_path / "brats" / f"BraTS2021_{k:05d}"
        write(folder / f"BraTS2021_{k:05d}_flair.nii.gz", volume)
        write(folder / f"BraTS2021_{k:05d}_t1.nii.gz", volume)
        write(folder / f"BraTS2021_{k:05d}_seg.nii.gz", seg)
    return tmp_path / "brats"


@pytest.fixture
def livers(tmp_path: Path) -> tuple[Path, Path]:
    """Two volumes of BTCV and four of LiTS; metal of 3,000 HU in the first two slices."""
    rng = np.random.default_rng(0)
    for k in range(6):
        volume = rng.integers(40, 120, (16, 16, 6)).astype(np.int16)
        volume[0, 0], volume[15, 15, :2] = -1000, 3000
        labels = np.zeros(volume.shape, np.uint8)
        labels[2:10, 3:9, 1:5] = 6 if k < 2 else 1
        if k < 2:
            write(tmp_path / "btcv" / "img" / f"img000{k}.nii.gz", volume)
            write(tmp_path / "btcv" / "label" / f"label000{k}.nii.gz", labels)
        else:
            labels[3:5, 4:6, 2] = 2
            write(tmp_path / "lits" / f"volume-{k}.nii", volume)
            write(tmp_path / "lits" / f"segmentation-{k}.nii", labels)
    return tmp_path / "btcv", tmp_path / "lits"


def test_brain_as_released(brats: Path, tmp_path: Path) -> None:
    found = prepare_brain(brats, tmp_path / "out", slices=range(20), shares=SHARES, progress=False)
    # 2 patients in train, 2 in valid, 4 in test, 14 slices each without tumour; every 10th
    # (0, 10) and every 8th (0, 8, 16) are Ungood, slices 0 and 16 without tumour
    assert found.counts == {
        "train/good": 2 * 14,
        "valid/Ungood": 2 * 2,
        "valid/good": 2 * 13,
        "test/Ungood": 4 * 3,
        "test/good": 4 * 12,
    }
    brain = find_bmad(tmp_path / "out")["brain"]
    assert brain.counts("test") == (48, 12)
    assert brain.problems == ()
    masks = [np.asarray(Image.open(case["label"])) for case in brain.cases("test") if case["label"]]
    assert sum(not mask.any() for mask in masks) == 8
    assert {int(v) for mask in masks for v in np.unique(mask)} == {0, 1, 4}  # several levels
    picture = Image.open(brain.cases("train")[0]["image"])
    assert picture.mode == "RGB"
    assert picture.size == (14, 12)  # as stored: the first axis goes down
    train = {case["patient"] for case in brain.cases("train")}
    assert train.isdisjoint({case["patient"] for case in brain.cases("test")})


def test_clean_brain_has_lesion_in_every_anomalous_slice(brats: Path, tmp_path: Path) -> None:
    prepare_brain(
        brats, tmp_path / "out", clean=True, slices=range(20), shares=SHARES, progress=False
    )
    brain = find_bmad(tmp_path / "out")["brain"]
    anomalous = [case for case in brain.cases("test") if case["anomalous"]]
    assert len(anomalous) == 4  # slice 8 of each patient
    for case in anomalous:
        mask = np.asarray(Image.open(case["label"]))
        assert {int(v) for v in np.unique(mask)} == {0, 255}
        assert mask.shape == (14, 12)  # upright
        assert mask[4:6, 4:7].all()
        assert Image.open(case["image"]).mode == "L"


def test_slices_are_stretched_to_their_own_range(brats: Path, tmp_path: Path) -> None:
    prepare_brain(
        brats, tmp_path / "out", clean=True, slices=range(20), shares=SHARES, progress=False
    )
    case = find_bmad(tmp_path / "out")["brain"].cases("train")[0]
    name, k = Path(case["image"]).stem.rsplit("_", 1)
    source = nib.load(brats / name / f"{name}_flair.nii.gz").get_fdata()[:, :, int(k)].T
    expected = 255 * (source - source.min()) / (source.max() - source.min())
    assert np.abs(np.asarray(Image.open(case["image"])) - expected).max() <= 1


@pytest.mark.parametrize("clean", [False, True])
def test_liver_slices_windows_and_flip(
    livers: tuple[Path, Path], tmp_path: Path, clean: bool
) -> None:
    found = prepare_liver(
        *livers, tmp_path / "out", clean=clean, shares={"valid": 0.25}, progress=False
    )
    assert found.counts == {
        "train/good": 2 * 4,
        "valid/good": 3,
        "valid/Ungood": 1,
        "test/good": 3 * 3,
        "test/Ungood": 3,
    }
    liver = find_bmad(tmp_path / "out")["liver"]
    case = next(case for case in liver.cases("test") if case["anomalous"])
    mask, picture = (np.asarray(Image.open(case[key])) for key in ("label", "image"))
    assert np.argwhere(mask > 0).min(0).tolist() == [16 - 5, 4]  # rows 3, 4 from the bottom
    assert np.array_equal(np.argwhere(picture > 0).min(0), [16 - 10, 3])
    assert picture[mask == 0].min() == 0
    # metal squeezes what is not clipped: few grey levels are left of the liver
    train = {Path(c["image"]).stem: c for c in liver.cases("train")}
    levels = [
        len(np.unique(np.asarray(Image.open(train[f"btcv_000{0}_{k}"]["image"])))) for k in (1, 3)
    ]
    assert (levels[0] > 20) == clean


def test_damaged_volume_is_reported_and_the_others_are_written(brats: Path, tmp_path: Path) -> None:
    bad = next((brats / "BraTS2021_00003").glob("*_flair.nii.gz"))
    bad.write_bytes(b"no volume")
    found = prepare_brain(brats, tmp_path / "out", slices=range(20), shares=SHARES, progress=False)
    assert list(found.failures) == ["BraTS2021_00003"]
    written = json.loads((tmp_path / "out/Brain_AD/prepared.json").read_text())
    assert written["volumes"] == 8
    assert written["failures"] == found.failures
    assert "git_revision" in written
    assert sum(found.counts.values()) > 7 * 13


def test_shapes_that_differ_are_a_failure(brats: Path, tmp_path: Path) -> None:
    seg = next((brats / "BraTS2021_00001").glob("*_seg.nii.gz"))
    write(seg, np.zeros((12, 14, 19), np.uint8))
    found = prepare_brain(brats, tmp_path / "out", slices=range(20), progress=False)
    assert "(12, 14, 20)" in found.failures["BraTS2021_00001"]


def test_volume_without_segmentation_is_refused(brats: Path, tmp_path: Path) -> None:
    next((brats / "BraTS2021_00002").glob("*_seg.nii.gz")).unlink()
    with pytest.raises(CaseError, match=r"1 volumes .* have no segmentation .*00002_flair"):
        prepare_brain(brats, tmp_path / "out")
    (tmp_path / "e").mkdir()
    with pytest.raises(CaseError, match="no volume named with 'flair'; it has nothing"):
        prepare_brain(tmp_path / "e", tmp_path / "out")
    with pytest.raises(CaseError, match="is no folder"):
        prepare_brain(tmp_path / "nowhere", tmp_path / "out")


def test_full_folder_is_not_written_into(brats: Path) -> None:
    with pytest.raises(FileExistsError):
        prepare_brain(brats, brats)


def test_split_is_by_patient_and_seeded(brats: Path) -> None:
    pairs = find_pairs(brats, "flair", "seg")
    splits = split_of(pairs, SHARES, 0)
    assert sorted(splits.values()) == ["test"] * 4 + ["train"] * 2 + ["valid"] * 2
    assert splits == split_of(pairs[::-1], SHARES, 0)
    assert any(split_of(pairs, SHARES, seed) != splits for seed in (1, 2, 3))
