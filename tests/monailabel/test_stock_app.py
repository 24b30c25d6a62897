"""A bundle of this project in the `monaibundle` app as MONAI Label ships it, unchanged."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

requests = pytest.importorskip("requests")

MODEL, UNIFIED = "brain_mri_anomaly", "unified_anomaly"


@pytest.fixture(scope="module")
def server(
    brain_bundle: Path,
    unified_bundle: tuple[Path, Path],
    phantoms: Mapping[str, Any],
    serve: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    from monailabel.main import Main

    folder = tmp_path_factory.mktemp("stock")
    app, studies = folder / "monaibundle", folder / "studies"
    # what `monailabel apps --download` does
    asked = {"prefix": None, "download": True, "name": app.name, "output": str(folder)}
    Main().action_apps(argparse.Namespace(**asked))
    for bundle in (brain_bundle, unified_bundle[0]):
        shutil.copytree(bundle, app / "model" / bundle.name)
    studies.mkdir()
    for study in phantoms.values():
        shutil.copy(study.path, studies)
    conf = {"models": f"{MODEL},{UNIFIED}", "zoo_source": "local", "sam2": "false"}
    return serve(app, studies, conf=conf)


def test_bundles_are_served(server: Any) -> None:
    info = requests.get(f"{server.url}/info/", timeout=20).json()
    for name in (MODEL, UNIFIED):
        assert info["models"][name]["type"] == "segmentation"
        assert "anomaly" in info["models"][name]["labels"]


@pytest.mark.parametrize(
    ("name", "model", "params"),
    [
        ("mass", MODEL, {}),
        ("sheared", MODEL, {}),
        ("mass", UNIFIED, {"modality": "brain_mri"}),
    ],
)
def test_heatmap_comes_back_on_the_study(  # noqa: PLR0917 - parameters of the cases
    server: Any,
    phantoms: Mapping[str, Any],
    tmp_path: Path,
    name: str,
    model: str,
    params: Mapping[str, str],
) -> None:
    study = phantoms[name]
    answer = requests.post(
        f"{server.url}/infer/{model}",
        params={"image": name, "output": "image"},
        data={"params": json.dumps(params)},
        timeout=120,
    )
    assert answer.status_code == 200, server.tail()
    path = tmp_path / "answer.nii.gz"
    path.write_bytes(answer.content)
    heatmap = nib.load(path)
    assert heatmap.shape == study.image.shape
    heat = heatmap.get_fdata()
    assert heat[study.lesion].mean() > 2 * heat[(heat > 0) & ~study.lesion].mean()
    if name != "sheared":  # the stock writer makes axes orthogonal, as ITK does
        np.testing.assert_allclose(heatmap.affine, study.image.affine, atol=1e-4)
