from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mcmiad_monai.data.cases.find import CaseError
from mcmiad_monai.research.bmad.brain import prepare_brain
from mcmiad_monai.research.bmad.layout import find_pairs
from mcmiad_monai.research.bmad.liver import equalised_as_released, prepare_liver
from mcmiad_monai.research.bmad.prepare import Prepared, split_of
from mcmiad_monai.research.bmad.sets import find_bmad

SHARES = {"valid": 0.25, "test": 0.5}
DEPTH = 20
#: Patients of the fixture: three good ones for training, two for test, one for valid, and ill ones.
NUMBERS = (3, 5, 8, 0, 11, 25, 1, 4, 6)


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, -1, 1, 1])), path)


def read(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    """Nine patients of 20 slices: k = 0 … 5 have tumour in 2 + k slices from 8 on, 6 … 8 in all."""
    rng = np.random.default_rng(0)
    for k, number in enumerate(NUMBERS):
        volume = rng.integers(10, 500, (12, 14, DEPTH)).astype(np.int16)
        seg = np.zeros(volume.shape, np.uint8)
        ill = slice(8, 10 + k) if k < 6 else slice(None)
        seg[4:7, 4:6, ill], seg[4, 4, ill], seg[5, 5, ill] = 1, 4, 2
        name = f"BraTS2021_{number:05d}"
        for kind, values in (("flair", volume), ("t1", volume), ("seg", seg)):
            write(tmp_path / "brats" / name / f"{name}_{kind}.nii.gz", values)
    return tmp_path / "brats"


def brain(source: Path, out: Path, *, clean: bool = False) -> Prepared:
    shares = SHARES if clean else None
    return prepare_brain(
        source, out, clean=clean, slices=range(DEPTH), shares=shares, progress=False
    )


def source_of(brats: Path, picture: str, kind: str) -> np.ndarray:
    """The slice (X, Y) of a volume that a picture was made from."""
    name, k = Path(picture).stem.rsplit("_", 1)
    stored = nib.load(brats / name / f"{name}_{kind}.nii.gz")
    return np.asarray(stored.dataobj)[:, :, int(k)]


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
    found = brain(brats, tmp_path / "out")
    # patient k of the first six has 18 - k slices without tumour: three patients for training, two
    # for normal test images, the last for valid; of the three others, one is for valid, where
    # slices 0 and 10 are taken, and two are for test, with slices 0, 8 and 16
    assert found.counts == {
        "train/good": 18 + 17 + 16,
        "test/good": 15 + 14,
        "valid/good": 13,
        "valid/Ungood": 2,
        "test/Ungood": 2 * 3,
    }
    prepared = find_bmad(tmp_path / "out")["brain"]
    assert prepared.counts("test") == (29, 6)
    assert prepared.problems == ()
    patients = [
        {case["patient"] for case in prepared.cases(split) if case["anomalous"] == ill}
        for split, ill in (("train", False), ("val", False), ("val", True), ("test", False))
    ]
    assert sum(len(group) for group in patients) == len(set().union(*patients)) == 3 + 1 + 1 + 2


def test_brain_as_released_looks_as_matplotlib_saves_it(brats: Path, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    brain(brats, tmp_path / "out")
    case = find_bmad(tmp_path / "out")["brain"].cases("test")[-1]
    for key, kind in (("image", "flair"), ("label", "seg")):
        plt.imsave(tmp_path / "expected.png", source_of(brats, case[key], kind), cmap="bone")
        assert np.array_equal(read(case[key]), read(tmp_path / "expected.png"))
    grey = np.asarray(Image.open(case["label"]).convert("L"))
    assert np.array_equal(grey > 0, source_of(brats, case["label"], "seg") > 0)
    assert len(np.unique(grey)) == 4  # black and three labels, of which a half erases some
    assert 0 < (grey > 127).sum() < (grey > 0).sum()


def test_clean_brain_has_lesion_in_every_anomalous_slice(brats: Path, tmp_path: Path) -> None:
    brain(brats, tmp_path / "out", clean=True)
    prepared = find_bmad(tmp_path / "out")["brain"]
    steps = {"val": 10, "test": 8}
    for split, step in steps.items():
        anomalous = [case for case in prepared.cases(split) if case["anomalous"]]
        assert anomalous
        for case in anomalous:
            lesion = source_of(brats, case["image"], "seg").T > 0  # upright: rows from the front
            assert lesion.any()
            assert np.array_equal(read(case["label"]), 255 * lesion)
            assert int(Path(case["image"]).stem.rsplit("_", 1)[1]) % step == 0
    for case in prepared.cases("train") + prepared.cases("test"):
        if not case["anomalous"]:
            assert not source_of(brats, case["image"], "seg").any()
    train, test = ({c["patient"] for c in prepared.cases(s)} for s in ("train", "test"))
    assert train
    assert train.isdisjoint(test)


def test_clean_slices_are_grey_and_stretched_to_their_own_range(
    brats: Path, tmp_path: Path
) -> None:
    brain(brats, tmp_path / "out", clean=True)
    path = find_bmad(tmp_path / "out")["brain"].cases("train")[0]["image"]
    source = source_of(brats, path, "flair").T.astype(float)
    expected = 255 * (source - source.min()) / (source.max() - source.min())
    assert Image.open(path).mode == "L"
    assert np.abs(read(path) - expected).max() <= 1


def test_missing_published_patients_are_counted_and_named(
    brats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = brain(brats, tmp_path / "out")
    notes = "\n".join(found.notes)
    assert "train/good: 421 of the 424 published patients are not in the folder given" in notes
    assert "valid/good: 38 of the 39 published" in notes
    assert "test/good: 160 of the 162 published" in notes
    assert "Ungood: 3 patients, the release has 626" in notes
    written = json.loads((tmp_path / "out/Brain_AD/prepared.json").read_text())
    assert written["notes"] == found.notes
    assert "421 of the 424" in caplog.text


def test_patients_of_other_names_have_no_place_in_the_release(brats: Path, tmp_path: Path) -> None:
    folder = brats / "BraTS2021_00003"
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("BraTS2021_00003", "BraTS20_Training_003")))
    found = brain(brats, tmp_path / "out")
    assert list(found.failures) == ["BraTS20_Training_003"]
    assert "not one of BraTS2021" in found.failures["BraTS20_Training_003"]
    assert found.counts["train/good"] == 17 + 16


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
    mask, picture = read(case["label"]), read(case["image"])
    assert np.argwhere(mask > 0).min(0).tolist() == [16 - 5, 4]  # rows 3, 4 from the bottom
    assert np.array_equal(np.argwhere(picture > 0).min(0), [16 - 10, 3])
    assert picture[mask == 0].min() == 0
    # metal squeezes what is not clipped: few grey levels are left of the liver
    train = {Path(c["image"]).stem: c for c in liver.cases("train")}
    levels = [len(np.unique(read(train[f"btcv_0000_{k}"]["image"]))) for k in (1, 3)]
    assert (levels[0] > 20) == clean


def test_liver_is_equalised_and_never_black(livers: tuple[Path, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    plane, liver = rng.normal(80, 20, (96, 96)).clip(-150, 240), np.zeros((96, 96), bool)
    liver[8:90, 5:85] = True
    write(livers[0] / "img" / "img0000.nii.gz", plane[..., None])
    write(livers[0] / "label" / "label0000.nii.gz", 6 * liver[..., None].astype(np.uint8))
    prepare_liver(*livers, tmp_path / "out", clean=True, progress=False)
    found = read(tmp_path / "out/Liver_AD/train/good/img/btcv_0000_0.png")[::-1]
    assert np.array_equal(found > 0, liver)
    grey = np.floor(255 * (plane - plane.min()) / (plane.max() - plane.min()))[liver]
    below = np.array([(grey <= g).mean() for g in grey])
    expected = 1 + 254 * (below - below.min()) / (1 - below.min())
    # MONAI interpolates within a bin, so that a grey level errs by less than its own share
    share = 254 * np.unique(grey, return_counts=True)[1].max() / grey.size
    assert np.abs(found[liver] - expected).max() < share + 1 < 10
    assert (np.diff(found[liver][np.argsort(grey)].astype(int)) >= 0).all()


def test_published_equalisation_is_that_of_bmads_script() -> None:
    """An independent transcription: float64, pixel by pixel over the greys."""
    rng = np.random.default_rng(2)
    plane = rng.normal(90, 40, (64, 48)).clip(0, 255).astype(np.uint8)
    plane[:20] = 0
    greys = np.sort(plane[plane > 0].astype(float))
    expected = np.zeros(plane.shape, np.uint8)
    for row, column in np.argwhere(plane > 0):
        grey = np.floor(255.0 * np.mean(greys <= plane[row, column]) + 1e-9)
        if 1 <= grey < 150:
            grey = np.floor(grey / 150 * 120 + 30)
        expected[row, column] = grey
    found = equalised_as_released(plane)
    assert np.array_equal(found, expected)
    assert found.dtype == np.uint8
    assert found[plane > 0].max() == 255
    assert not np.isin(found, range(1, 30)).any()
    assert np.array_equal(equalised_as_released(np.zeros((4, 4), np.uint8)), np.zeros((4, 4)))


def test_liver_as_released_has_the_published_equalisation(
    livers: tuple[Path, Path], tmp_path: Path
) -> None:
    for clean in (False, True):
        prepare_liver(*livers, tmp_path / f"{clean}", clean=clean, progress=False)
    released, own = (
        read(tmp_path / f"{clean}/Liver_AD/train/good/img/btcv_0000_3.png")
        for clean in (False, True)
    )
    volume = np.asarray(nib.load(livers[0] / "img/img0000.nii.gz").dataobj)[:, :, 3].astype(float)
    stretched = (255 * (volume - volume.min()) / np.ptp(volume)).astype(np.uint8)
    stretched[np.asarray(nib.load(livers[0] / "label/label0000.nii.gz").dataobj)[:, :, 3] == 0] = 0
    assert np.array_equal(released, equalised_as_released(stretched)[::-1])
    assert np.abs(released.astype(int) - own)[own > 0].mean() > 5


def test_sources_in_folders_of_one_name_are_kept_apart(
    livers: tuple[Path, Path], tmp_path: Path
) -> None:
    btcv, lits = (folder.rename(folder.with_name(f"{folder.name}_x")) for folder in livers)
    for source, names in ((btcv, ("img0000", "label0000")), (lits, ("volume-2", "segmentation-2"))):
        for path in [p for p in source.rglob("*.nii*") if p.name.split(".")[0] in names]:
            word = path.name.split("0000")[0] if source == btcv else path.name.split("-")[0]
            target = tmp_path / source.name / "volumes" / f"{word}7{''.join(path.suffixes)}"
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
    found = prepare_liver(btcv, lits, tmp_path / "out", shares={"valid": 0.25}, progress=False)
    assert found.counts["train/good"] == 2 * 4
    assert found.failures == {}


def test_damaged_volumes_are_reported_and_the_others_are_written(
    brats: Path, tmp_path: Path
) -> None:
    names = [f"BraTS2021_{number:05d}" for number in NUMBERS[:4]]
    flair = [brats / name / f"{name}_flair.nii.gz" for name in names]
    flair[0].write_bytes(b"no volume")
    write(flair[1], np.zeros((12, 14, DEPTH - 1), np.int16))
    write(flair[2], np.full((12, 14, DEPTH), np.nan, np.float32))
    next(flair[3].parent.glob("*_seg.nii.gz")).unlink()
    found = brain(brats, tmp_path / "out")
    assert sorted(found.failures) == sorted(names)
    assert "(12, 14, 19)" in found.failures[names[1]]
    assert "NaN" in found.failures[names[2]]
    assert "has no segmentation" in found.failures[names[3]]
    written = json.loads((tmp_path / "out/Brain_AD/prepared.json").read_text())
    assert written["volumes"] == 9
    assert written["failures"] == found.failures
    assert written["counts"] == found.counts
    assert written["options"]["slices"] == list(range(DEPTH))
    assert "git_revision" in written
    assert found.counts["test/Ungood"] == 6
    assert not list((tmp_path / "out").rglob(".*"))  # nothing half written


def test_volumes_of_too_few_slices_are_failures(brats: Path, tmp_path: Path) -> None:
    found = prepare_brain(brats, tmp_path / "out", clean=True, progress=False)
    assert len(found.failures) == 9
    assert "has 20 slices, none of those wanted" in found.failures["BraTS2021_00000"]


def test_sources_that_cannot_be_meant_are_refused(brats: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "e").mkdir()
    with pytest.raises(CaseError, match="no volume named with 'flair'; it has nothing"):
        prepare_brain(tmp_path / "e", out)
    with pytest.raises(CaseError, match="is no folder"):
        prepare_brain(tmp_path / "nowhere", out)
    with pytest.raises(CaseError, match=r"none of the 9 volumes .* has a segmentation"):
        find_pairs(brats, "flair", "tumour")
    copy = tmp_path / "brats" / "copy" / "BraTS2021_00001_flair.nii.gz"
    write(copy, np.zeros((2, 2, 2)))
    with pytest.raises(CaseError, match="are the same volume"):
        prepare_brain(brats, out)
    assert not out.exists()


def test_options_that_cannot_be_meant_are_refused(brats: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="slices is empty"):
        prepare_brain(brats, out, slices=[])
    with pytest.raises(ValueError, match="shares are of a clean preparation"):
        prepare_brain(brats, out, shares=SHARES)
    for shares in ({"val": 0.2}, {"valid": 0.0}, {"valid": 0.5, "test": 0.5}):
        with pytest.raises(ValueError, match="expected shares of valid and test"):
            prepare_brain(brats, out, clean=True, shares=shares)


def test_full_folder_is_not_written_into(brats: Path) -> None:
    with pytest.raises(FileExistsError):
        prepare_brain(brats, brats)


def test_drawn_split_is_by_patient_and_seeded(brats: Path) -> None:
    pairs = find_pairs(brats, "flair", "seg")
    splits = split_of(pairs, SHARES, 0)
    assert Counter(splits.values()) == {"train": 3, "valid": 2, "test": 4}
    assert splits == split_of(pairs[::-1], SHARES, 0)
    assert any(split_of(pairs, SHARES, seed) != splits for seed in (1, 2, 3))
    assert sorted(split_of(pairs[:3], {"valid": 0.01, "test": 0.98}, 0).values()) == [
        "test",
        "train",
        "valid",
    ]
    with pytest.raises(CaseError, match="2 volumes have a segmentation; at least 3"):
        split_of(pairs[:2], SHARES, 0)
