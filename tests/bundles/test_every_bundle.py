"""What every bundle does, whatever the modality: workflows, files, and what bundles share."""

from __future__ import annotations

import csv
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from small_bundles import why_failed

from mcmiad_monai.bundle import copy_bundle, open_workflow, shipped_bundles
from mcmiad_monai.data.cache_key import describe_transform
from mcmiad_monai.data.cases.names import PICTURE_SUFFIXES
from mcmiad_monai.data.cases.splits import find_studies
from mcmiad_monai.errors import unwrap
from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.transforms import load_volume, preprocessing
from mcmiad_monai.transforms.recipes import Region

NAMES = ["brain_mri_anomaly", "liver_ct_anomaly", "retina_oct_anomaly", "unified_anomaly"]
WORKFLOWS = ["train", "evaluate", "inference", "multi_gpu_train"]


def test_four_bundles_are_shipped() -> None:
    assert sorted(shipped_bundles()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_bundle_has_the_files_of_the_model_zoo(name: str) -> None:
    root = shipped_bundles()[name]
    for file in (
        "LICENSE",
        "large_files.yml",
        "configs/metadata.json",
        "configs/logging.conf",
        *(f"configs/{workflow}.yaml" for workflow in WORKFLOWS),
        "docs/README.md",
        "models/README.md",
    ):
        assert (root / file).is_file(), file
    assert not list(root.rglob("*.py"))
    for workflow in ("train", "inference"):
        assert "execute code" in (root / "configs" / f"{workflow}.yaml").read_text()
    # MONAI opens configurations in the encoding of the locale, which may be ASCII
    assert all(f.read_text("utf-8").isascii() for f in (root / "configs").iterdir())
    readme = (root / "docs/README.md").read_text()
    for needed in ("Intended use", "not a medical device", "Limits", "Figures", "not measured yet"):
        assert needed.lower() in readme.lower(), needed


def test_training_leaves_a_package_with_thresholds(trained: Any) -> None:
    detector = load_package(trained.root / "models" / "model.pt", modality=trained.modality)
    training = detector.trained_with
    assert training["modality"] == trained.modality
    assert training["region"] == "whole"
    expected = sorted(MODALITIES) if trained.modality == "unified" else [trained.modality]
    assert training["modalities"] == expected
    assert detector.calibration["pixel_threshold"] == pytest.approx(float(detector.heat_scale))
    told = json.loads((trained.root / "configs" / "metadata.json").read_text())
    assert told["calibration"] == detector.calibration
    assert "encoder has random weights" in (trained.root / "models" / "MODEL_CARD.md").read_text()


def test_evaluation_writes_figures(trained: Any, tmp_path: Path) -> None:
    options = trained.options(output_dir=str(tmp_path))
    open_workflow(trained.root, ("train", "evaluate"), options).run()
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["failed"] == {}
    assert report["studies"] == (12 if trained.modality == "unified" else 4)
    for name in ("slice_auroc", "volume_auroc", "pixel_auroc", "pixel_ap", "aupro"):
        assert 0 <= report["metrics"][name] <= 1
    assert len(list(csv.DictReader((tmp_path / "studies.csv").open()))) == report["studies"]


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
    assert cases
    for case in cases:
        stem = tmp_path / case["case"] / case["case"]
        scores = json.loads(Path(f"{stem}_scores.json").read_text())
        assert scores["modality"] == case["modality" if "modality" in case else "case"] or (
            scores["modality"] == trained.modality
        )
        check = _check_pictures if case["image"].endswith(PICTURE_SUFFIXES) else _check_volumes
        check(case, stem)


def _check_volumes(case: dict[str, Any], stem: Path) -> None:
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


def _check_pictures(case: dict[str, Any], stem: Path) -> None:
    image = Image.open(case["image"])
    heatmap = np.asarray(Image.open(f"{stem}_heatmap.tiff"))
    mask, overlay = Image.open(f"{stem}_mask.png"), Image.open(f"{stem}_overlay.png")
    assert heatmap.dtype == np.float32
    assert heatmap.shape[::-1] == mask.size == overlay.size == image.size
    np.testing.assert_array_equal(np.asarray(mask) == 255, heatmap > 1)
    assert not list(stem.parent.glob("*.nii.gz"))


def test_one_bad_study_never_stops_the_others(
    trained: Any, monai_process: Any, tmp_path: Path
) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    entries = []
    for case in find_studies(trained.source, "test", modality=trained.modality)[:2]:
        name = f"{case['case']}{''.join(Path(case['image']).suffixes)}"
        shutil.copy(case["image"], studies / name)
        told = {"modality": case["modality"]} if "modality" in case else {}
        entries.append({"image": name, **told})
    broken = f"broken{''.join(Path(entries[0]['image']).suffixes)}"
    (studies / broken).write_bytes((studies / entries[0]["image"]).read_bytes()[:200])
    entries.append({**entries[0], "image": broken})
    (studies / "datalist.json").write_text(json.dumps({"testing": entries}))
    # from a working directory that is not the bundle's, and without --bundle_root
    done = monai_process(
        "run",
        config_file=trained.root / "configs" / "inference.yaml",
        dataset_dir=studies,
        output_dir=tmp_path / "out",
        progress="False",
    )
    assert done.returncode == 1, done.told
    assert "2 studies done, 1 failed" in done.told
    assert "Traceback" not in done.told
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(report["failed"]) == ["broken"]
    assert len(list((tmp_path / "out").glob("*/*_scores.json"))) == 2


def test_resumed_training_equals_a_straight_one(trained: Any, small: Any, tmp_path: Path) -> None:
    root = copy_bundle(trained.name, tmp_path / trained.name)
    first = trained.root / "models" / "epoch1.pt"  # where a run was stopped
    shutil.copy(first, root / "models" / "best.pt")  # of one epoch, the first is the best
    options = trained.options(**small(trained.name), resume=str(first))
    open_workflow(root, "train", options).run()
    resumed, straight = (
        torch.load(folder / "models" / "last.pt", weights_only=True)
        for folder in (root, trained.root)
    )
    assert torch.load(first, weights_only=True)["epoch"] == 1
    assert resumed["epoch"] == straight["epoch"] == 2
    for name, tensor in straight["network"].items():
        torch.testing.assert_close(resumed["network"][name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("region", ["whole", "organ"])
@pytest.mark.parametrize("name", NAMES)
def test_transforms_of_the_file_are_those_of_python(
    name: str, region: Region, tmp_path: Path
) -> None:
    root = copy_bundle(name, tmp_path / name)
    options = {"region": region, "organ_label": 6, "check_modality": False}
    workflow = open_workflow(root, "train", options)
    listed = workflow.parser.get_parsed_content("train#preprocessing")
    recipe = preprocessing(name.removesuffix("_anomaly"), mask_key="label", **options)
    assert describe_transform(listed) == describe_transform(recipe)


def test_region_that_is_not_known_is_refused(tmp_path: Path) -> None:
    root = copy_bundle(NAMES[0], tmp_path / NAMES[0])
    workflow = open_workflow(root, "train", {"region": "liver"})
    with pytest.raises(RuntimeError) as caught:
        workflow.parser.get_parsed_content("train#preprocessing")
    assert "region 'liver' is not known" in str(unwrap(caught.value))


@pytest.mark.parametrize("name", NAMES)
def test_a_user_reads_train_yaml_in_five_minutes(name: str) -> None:
    lines = (shipped_bundles()[name] / "configs/train.yaml").read_text().splitlines()
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 130


@pytest.mark.parametrize("workflow", ["train", "inference", ("train", "evaluate")])
def test_monai_finds_all_required_properties(
    trained: Any, small: Any, workflow: str | tuple[str, str]
) -> None:
    more = {} if workflow == "inference" else small(trained.name)
    opened = open_workflow(trained.root, workflow, trained.options(**more))
    assert not opened.check_properties()


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
