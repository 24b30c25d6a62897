"""What one bundle alone has: organ masks, volumes of B-scans, a modality that is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from small_bundles import why_failed
from small_phantoms import write_retina_cohort

from mcmiad_monai.bundle import copy_bundle, open_workflow
from mcmiad_monai.data.cases.splits import find_studies
from mcmiad_monai.networks.package import load_package


def test_liver_mask_confines_training_thresholds_and_heatmap(train: Any, tmp_path: Path) -> None:
    trained = train("liver_ct_anomaly")
    root = copy_bundle(trained.name, tmp_path / "organ")
    open_workflow(root, "train", trained.small(region="organ")).run()
    detector = load_package(root / "models" / "model.pt")
    assert detector.trained_with["region"] == "organ"
    whole = load_package(trained.model)
    assert detector.calibration["normal_pixels"] < 0.6 * whole.calibration["normal_pixels"]
    # the package says that a mask is needed; nobody has to say it again
    out = tmp_path / "out"
    open_workflow(root, "inference", trained.options(output_dir=str(out))).run()
    for case in find_studies(trained.source, "test", modality="liver_ct"):
        heat = nib.load(out / case["case"] / f"{case['case']}_heatmap.nii.gz").get_fdata()
        organ = np.asarray(nib.load(case["organ"]).dataobj) > 0
        assert heat[organ].max() > 0
        assert not heat[~organ].any()
    # and a study without one fails with the reason
    alone = tmp_path / "alone.nii.gz"
    shutil.copy(case["image"], alone)
    options = trained.options(output_dir=str(out)) | {"dataset_dir": str(alone)}
    assert "has no organ mask" in why_failed(root, options)


def test_volume_of_b_scans_comes_back_as_a_volume(train: Any, tmp_path: Path) -> None:
    trained = train("retina_oct_anomaly")
    source = write_retina_cohort(
        tmp_path / "oct",
        train=1,
        val=1,
        test_normal=1,
        test_lesion=1,
        shape=(64, 48),
        scans=4,
        form="volumes",
        progress=False,
    )
    out = tmp_path / "out"
    options = trained.options(output_dir=str(out)) | {"dataset_dir": str(source / "datalist.json")}
    open_workflow(trained.root, "inference", options).run()
    for case in find_studies(source / "datalist.json", "test", modality="retina_oct"):
        image = nib.load(case["image"])
        heatmap = nib.load(out / case["case"] / f"{case['case']}_heatmap.nii.gz")
        assert heatmap.shape == image.shape
        np.testing.assert_allclose(heatmap.affine, image.affine, atol=1e-5)
        scores = json.loads((out / case["case"] / f"{case['case']}_scores.json").read_text())
        assert scores["slices_scored"] == 4  # B-scans, not cuts across them


@pytest.mark.parametrize("way", ["told", "sidecar", "folder", "not at all"])
def test_unified_bundle_takes_the_modality_from_what_tells_it(
    train: Any, mixed: Path, tmp_path: Path, way: str
) -> None:
    trained = train("unified_anomaly")
    case = find_studies(mixed / "liver_ct/datalist.json", "test", modality="liver_ct")[0]
    folder = tmp_path / ("Liver_AD" if way == "folder" else "studies")
    folder.mkdir()
    shutil.copy(case["image"], folder / "s.nii.gz")
    source, more = (tmp_path if way == "folder" else folder), {}
    if way == "told":
        more = {"study_modality": "liver_ct"}
    if way == "sidecar":
        (folder / "s.json").write_text(json.dumps({"Modality": "CT"}))
    out = tmp_path.parent / f"{tmp_path.name}_out"
    options = trained.options(output_dir=str(out), **more) | {"dataset_dir": str(source)}
    if way == "not at all":
        assert "never guessed" in why_failed(trained.root, options)
        return
    open_workflow(trained.root, "inference", options).run()
    (scores,) = json.loads((out / "scores.json").read_text())["scores"]
    assert scores["modality"] == "liver_ct"
    assert scores["modality_from"] == ("the header (CT)" if way == "sidecar" else "given")
