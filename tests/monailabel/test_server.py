"""The app behind the real server: what a viewer and a script get over REST."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from mcmiad_monai.monailabel.layout import lay_out_app

requests = pytest.importorskip("requests")

MODEL = "brain_mri_anomaly"
VIEWER = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}


@pytest.fixture(scope="module")
def server(
    brain_bundle: Path,
    phantoms: Mapping[str, Any],
    bad_files: Mapping[str, Path],
    serve: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """A server over a folder with good studies and a corrupt one."""
    folder = tmp_path_factory.mktemp("app")
    studies = folder / "studies"
    studies.mkdir()
    for study in phantoms.values():
        shutil.copy(study.path, studies)
    shutil.copy(bad_files["corrupt"], studies)
    return serve(lay_out_app(folder / "app", [brain_bundle]), studies)


def infer(server: Any, image: str, output: str = "image", **params: Any) -> Any:
    """One inference; the answer of `requests`."""
    return requests.post(
        f"{server.url}/infer/{MODEL}",
        params={"image": image, "output": output},
        data={"params": json.dumps(params)},
        timeout=120,
    )


def volume(answer: Any, tmp_path: Path, suffix: str = ".nii.gz") -> Any:
    """The image of an answer."""
    assert answer.status_code == 200, answer.text
    path = tmp_path / f"answer{suffix}"  # read when its voxels are asked for
    path.write_bytes(answer.content)
    return nib.load(path) if suffix.startswith(".nii") else sitk.ReadImage(str(path))


def background(server: Any, address: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Start a task, wait for its end, and return what the server says of it."""
    started = requests.post(f"{server.url}/{address}", json=dict(params), timeout=60)
    assert started.status_code == 200, started.text
    status = f"{server.url}/{address.partition('?')[0].rpartition('/')[0]}"
    status = status if status.endswith("/infer") else f"{status}/"
    for _ in range(480):
        task = requests.get(status, timeout=60).json()
        if task["id"] == started.json()["id"] and task["status"] not in ("SUBMITTED", "RUNNING"):
            return dict(task)
        time.sleep(0.25)
    pytest.fail(f"the task does not end: {task}\n{server.tail()}")


def test_info_tells_what_there_is(server: Any) -> None:
    info = requests.get(f"{server.url}/info/", timeout=20).json()
    model = info["models"][MODEL]
    assert model["type"] == "segmentation"
    assert model["labels"]["anomaly"] == 1
    assert model["config"]["output_kind"] == ["mask", "bands", "heatmap"]
    assert model["modality"] == "brain_mri"
    assert "not for diagnosis" in model["note"]
    assert set(info["strategies"]) == {"most_anomalous_first", "random"}
    assert list(info["scoring"]) == ["anomaly_score"]
    assert info["trainers"][MODEL]["config"]["max_epochs"] == 2
    assert info["datastore"]["total"] == 5


@pytest.mark.parametrize("name", ["mass", "ring", "sheared"])
def test_mask_is_the_default_and_lies_on_the_lesion(
    server: Any, phantoms: Mapping[str, Any], name: str, tmp_path: Path
) -> None:
    study = phantoms[name]
    mask = volume(infer(server, name), tmp_path)
    assert mask.shape == study.image.shape
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, study.image.affine, atol=1e-4)
    found = np.asarray(mask.dataobj)
    assert set(np.unique(found)) == {0, 1}
    assert found[study.lesion].mean() > 0.5
    assert found[~study.lesion].mean() < 0.03


def test_bands_grade_what_the_mask_shows(
    server: Any, phantoms: Mapping[str, Any], tmp_path: Path
) -> None:
    mask = np.asarray(volume(infer(server, "mass"), tmp_path).dataobj)
    heat = volume(infer(server, "mass", output_kind="heatmap"), tmp_path).get_fdata()
    bands = np.asarray(volume(infer(server, "mass", output_kind="bands"), tmp_path).dataobj)
    assert bands.dtype == np.uint8
    np.testing.assert_array_equal(bands > 0, mask == 1)
    np.testing.assert_array_equal(bands, (heat > 1).astype(int) + (heat > 2) + (heat > 4))
    assert bands[phantoms["mass"].lesion].max() == 3
    names = infer(server, "mass", "json", output_kind="bands").json()["label_names"]
    assert set(names.values()) == set(np.unique(bands)) - {0}
    assert names["anomaly: severe"] == 3


def test_heatmap_is_float_on_the_study(
    server: Any, phantoms: Mapping[str, Any], tmp_path: Path
) -> None:
    study = phantoms["mass"]
    heatmap = volume(infer(server, "mass", output_kind="heatmap"), tmp_path)
    assert heatmap.get_data_dtype() == np.float32
    np.testing.assert_allclose(heatmap.affine, study.image.affine, atol=1e-4)
    heat = heatmap.get_fdata()
    looked_at = heat > 0
    assert heat[study.lesion].mean() > 3 * heat[looked_at & ~study.lesion].mean()


def test_viewers_that_ask_for_a_heatmap_in_bytes_get_bands_and_are_told(
    server: Any, tmp_path: Path
) -> None:
    """OHIF reads the bytes of the file as labels, whatever their type."""
    bands = volume(infer(server, "mass", output_kind="bands"), tmp_path)
    asked = {**VIEWER, "output_kind": "heatmap"}
    shown = volume(infer(server, "mass", **asked), tmp_path, ".nrrd")
    assert shown.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(shown).T, np.asarray(bands.dataobj))
    told = infer(server, "mass", "json", **asked).json()
    assert told["output_kind"] == "bands"
    assert "ask for result_dtype float32" in told["output_note"]
    assert told["label_names"]["anomaly: severe"] == 3
    for plain in ({"output_kind": "heatmap", "result_dtype": "float32"}, VIEWER):
        told = infer(server, "mass", "json", **plain).json()
        assert told["output_kind"] == plain.get("output_kind", "mask")
        assert "output_note" not in told


@pytest.mark.parametrize("name", ["ring", "sheared"])
def test_viewers_get_nrrd_in_the_same_place(
    server: Any, phantoms: Mapping[str, Any], name: str, tmp_path: Path
) -> None:
    study = phantoms[name]
    answer = volume(infer(server, name, **VIEWER), tmp_path, ".nrrd")
    assert answer.GetPixelID() == sitk.sitkUInt8
    assert answer.GetSize() == study.image.shape
    for corner in ((0, 0, 0), tuple(n - 1 for n in study.image.shape)):
        lps = answer.TransformIndexToPhysicalPoint(corner)
        ras = (study.image.affine @ [*corner, 1])[:3]
        np.testing.assert_allclose(lps, ras * (-1, -1, 1), atol=1e-3)
    found = sitk.GetArrayFromImage(answer).T
    assert found[study.lesion].mean() > 0.5


def test_json_answer_has_scores_and_says_what_they_are(
    server: Any, phantoms: Mapping[str, Any]
) -> None:
    answer = infer(server, "mass", "json").json()
    lesion, normal = answer["volume_score"], infer(server, "normal", "json").json()["volume_score"]
    assert lesion > 2 * normal
    assert answer["anomalous"] is None  # four held-out patients carry no 5 % rate
    assert answer["case"] == "mass"
    assert answer["modality"] == "brain_mri"
    assert answer["heatmap_unit"] == "1.0 is the calibrated pixel threshold"
    assert answer["mask_threshold"] == 1
    assert answer["software"]["mcmiad_monai"]
    assert "not for diagnosis" in answer["note"]
    worst = max(answer["slices"], key=lambda s: s["score"])
    lesion_slices = phantoms["mass"].lesion.any(
        tuple(a for a in range(3) if a != answer["slice_axis"])
    )
    assert lesion_slices[worst["index"]]


def test_uploaded_file_and_session(
    server: Any, phantoms: Mapping[str, Any], tmp_path: Path
) -> None:
    study = phantoms["ring"]
    with study.path.open("rb") as file:
        answer = requests.post(
            f"{server.url}/infer/{MODEL}?output=image",
            files={"file": ("x.nii.gz", file)},
            timeout=60,
        )
    sent = np.asarray(volume(answer, tmp_path).dataobj)
    np.testing.assert_array_equal(sent, np.asarray(volume(infer(server, "ring"), tmp_path).dataobj))
    with study.path.open("rb") as file:
        session = requests.put(
            f"{server.url}/session/", files={"files": ("y.nii.gz", file)}, timeout=60
        ).json()["session_id"]
    answer = requests.post(
        f"{server.url}/infer/{MODEL}", params={"session_id": session, "output": "json"}, timeout=60
    )
    assert answer.json()["volume_score"] > 0


def test_python_client(server: Any, phantoms: Mapping[str, Any], tmp_path: Path) -> None:
    client_module = pytest.importorskip("monailabel.client.client")
    client = client_module.MONAILabelClient(server.url, tmpdir=str(tmp_path))
    assert MODEL in client.info()["models"]
    path, answer = client.infer(MODEL, "sheared", {"output_kind": "heatmap"})
    heatmap, study = nib.load(path), phantoms["sheared"]
    np.testing.assert_allclose(heatmap.affine, study.image.affine, atol=1e-4)
    heat = heatmap.get_fdata()
    assert heat[study.lesion].mean() > 2 * heat[(heat > 0) & ~study.lesion].mean()
    assert answer["output_kind"] == "heatmap"
    assert client.next_sample("random", {})["id"] in client.datastore()["objects"]
    with pytest.raises(client_module.MONAILabelClientException) as caught:
        client.infer(MODEL, "nobody", {})
    assert "no image 'nobody'" in caught.value.msg


@pytest.mark.parametrize(
    ("address", "form", "status", "detail"),
    [
        (f"infer/{MODEL}", {}, 400, "Neither Image"),
        (f"infer/{MODEL}?session_id=unknown", {}, 400, "no image was given"),
        (f"infer/{MODEL}?image=nobody", {}, 404, "no image 'nobody' in the datastore"),
        (f"infer/{MODEL}?image=/etc/hostname", {}, 400, "a name is needed"),
        ("infer/other?image=mass", {}, 404, f"no model 'other'; choose one of {MODEL}"),
        (f"infer/{MODEL}?image=mass", {"params": "{"}, 400, "params is no JSON"),
        (f"infer/{MODEL}?image=mass", {"params": "[1]"}, 400, "no JSON object"),
        (
            f"infer/{MODEL}?image=mass",
            {"params": '{"output_kind": "contour"}'},
            400,
            "choose one of mask, bands, heatmap",
        ),
        (
            f"infer/{MODEL}?image=mass",
            {"params": '{"result_extension": ".exe"}'},
            400,
            "result_extension",
        ),
        (f"infer/{MODEL}?image=mass", {"params": '{"result_dtype": "pixels"}'}, 400, "number type"),
        (f"infer/{MODEL}?image=mass", {"params": '{"modality": "liver_ct"}'}, 400, "liver_ct"),
        (f"infer/{MODEL}?image=mass&output=dicom_seg", {}, 400, "non-DICOM datastore"),
        ("batch/infer/other", {}, 404, "no model 'other'"),
        ("train/other", {}, 404, "no model 'other'"),
        ("activelearning/other", {}, 404, "no strategy 'other'"),
        ("scoring/other?run_sync=true", {}, 404, "no scoring method 'other'"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(
    server: Any, address: str, form: Mapping[str, str], status: int, detail: str
) -> None:
    answer = requests.post(f"{server.url}/{address}", data=form, timeout=60)
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("problem", "detail"),
    [
        ("4-D", "4 dimensions"),
        ("RGB", "colour voxels"),
        ("CT", "seems to be CT"),
        ("constant", "is constant"),
        ("corrupt", "could not be read"),
        ("text", "could not be read"),
    ],
)
def test_unsuitable_files_are_told_why_and_the_server_goes_on(
    server: Any, bad_files: Mapping[str, Path], problem: str, detail: str
) -> None:
    with bad_files[problem].open("rb") as file:
        answer = requests.post(
            f"{server.url}/infer/{MODEL}", files={"file": ("z.nii.gz", file)}, timeout=60
        )
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]
    assert "Traceback" not in answer.text
    assert "/tmp" not in answer.text
    assert infer(server, "mass", "json").status_code == 200


def test_label_of_an_unknown_image_is_refused(server: Any, bad_files: Mapping[str, Path]) -> None:
    with bad_files["constant"].open("rb") as file:
        answer = requests.put(
            f"{server.url}/datastore/label?image=nobody", files={"label": file}, timeout=60
        )
    assert answer.status_code == 404
    assert "nobody" in answer.json()["detail"]


def test_batch_stores_mask_and_heatmap_and_passes_over_a_bad_study(
    server: Any, phantoms: Mapping[str, Any], tmp_path: Path
) -> None:
    defaults = {"device": "cuda", "multi_gpu": True, "gpus": "all", "label_tag": "original"}
    task = background(server, f"batch/infer/{MODEL}?images=unlabeled", defaults)
    assert task["status"] == "DONE", task
    told = "\n".join(task["details"])
    assert "4 studies done, 1 failed" in told
    assert "could not be read" in told
    assert "Traceback" not in told
    objects = requests.get(f"{server.url}/datastore/?output=all", timeout=20).json()["objects"]
    assert objects["corrupt"]["labels"] == {}
    for name, study in phantoms.items():
        assert set(objects[name]["labels"]) == {"original", "heatmap"}
        stored = {}
        for tag in ("original", "heatmap"):
            answer = requests.get(
                f"{server.url}/datastore/label", params={"label": name, "tag": tag}, timeout=20
            )
            (tmp_path / tag).mkdir(exist_ok=True)
            stored[tag] = volume(answer, tmp_path / tag)
            assert stored[tag].shape == study.image.shape
            np.testing.assert_allclose(stored[tag].affine, study.image.affine, atol=1e-4)
        heat, mask = stored["heatmap"].get_fdata(), np.asarray(stored["original"].dataobj)
        np.testing.assert_array_equal(mask == 1, heat > 1)
        assert objects[name]["image"]["info"]["anomaly_score"] > 0


def test_scoring_and_most_anomalous_first(server: Any, phantoms: Mapping[str, Any]) -> None:
    scored = requests.post(
        f"{server.url}/scoring/anomaly_score?run_sync=true", json={"force": True}, timeout=120
    ).json()
    assert "could not be read" in scored["corrupt"]["error"]
    assert {name for name in scored if "error" not in scored[name]} == set(phantoms)
    scores = {name: infer(server, name, "json").json()["volume_score"] for name in phantoms}
    highest = max(scores, key=lambda name: scores[name])
    first = requests.post(f"{server.url}/activelearning/most_anomalous_first", json={}, timeout=20)
    assert first.json()["id"] == "corrupt"  # what could not be scored is read first
    assert requests.delete(f"{server.url}/datastore/image?id=corrupt", timeout=20).ok
    for _ in range(2):  # the same until somebody labels it
        sample = requests.post(
            f"{server.url}/activelearning/most_anomalous_first", json={}, timeout=20
        ).json()
        assert sample["id"] == highest
        assert sample["anomaly_score"] == pytest.approx(scores[highest])
    assert Path(sample["path"]).name == f"{highest}.nii.gz"


def test_train_without_normals_says_what_is_missing(server: Any) -> None:
    answer = requests.post(f"{server.url}/train/{MODEL}?run_sync=true", json={}, timeout=60)
    assert answer.status_code == 400
    assert "known to be healthy" in answer.json()["detail"]


def test_trained_model_is_used_without_a_restart(
    server: Any, phantoms: Mapping[str, Any], tmp_path: Path
) -> None:
    """Last in this file: the model changes."""
    before = infer(server, "mass", "json").json()
    model = f"{server.url}/model/info/{MODEL}"
    checksum = requests.get(model, timeout=20).json()["checksum"]
    empty = tmp_path / "empty.nii.gz"
    for name, study in phantoms.items():
        drawn = study.lesion if name == "mass" else np.zeros_like(study.lesion)
        nib.save(nib.Nifti1Image(drawn.astype(np.uint8), study.image.affine), empty)
        with empty.open("rb") as file:
            saved = requests.put(
                f"{server.url}/datastore/label?image={name}&tag=final",
                files={"label": ("final.nii.gz", file)},
                timeout=20,
            )
        assert saved.status_code == 200, saved.text
    task = background(server, f"train/{MODEL}", {"max_epochs": 1, "learning_rate": 0.001})
    assert task["status"] == "DONE", task
    stats = requests.get(f"{server.url}/info/", timeout=20).json()["train_stats"][MODEL]
    assert 0 < stats["best_metric"] < 1
    assert stats["total_time"]
    assert stats["normal_studies"] == 3
    assert stats["corrected_studies_kept_out"] == 1
    assert (stats["training_studies"], stats["validation_studies"]) == (2, 1)
    assert requests.get(model, timeout=20).json()["checksum"] != checksum
    after = infer(server, "mass", "json").json()
    assert after["volume_score"] != before["volume_score"]
