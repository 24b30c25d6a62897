"""The app in this process: its models, datastore, scoring and order of reading."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label comes with the extra `label`")

import requests
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.app import MONAILabelApp

from mcmiad_monai.bundle import copy_bundle
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.monailabel import infer as inferring
from mcmiad_monai.monailabel.app import MCMIADApp
from mcmiad_monai.monailabel.bundles import ModelError, ServedBundle, find_bundles
from mcmiad_monai.monailabel.infer import AnomalyInferTask
from mcmiad_monai.monailabel.layout import lay_out_app
from mcmiad_monai.monailabel.requests import RequestError
from mcmiad_monai.transforms import load_volume

MODEL = "brain_mri_anomaly"


def refused(app: Any, status: int, **request: Any) -> str:
    """Detail of the error of an inference."""
    with pytest.raises(RequestError) as caught:
        app.infer({"model": MODEL, **request})
    assert caught.value.status_code == status
    return str(caught.value.detail)


def test_another_output_of_a_study_needs_no_second_run(
    label_app: Any, phantoms: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    heat = nib.load(
        label_app.infer({"model": MODEL, "image": "mass", "output_kind": "heatmap"})["file"]
    ).get_fdata()

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("the study was analysed again")

    monkeypatch.setattr(ServedBundle, "__call__", fail)
    answer = label_app.infer({"model": MODEL, "image": "mass"})
    mask = nib.load(answer["file"])
    np.testing.assert_array_equal(mask.get_fdata() == 1, heat > 1)
    np.testing.assert_allclose(mask.affine, phantoms["mass"].image.affine, atol=1e-5)
    assert heat[phantoms["mass"].lesion].mean() > 3 * heat[heat > 0].mean()
    assert answer["params"]["label_names"] == {"anomaly": 1}
    with pytest.raises(AssertionError, match="again"):
        label_app.infer({"model": MODEL, "image": "ring"})


def test_kept_studies_are_few_and_the_file_is_looked_at(
    label_app: Any, phantoms: Mapping[str, Any], studies: Path
) -> None:
    task = label_app.tasks[MODEL]
    first = label_app.infer({"model": MODEL, "image": "mass"})["params"]["volume_score"]
    shutil.copy(phantoms["normal"].path, studies / "mass.nii.gz")
    assert label_app.infer({"model": MODEL, "image": "mass"})["params"]["volume_score"] < first
    for name in phantoms:
        label_app.infer({"model": MODEL, "image": name, "skip_writer": True})
    assert len(task._kept) == inferring.KEPT_STUDIES


def test_no_file_is_written_unless_asked_for(label_app: Any) -> None:
    answer = label_app.infer({"model": MODEL, "image": "ring", "skip_writer": True})
    assert answer["file"] is None
    assert answer["params"]["slices"]


def test_label_is_saved_where_the_request_says(label_app: Any) -> None:
    request = {"model": MODEL, "image": "ring", "save_label": True, "label_tag": "first"}
    assert label_app.infer(request)["label"] == "ring"
    store = label_app.datastore()
    assert store.get_label_info("ring", "first")["params"]["label_names"] == {"anomaly": 1}
    assert nib.load(store.get_label_uri("ring", "first")).get_data_dtype() == np.uint8


def test_wrong_requests(label_app: Any, bad_files: Mapping[str, Path]) -> None:
    assert "no image was given" in refused(label_app, 400)
    assert "no image was given" in refused(label_app, 400, image=np.zeros(3))
    assert "no image 'nobody'" in refused(label_app, 404, image="nobody")
    assert "is listed as liver_ct" in refused(label_app, 400, image="mass", modality="liver_ct")
    assert "is CT by its header" in refused_header(label_app, "CT")
    detail = refused(label_app, 400, image=str(bad_files["4-D"]))
    assert detail.startswith("4-D.nii.gz has 4 dimensions")
    assert "for the labels that people submit" in refused(
        label_app, 400, image="mass", label_tag="final", save_label=True
    )
    with pytest.raises(RequestError) as caught:
        label_app.infer({"model": "other", "image": "mass"})
    assert caught.value.status_code == 404
    # a server reads uploads, sessions and studies; a script whatever it names
    label_app.server_mode(True)
    secret = Path(os.__file__)  # outside of every folder of the server, wherever the checkout is
    assert "no image" in refused(label_app, 404, image=str(secret))
    label_app.server_mode(False)
    assert "unknown type" in refused(label_app, 400, image=str(secret))


def refused_header(app: Any, code: str) -> str:
    """Detail of the error for a study whose DICOM header said something else."""
    app.datastore().update_image_info("mass", {"Modality": code})
    detail = refused(app, 400, image="mass")
    app.datastore().update_image_info("mass", {"Modality": "UNK"})
    assert app.infer({"model": MODEL, "image": "mass"})["params"]["modality"] == "brain_mri"
    return detail


def test_broken_model_is_the_servers_fault_and_mended_without_a_restart(label_app: Any) -> None:
    path = label_app.bundles[MODEL].model_file
    content = path.read_bytes()
    path.write_bytes(b"broken")
    assert "cannot be used" in refused(label_app, 500, image="mass")
    path.unlink()
    assert "no model yet" in refused(label_app, 409, image="mass")
    assert MODEL not in label_app.info()["models"]
    with pytest.raises(RequestError, match="no model yet"):
        label_app.scoring({"method": "anomaly_score"})
    with pytest.raises(ModelError, match="no model yet"):
        label_app.bundles[MODEL]("x.nii.gz", "x")
    assert label_app.model_file(MODEL) is None
    path.write_bytes(content)
    assert label_app.infer({"model": MODEL, "image": "mass"})["params"]["volume_score"] > 0
    assert label_app.model_file(MODEL) == str(path)


def test_batch_keeps_scores_and_says_which_study_failed(
    label_app: Any,
    studies: Path,
    bad_files: Mapping[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copy(bad_files["text"], studies / "a_text.nii.gz")  # the first
    label_app.datastore().refresh()
    result = label_app.batch_infer({"model": MODEL, "images": "all", "output_kind": "bands"})
    assert "could not be read" in result.pop("a_text")["error"]
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("mcmiad_monai.monailabel")]
    assert any(line.startswith("study 1 failed") for line in ours)
    assert not any("a_text" in line for line in ours)
    store = label_app.datastore()
    for image, entry in result.items():
        assert entry["labels"] == ["original", "heatmap"]
        assert store.get_image_info(image)["anomaly_score"] == entry["params"]["volume_score"]
        bands = nib.load(store.get_label_uri(image, "original")).get_fdata()
        heat = nib.load(store.get_label_uri(image, "heatmap")).get_fdata()
        np.testing.assert_array_equal(bands, sum((heat > n).astype(int) for n in (1, 2, 4)))
    assert "anomaly_score" not in store.get_image_info("a_text")


def test_batch_of_heatmaps_alone_and_of_a_few(label_app: Any) -> None:
    request = {"model": MODEL, "images": ["mass", "ring", "normal"], "max_batch_size": 2}
    request |= {"result_dtype": "uint8"}  # of labels: what is stored as a heatmap is one
    done = label_app.batch_infer({**request, "output_kind": "heatmap", "label_tag": "heat"})
    assert {image: entry["labels"] for image, entry in done.items()} == {
        "mass": ["heat"],
        "normal": ["heat"],
    }
    stored = nib.load(label_app.datastore().get_label_uri("mass", "heat"))
    assert stored.get_data_dtype() == np.float32
    request |= {"output_kind": "heatmap", "label_tag": "original", "max_batch_size": 1}
    # masks are what MONAI Label calls original: a heatmap would be taken for one
    assert label_app.batch_infer(request)["mass"]["labels"] == ["heatmap"]


def test_batch_that_cannot_work_is_refused(label_app: Any) -> None:
    for request in ({"model": "other"}, {"output_kind": "x"}, {"label_tag": "final"}):
        with pytest.raises(RequestError):
            label_app.batch_infer({"model": MODEL, **request})
    store = label_app.datastore()
    assert all(store.get_labels_by_image_id(image) == {} for image in store.list_images())
    with pytest.raises(RequestError, match="every study failed; the first: there is no image"):
        label_app.batch_infer({"model": MODEL, "images": ["nobody"]})


@pytest.mark.usefixtures("label_app")  # for its settings
def test_models_can_be_chosen_and_each_gets_its_scoring(
    brain_bundle: Path, studies: Path, tmp_path: Path
) -> None:
    shutil.copytree(brain_bundle, tmp_path / "second")
    folder = lay_out_app(tmp_path / "both", [brain_bundle, tmp_path / "second"])
    app = MCMIADApp(str(folder), str(studies), {"skip_trainers": "true"})
    info = app.info()
    assert set(info["models"]) == {MODEL, "second"}
    assert set(info["scoring"]) == {f"anomaly_score_{MODEL}", "anomaly_score_second"}
    assert info["trainers"] == {}
    with pytest.raises(RequestError, match="no trainer"):
        app.train({"model": "second"})
    app = MCMIADApp(str(folder), str(studies), {"models": "second"})
    assert set(app.info()["models"]) == {"second"}
    with pytest.raises(ModelError, match="and not third"):
        MCMIADApp(str(folder), str(studies), {"models": "second, third"})
    with pytest.raises(ModelError, match="the bundles none"):
        find_bundles(tmp_path / "nothing")


def test_dicom_server_lists_what_the_bundles_are_for(
    label_app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        MONAILabelApp,
        "init_remote_datastore",
        lambda _: seen.append(settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER),
    )
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_SEARCH_FILTER", {"Modality": "CT"})
    label_app.init_remote_datastore()
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_SEARCH_FILTER", {"PatientID": "7"})
    label_app.init_remote_datastore()
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_SEARCH_FILTER", {"Modality": "CT"})
    unified = ServedBundle(copy_bundle("unified_anomaly", tmp_path / "unified"))
    label_app.bundles = {"unified": unified}
    label_app.init_remote_datastore()
    assert seen == [{"Modality": "MR"}, {"PatientID": "7"}, {"Modality": "CT"}]
    # and a request can tell what a study is
    choices = AnomalyInferTask(unified).info()["config"]["modality"]
    assert choices == ["", "brain_mri", "liver_ct", "retina_oct"]


class Remote(DICOMWebDatastore):
    """A DICOMweb datastore that fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_image_uri(self, _image: str) -> str:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (IndexError("list index out of range"), 404, "no image '1.2.3'"),
        (requests.ConnectionError("refused"), 502, "did not give image 1.2.3"),
        (RuntimeError("itk::ERROR"), 400, "could not be read: itk::ERROR"),
    ],
)
def test_dicom_server_that_fails(
    label_app: Any, error: Exception, status: int, detail: str
) -> None:
    label_app._datastore = Remote(error)
    assert detail in refused(label_app, status, image="1.2.3")


def test_temporary_copy_of_a_series_is_removed(
    label_app: Any, phantoms: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, temporary = tmp_path / "1.2.3.nii.gz", tmp_path / "tmp.nii.gz"
    for path in (kept, temporary):
        shutil.copy(phantoms["mass"].path, path)
    answers = [str(temporary), str(kept), str(kept)]
    store = object.__new__(DICOMWebDatastore)
    monkeypatch.setattr(DICOMWebDatastore, "get_image_uri", lambda *_: answers.pop(0))
    monkeypatch.setattr(DICOMWebDatastore, "get_image_info", lambda *_: {"Modality": "MR"})
    label_app._datastore = store
    assert "1.2.3 is a folder without DICOM slices" in refused_without_slices(label_app, tmp_path)
    assert not temporary.exists()


def refused_without_slices(app: Any, folder: Path) -> str:
    (folder / "1.2.3").mkdir()
    return refused(app, 400, image="1.2.3")


def test_dicom_seg_of_a_heatmap_is_refused(label_app: Any) -> None:
    request = {"image": "mass", "output_kind": "heatmap", "label_info": [{"name": "anomaly"}]}
    assert "holds labels" in refused(label_app, 400, **request)


def test_folder_that_is_no_bundle_of_this_project(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    for content in (None, "- a list", "network: x", "modality: knee_mri", "a: ["):
        if content is not None:
            (tmp_path / "configs" / "inference.yaml").write_text(content)
        with pytest.raises(ModelError, match="no bundle of this project"):
            ServedBundle(tmp_path)


def test_start_of_the_server_is_prepared(label_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MONAILabelApp, "on_init_complete", lambda _: None)
    label_app.on_init_complete()  # without a server there is nothing to prepare
    assert label_app.bundle_path(None) is None
    with pytest.raises(RequestError):
        label_app.bundle_path("other")


@pytest.fixture
def unified_app(
    unified_bundle: tuple[Path, Path], tmp_path: Path, label_app: Any
) -> tuple[Any, dict[str, dict[str, Any]]]:
    """An app with the unified bundle over one study of each modality, and these by modality."""
    root, cohort = unified_bundle
    cases = {
        modality: next(c for c in find_cases(cohort, "test") if c["modality"] == modality)
        for modality in MODALITIES
    }
    folder = tmp_path / "mixed"
    folder.mkdir()
    for modality, case in cases.items():
        image = Path(case["image"])
        shutil.copy(image, folder / f"{modality}.{image.name.partition('.')[2]}")
    del label_app  # here for its settings
    app = lay_out_app(tmp_path / "unified_app", [root])
    return MCMIADApp(str(app), str(folder), {}), cases


def test_unified_model_is_told_what_a_study_is(
    unified_app: tuple[Any, dict[str, dict[str, Any]]],
) -> None:
    app, cases = unified_app
    for modality, case in cases.items():
        request = {"model": "unified_anomaly", "image": modality, "modality": modality}
        answer = app.infer(request | {"output_kind": "heatmap"})
        assert answer["params"]["modality"] == modality
        written, image = nib.load(answer["file"]), load_volume(case["image"])
        assert written.shape == image.shape[1:]
        np.testing.assert_allclose(written.affine, image.affine.numpy(), atol=1e-4)
        assert written.get_fdata().max() > 0
    with pytest.raises(RequestError, match=r"is not known .*the parameter modality"):
        app.infer({"model": "unified_anomaly", "image": "liver_ct", "modality": ""})
    app.datastore().update_image_info("liver_ct", {"Modality": "CT"})
    answer = app.infer({"model": "unified_anomaly", "image": "liver_ct"})
    assert answer["params"]["modality_from"] == "the header (CT)"
    with pytest.raises(RequestError, match="'knee_mri'"):
        app.infer({"model": "unified_anomaly", "image": "liver_ct", "modality": "knee_mri"})
