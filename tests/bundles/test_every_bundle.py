"""What every bundle does, whatever the modality: files, training, heatmaps, refusals."""

from __future__ import annotations

import configparser
import csv
import json
import re
import socket
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from small_bundles import why_failed, why_refused, without_scores

from mcmiad_monai.bundle import copy_bundle, open_workflow, shipped_bundles
from mcmiad_monai.data.cases.splits import find_studies
from mcmiad_monai.files.formats import PICTURE_SUFFIXES
from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.transforms import load_volume, preprocessing

NAMES = ["brain_mri_anomaly", "liver_ct_anomaly", "retina_oct_anomaly", "unified_anomaly"]
#: Most lines of a configuration that a user is to read.
LINES = {"train": 160, "evaluate": 62, "inference": 110, "multi_gpu_train": 20}


@pytest.mark.parametrize("name", NAMES)
def test_bundle_has_the_files_of_the_model_zoo(name: str) -> None:
    root = shipped_bundles()[name]
    for file in ("LICENSE", "large_files.yml", "configs/logging.conf", "models/README.md"):
        assert (root / file).is_file(), file
    assert not list(root.rglob("*.py"))
    for workflow, lines in LINES.items():
        text = (root / "configs" / f"{workflow}.yaml").read_text("utf-8")
        assert len(text.splitlines()) <= lines
        assert workflow not in ("train", "inference") or "execute code" in text
    # MONAI opens configurations in the encoding of the locale, which may be ASCII
    assert all(f.read_text("utf-8").isascii() for f in (root / "configs").iterdir())
    readme = (root / "docs/README.md").read_text("utf-8")
    for needed in ("Intended use", "not a medical device", "Limits", "Figures", "not measured yet"):
        assert needed.lower() in readme.lower(), needed


@pytest.mark.parametrize("name", NAMES)
def test_metadata_names_versions_and_packages_that_are_true(name: str) -> None:
    metadata = json.loads((shipped_bundles()[name] / "configs/metadata.json").read_text())
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    required = re.findall(r"^([\w-]+)", setup["options"]["install_requires"], re.MULTILINE)
    given = {"torch": metadata["pytorch_version"], "monai": metadata["monai_version"]}
    given |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    assert set(given) - {"mcmiad-monai"} == set(required)
    output = metadata["network_data_format"]["outputs"]["pred"]
    assert output["value_range"] == []  # heat has no upper limit


#: Overrides with which transforms are built before there is a model, whose options they take.
WITHOUT_MODEL: dict[str, Any] = {
    "train": {},
    "inference": {
        "images": {
            "keep_colours": False,
            "normalize_images": True,
            "mask_background": True,
            "field_of_view": "foreground",
        }
    },
}


@pytest.mark.parametrize("workflow", ["train", "inference"])
@pytest.mark.parametrize("region", ["whole", "organ"])
@pytest.mark.parametrize("name", NAMES)
def test_transforms_of_the_file_are_those_of_python(
    name: str, region: Any, workflow: str, tmp_path: Path
) -> None:
    root = copy_bundle(name, tmp_path / name)
    options = {"region": region, "organ_label": 6, "check_modality": False}
    part = open_workflow(
        root, workflow, {**options, **WITHOUT_MODEL[workflow]}
    ).parser.get_parsed_content
    listed = part("train#preprocessing" if workflow == "train" else "preprocessing")
    mask = "label" if workflow == "train" else None
    modality = name.removesuffix("_anomaly")
    crops = workflow == "inference" or modality == "brain_mri"
    view: Any = "foreground" if crops else "whole"
    recipe = preprocessing(modality, mask_key=mask, field_of_view=view, **options)
    assert [described(t) for t in listed.transforms] == [described(t) for t in recipe.transforms]


def described(transform: Any) -> tuple[Any, ...]:
    """Type and plain attributes of a transform."""
    plain = (str, int, bool, tuple, type(None))
    values = {k: v for k, v in vars(transform).items() if isinstance(v, plain)}
    return (type(transform), values, getattr(transform, "kind", None))


def test_region_that_is_not_known_is_refused(tmp_path: Path) -> None:
    root = copy_bundle(NAMES[0], tmp_path / NAMES[0])
    for workflow, part in (("train", "train#preprocessing"), ("inference", "preprocessing")):
        options = {"region": "liver", "organ_label": 6, **WITHOUT_MODEL[workflow]}
        assert "region 'liver' is not known" in why_refused(root, workflow, options, part)


def test_training_writes_a_model_with_thresholds_that_stands_alone(trained: Any) -> None:
    detector = load_package(trained.model, modality=trained.modality)
    training = detector.trained_with
    assert training["modality"] == trained.modality
    assert training["region"] == "whole"
    expected = sorted(MODALITIES) if trained.modality == "unified" else [trained.modality]
    assert training["modalities"] == expected
    assert training["training_studies"] == 4 * len(expected)
    assert detector.provenance["encoder"]["weights"] == "random, seed 0"
    assert detector.calibration["pixel_threshold"] == pytest.approx(float(detector.heat_scale))
    assert detector.calibration["pixel_threshold"] > 0
    written = json.loads((trained.root / "configs" / "metadata.json").read_text())
    assert written["calibration"] == without_scores(detector.calibration)
    card = (trained.root / "models" / "MODEL_CARD.md").read_text()
    assert "encoder has random weights" in card
    assert "text prior is not CLIP" in card
    brain = trained.modality == "brain_mri"
    assert detector.image_options["field_of_view"] == ("foreground" if brain else "whole")
    assert detector.context == detector.channels == (3 if brain else 1)
    named = written["network_data_format"]["inputs"]["image"]
    assert named["num_channels"] == len(named["channel_def"]) == detector.channels
    with torch.no_grad():
        heatmap = detector(torch.rand(1, detector.channels, 224, 224))
    assert torch.isfinite(heatmap).all()


def test_heatmaps_come_back_in_the_form_and_geometry_of_each_study(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("inference went for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    options = trained.options(output_dir=str(tmp_path))
    open_workflow(trained.root, "inference", options).run()
    assert json.loads((tmp_path / "scores.json").read_text())["failed"] == {}
    cases = find_studies(trained.source, "test", modality=trained.modality)
    assert len(cases) == (12 if trained.modality == "unified" else 4)
    slices = 0
    for case in cases:
        stem = tmp_path / case["case"] / case["case"]
        scores = json.loads(Path(f"{stem}_scores.json").read_text())
        assert scores["modality"] == case.get("modality", trained.modality)
        picture = case["image"].endswith(PICTURE_SUFFIXES)
        (check_picture if picture else check_volume)(case, stem, scores)
        slices += scores["slices_scored"]
    assert len(list(csv.DictReader((tmp_path / "scores.csv").open()))) == slices


def check_volume(case: dict[str, Any], stem: Path, scores: dict[str, Any]) -> None:
    image = nib.load(case["image"])
    heatmap = nib.load(f"{stem}_heatmap.nii.gz")
    mask = nib.load(f"{stem}_mask.nii.gz")
    for written, dtype in ((heatmap, np.float32), (mask, np.uint8)):
        assert written.shape == image.shape
        assert written.get_data_dtype() == dtype
        np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
    heat = heatmap.get_fdata()
    assert heat.max() > 0
    np.testing.assert_array_equal(np.asarray(mask.dataobj) == 1, heat > 1)
    # the array index of a scored slice is one with heat
    used = np.flatnonzero(heat.any(tuple(a for a in range(3) if a != scores["slice_axis"])))
    assert set(used) == {entry["index"] for entry in scores["slices"]}


def check_picture(case: dict[str, Any], stem: Path, scores: dict[str, Any]) -> None:
    image = Image.open(case["image"])
    heatmap = np.asarray(Image.open(f"{stem}_heatmap.tiff"))
    mask, overlay = Image.open(f"{stem}_mask.png"), Image.open(f"{stem}_overlay.png")
    assert heatmap.dtype == np.float32
    assert heatmap.shape[::-1] == mask.size == overlay.size == image.size
    np.testing.assert_array_equal(np.asarray(mask) == 255, heatmap > 1)
    assert not list(stem.parent.glob("*.nii.gz"))
    assert scores["slices_scored"] == 1


def test_study_of_another_modality_is_refused_with_the_reason(
    trained: Any, mixed: Path, tmp_path: Path
) -> None:
    other = "liver_ct" if trained.modality == "brain_mri" else "brain_mri"
    case = find_studies(mixed / other / "datalist.json", "test", modality=other)[0]
    image = load_volume(case["image"])
    study = tmp_path / "s.nii.gz"
    values = image[0].numpy()
    expected = {
        "brain_mri": "Hounsfield",
        "liver_ct": "no Hounsfield units",
        "retina_oct": "is MR by its header",
        "unified": "never guessed",
    }[trained.modality]
    if trained.modality == "liver_ct":
        values = values - values.min()
    if trained.modality == "retina_oct":  # grey levels do not tell OCT from MRI, a sidecar does
        (tmp_path / "s.json").write_text('{"Modality": "MR"}')
    nib.save(nib.Nifti1Image(values, image.affine.numpy()), study)
    options = {"dataset_dir": str(study), "output_dir": str(tmp_path), "progress": False}
    assert expected in why_failed(trained.root, options)
