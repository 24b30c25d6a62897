"""The unit of work: whatever a study is given as, the heatmap is the same and in its geometry."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd
from PIL import Image
from stressed import make_model

import mcmiad_monai
from mcmiad_monai import load
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.errors import BundleError
from mcmiad_monai.inference.cohort import infer_cohort
from mcmiad_monai.inference.inferer import SliceHeatmapInferer
from mcmiad_monai.networks.package import load_package, save_package
from mcmiad_monai.networks.weights import WeightsError
from mcmiad_monai.transforms import VolumeError, preprocessing

CROPPED: dict[str, Any] = {"field_of_view": "foreground", "context": 3}
#: Oblique, anisotropic, left-handed.
AFFINE = np.array(
    [[-0.9, 0.1, 0.2, 40.0], [0.1, 0.0, 3.0, -60.0], [0.0, 1.1, -0.3, -20.0], [0, 0, 0, 1.0]]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model.pt", slice_range=(0.0, 1.0))


@pytest.fixture(scope="module")
def predictor(model: Path) -> Any:
    return load(model, device="cpu", engine="torch")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head-like volume with noise and a bright spot at voxel (12, 20, 5)."""
    path = tmp_path_factory.mktemp("study") / "head.nii.gz"
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (36, 40, 9)), indexing="ij")
    inside = x**2 + y**2 + 0.3 * z**2 < 0.8
    values = inside * (100 + 10 * rng.standard_normal(inside.shape))
    values[10:15, 18:23, 4:7] = 300
    nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), path)
    return path


def test_a_path_gives_heatmap_mask_scores_and_verdict(predictor: Any, study: Path) -> None:
    found = predictor(study)
    assert found.name == "head"
    assert found.modality == "brain_mri"
    assert tuple(found.heatmap.shape) == (1, 36, 40, 9)
    assert found.heatmap.dtype == torch.float32
    np.testing.assert_allclose(found.heatmap.affine, AFFINE, atol=1e-6)
    assert torch.equal(found.mask.as_tensor(), (found.heatmap.as_tensor() > 1).to(torch.uint8))
    assert found.anomalous is bool(found.score > found.threshold)
    # the third axis of the file runs from back to front: the slices lie along the second one
    assert found.slice_scores.shape == (40,)
    assert np.isfinite(found.slice_scores[20])
    assert np.isnan(found.slice_scores[0])
    assert "score=" in repr(found)


@pytest.mark.parametrize("form", ["nibabel", "metatensor", "channel", "array", "tensor", "string"])
def test_every_form_of_a_study_gives_the_same_heatmap(
    predictor: Any, study: Path, form: str
) -> None:
    image = nib.load(study)
    values = np.asarray(image.dataobj)
    affine = torch.as_tensor(AFFINE)
    given: Any = {
        "nibabel": image,
        "metatensor": MetaTensor(torch.as_tensor(values), affine=affine),
        "channel": MetaTensor(torch.as_tensor(values)[None], affine=affine),
        "array": (values, image.affine),
        "tensor": (torch.as_tensor(values), affine),
        "string": str(study),
    }[form]
    found, expected = predictor(given), predictor(study)
    # a NIfTI header keeps its affine in single precision
    torch.testing.assert_close(found.heatmap.as_tensor(), expected.heatmap.as_tensor())
    np.testing.assert_allclose(found.heatmap.affine, AFFINE, atol=1e-6)
    assert found.name == ("head" if form in ("nibabel", "string") else "study")


def test_lps_metatensor_is_taken_for_what_it_is(predictor: Any, study: Path) -> None:
    image = nib.load(study)
    lps = torch.as_tensor(np.diag([-1.0, -1, 1, 1]) @ image.affine)
    values = torch.as_tensor(np.asarray(image.dataobj))
    found = predictor(MetaTensor(values, affine=lps, meta={"space": "LPS"}))
    assert torch.equal(found.heatmap.as_tensor(), predictor(study).heatmap.as_tensor())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (42, "a int is no image"),
        ((np.ones((4, 4, 4)), np.eye(3)), "affine of shape"),
        ((np.zeros((4, 4, 4)), np.eye(4)), "is constant"),
        ((np.ones((4, 4, 4, 3)), np.eye(4)), "4 dimensions"),
        ((np.ones((4, 4, 4), dtype=complex), np.eye(4)), "complex"),
        ((np.random.default_rng(0).random((4, 4, 4)), np.zeros((4, 4))), "singular"),
        ("no/such/file.nii.gz", "does not exist"),
    ],
)
def test_what_is_no_study_is_refused(predictor: Any, given: Any, problem: str) -> None:
    with pytest.raises(VolumeError, match=problem):
        predictor(given)


def test_threads_get_the_heatmaps_of_their_own_studies(predictor: Any, study: Path) -> None:
    image = nib.load(study)
    values = np.asarray(image.dataobj)
    studies = [(np.roll(values, k, axis=0), AFFINE) for k in range(6)]
    expected = [predictor(each).heatmap.as_tensor() for each in studies]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(predictor, studies))
    for k, prediction in enumerate(found):
        assert torch.equal(prediction.heatmap.as_tensor(), expected[k])
        np.testing.assert_allclose(prediction.heatmap.affine, AFFINE, atol=1e-6)


def test_saved_files_are_those_of_a_cohort(predictor: Any, study: Path, tmp_path: Path) -> None:
    report = infer_cohort(predictor, find_cases(study), tmp_path / "cohort", progress=False)
    folder = predictor(study).save(tmp_path / "one")
    names = sorted(file.name for file in folder.iterdir())
    volumes = ["head_heatmap.nii.gz", "head_heatmap_viewer.nii.gz", "head_mask.nii.gz"]
    assert names == [*volumes, "head_scores.json"]  # the grid is sheared
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "cohort/head" / name).read_bytes()
    assert report.failures == {}
    assert json.loads((tmp_path / "cohort/scores.json").read_text())["studies"] == 1


def test_a_bad_study_stops_no_cohort(predictor: Any, study: Path, tmp_path: Path) -> None:
    cases = [
        {"case": "missing", "image": str(tmp_path / "none.nii.gz")},
        *find_cases(study),
        {"case": "flat", "image": (np.zeros((4, 4, 4)), np.eye(4))},
    ]
    report = infer_cohort(predictor, cases, tmp_path / "out", preview=True, progress=False)
    assert list(report.failures) == ["missing", "flat"]
    assert [scores["case"] for scores in report.scores] == ["head"]
    rows = (tmp_path / "out/scores.csv").read_text().splitlines()
    assert rows[-2].startswith("missing,")
    assert "does not exist" in rows[-2]
    with Image.open(tmp_path / "out/head/head_preview.png") as picture:
        assert picture.width > 300


def test_thresholds_of_masks_and_slice_ranges_can_be_chosen(model: Path, study: Path) -> None:
    chosen = load(model, device="cpu", engine="torch", mask_threshold=0.5, slice_range=(0.4, 0.6))
    found = chosen(study)
    assert torch.equal(found.mask.as_tensor(), (found.heatmap.as_tensor() > 0.5).to(torch.uint8))
    looked_at = np.flatnonzero(np.isfinite(found.slice_scores))
    assert looked_at.min() >= 16
    assert looked_at.max() < 24


@pytest.mark.parametrize("options", [{"field_of_view": "foreground"}, {"context": 3}, CROPPED])
def test_field_of_view_and_context_are_those_of_the_model(
    study: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = make_model(tmp_path / "model.pt", slice_range=(0.0, 1.0), method=options)
    predictor = load(model, device="cpu", engine="torch")
    view, context = options.get("field_of_view", "whole"), options.get("context", 1)
    assert predictor.detector.image_options["field_of_view"] == view
    assert predictor.detector.channels == predictor.detector.context == context
    sample = predictor.prepare({"image": str(study), "case": "head"}, label=True)
    assert sample["label"].shape == sample["image"].shape
    # by MONAI's own words
    prepare = preprocessing("brain_mri", field_of_view=view)
    by_hand = prepare({"image": str(study)})
    assert torch.equal(by_hand["image"].as_tensor(), sample["image"].as_tensor())
    inferer = SliceHeatmapInferer(context=context)
    by_hand["pred"] = inferer(by_hand["image"][None], predictor.network)[0]
    back = Invertd("pred", prepare, orig_keys="image", nearest_interp=False)(by_hand)["pred"]
    found = predictor(study)
    assert torch.equal(found.heatmap.as_tensor(), back.as_tensor())
    assert torch.equal(found.heatmap.affine, back.affine)
    np.testing.assert_allclose(found.heatmap.affine, AFFINE, atol=1e-6)
    # what pictures are made of lies on one grid
    whole = preprocessing("brain_mri")({"image": str(study)})["image"]
    assert torch.equal(found.image.as_tensor(), whole.as_tensor())
    with Image.open(found.preview(tmp_path / "preview.png")) as picture:
        assert picture.width > 300


def test_picture_comes_back_in_its_size_from_a_cropped_model(tmp_path: Path) -> None:
    y, x = np.mgrid[:90, :70]
    head = ((y - 50) / 26) ** 2 + ((x - 40) / 20) ** 2 < 1
    grey = np.where(head, 120 + 20 * np.sin(x / 3), 0).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "head.png")
    model = make_model(tmp_path / "model.pt", slice_range=(0.0, 1.0), method=CROPPED)
    folder = load(model, device="cpu", engine="torch")(tmp_path / "head.png").save(tmp_path)
    heat, overlay = (
        np.asarray(Image.open(folder / f"head_{name}")) for name in ("heatmap.tiff", "overlay.png")
    )
    assert heat.shape == overlay.shape[:2] == grey.shape
    np.testing.assert_array_equal(heat > 0, grey > 0)
    assert (overlay[grey == 0] == 0).all()
    assert (overlay[grey > 0].sum(-1) > 0).all()


def test_model_without_thresholds_gives_no_verdict(study: Path, tmp_path: Path) -> None:
    path = make_model(tmp_path / "model.pt", thresholds=None)
    found = load(path, device="cpu", engine="torch")(study)
    assert found.anomalous is None
    assert found.threshold is None


def test_what_cannot_be_opened_says_why(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="Train one with mcmiad train"):
        load(tmp_path)
    with pytest.raises(BundleError, match=r"\['nothing'\] are no options"):
        load(model, nothing=1)
    with pytest.raises(ValueError, match="device 'tpu9' is not known"):
        load(model, device="tpu9")
    with pytest.raises(ValueError, match="device cuda:99 is not there"):
        load(model, device="cuda:99")
    with pytest.raises(WeightsError, match="for which modality"):
        load(make_model(tmp_path / "model.pt", modality=None))


def test_settings_of_the_bundle_hold_unless_others_are_given(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    save_package(root / "models/model.pt", load_package(model))
    (root / "configs/inference.yaml").write_text(
        "modality: brain_mri\nmask_threshold: 3.0\nengine: torch\nslice_range: $@other\n"
    )
    assert load(root, device="cpu").options.mask_threshold == 3.0
    assert load(root, device="cpu", mask_threshold=2.0).options.mask_threshold == 2.0
    assert load(root, device="cpu").slice_range == (0.0, 1.0)


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import sys, mcmiad_monai; print('torch' in sys.modules, 'load' in dir(mcmiad_monai))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        mcmiad_monai.train  # noqa: B018
