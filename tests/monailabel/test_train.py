"""Training in the app: which studies are used, and what becomes of the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label comes with the extra `label`")

from mcmiad_monai.monailabel import train as training
from mcmiad_monai.monailabel.normals import collect_normals
from mcmiad_monai.monailabel.requests import RequestError
from mcmiad_monai.monailabel.train import EpochStats, NormalTrainTask

MODEL = "brain_mri_anomaly"


def finish(app: Any, name: str, drawn: Any, folder: Path) -> None:
    """Save a final label."""
    image = nib.load(app.datastore().get_image_uri(name))
    path = folder / "final.nii.gz"
    label = np.zeros(image.shape, np.uint8) if drawn is None else drawn.astype(np.uint8)
    nib.save(nib.Nifti1Image(label, image.affine), path)
    app.datastore().save_label(name, str(path), "final", {})


@pytest.fixture
def finished(label_app: Any, phantoms: Mapping[str, Any], tmp_path: Path) -> Any:
    """Two healthy studies, one by its info, one with a correction, none left open."""
    finish(label_app, "normal", None, tmp_path)
    finish(label_app, "sheared", None, tmp_path)
    finish(label_app, "mass", phantoms["mass"].lesion, tmp_path)
    label_app.datastore().update_image_info("ring", {"normal": True, "PatientID": "Doe^Jane"})
    return label_app


def test_normals_are_empty_final_labels_and_marked_images(finished: Any) -> None:
    found = collect_normals(finished.datastore())
    assert [case["case"] for case in found.cases] == ["normal", "ring", "sheared"]
    assert all(case["anomalous"] is False for case in found.cases)
    assert all(Path(case["image"]).is_file() for case in found.cases)
    assert (found.corrected, found.unreadable) == (1, 0)
    assert "Doe" not in json.dumps(found.cases)
    store = finished.datastore()
    store.update_image_info("sheared", {"patient": "Doe^Jane", "Modality": "MR"})
    cases = {case["case"]: case for case in collect_normals(store).cases}
    assert cases["ring"]["patient"] == cases["sheared"]["patient"]
    assert cases["sheared"]["modality"] == "brain_mri"
    assert "modality" not in cases["normal"]
    Path(store.get_label_uri("normal", "final")).write_bytes(b"broken")
    found = collect_normals(store)
    assert ([case["case"] for case in found.cases], found.unreadable) == (["ring", "sheared"], 1)


def test_a_drawn_label_outweighs_the_info(
    finished: Any, phantoms: Mapping[str, Any], tmp_path: Path
) -> None:
    finish(finished, "ring", phantoms["ring"].lesion, tmp_path)
    found = collect_normals(finished.datastore())
    assert [case["case"] for case in found.cases] == ["normal", "sheared"]
    assert found.corrected == 2


def test_training_replaces_the_model_and_keeps_the_last(finished: Any) -> None:
    models = finished.bundles[MODEL].root / "models"
    before = (models / "model.pt").read_bytes()
    old = finished.infer({"model": MODEL, "image": "mass"})["params"]["volume_score"]
    result = finished.train({"model": MODEL, "max_epochs": "1", "device": "cuda"})
    assert result["normal_studies"] == 3
    assert result["corrected_studies_kept_out"] == 1
    assert result["total_epochs"] == 1
    assert (models / "model.previous.pt").read_bytes() == before
    assert (models / "model.pt").read_bytes() != before
    assert "Thresholds" in (models / "MODEL_CARD.md").read_text()
    stats = finished.info()["train_stats"][MODEL]
    assert stats == result
    assert (stats["epoch"], stats["best_epoch"]) == (1, 1)
    assert 0 < stats["best_metric"] < 1  # viewers show it as a percentage
    assert stats["total_time"].startswith("0:0")  # by which OHIF knows that nothing is running
    assert "current_time" not in stats
    assert finished.infer({"model": MODEL, "image": "mass"})["params"]["volume_score"] != old
    # nothing is left of the run but its lock
    assert [p.name for p in (models.parent / "eval" / "label_app").iterdir()] == ["training.lock"]
    assert not (models / "last.pt").exists()


def test_a_memory_is_trained_without_epochs(finished: Any) -> None:
    root = finished.bundles[MODEL].root
    result = finished.train({"model": MODEL, "method": ["memory"]})
    assert result["method"] == "memory"
    assert result["score"].startswith("memory-")
    assert result["normal_studies"] == 3
    assert result["total_time"].startswith("0:0")
    assert not {"epoch", "total_epochs", "best_epoch", "best_metric"} & set(result)
    assert finished.info()["train_stats"][MODEL] == result
    answer = finished.infer({"model": MODEL, "image": "mass"})["params"]
    assert answer["volume_score"] > 0
    assert "number,case" in (root / "eval" / "memory_studies.csv").read_text()
    scored = finished.scoring({"method": "anomaly_score"})
    assert scored["mass"]["anomaly_score"] == answer["volume_score"]


def test_figures_change_epoch_by_epoch_and_fall_back_if_the_training_fails(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = finished.bundles[MODEL].root
    earlier = {"best_metric": 0.5, "total_time": "0:00:09"}
    (root / "models" / "train_stats.json").write_text(json.dumps(earlier))
    seen: list[dict[str, Any]] = []
    written = EpochStats.__call__

    def look(self: Any, engine: Any) -> None:
        if engine.state.epoch == 1:
            assert finished.info()["train_stats"][MODEL] == earlier
        written(self, engine)
        seen.append(finished.info()["train_stats"][MODEL])
        seen[-1] |= {"of the whole": finished.model_info(MODEL)["train_stats"]["epoch"]}
        if engine.state.epoch == 3:
            shutil.copytree(root / "eval" / "label_app" / "training", root / "killed")
            with pytest.raises(RequestError, match="is being trained") as caught:
                finished.train({"model": MODEL})
            assert caught.value.status_code == 409
            raise RuntimeError("disk full")

    monkeypatch.setattr(EpochStats, "__call__", look)
    with pytest.raises(RequestError, match=r"the model is as it was: .*disk full"):
        finished.train({"model": MODEL, "max_epochs": 4})
    assert [(s["epoch"], s["of the whole"], s["total_epochs"]) for s in seen] == [
        (1, 1, 4),
        (2, 2, 4),
        (3, 3, 4),
    ]
    assert len({s["eval"]["metrics"]["val_neg_loss"] for s in seen}) == 3  # other figures
    for s in seen:
        best = s["eval"]["best_metric"]
        assert s["best_metric"] == pytest.approx(1 / (1 - best))
        assert "total_time" not in s
        assert s["current_time"]
    assert finished.info()["train_stats"][MODEL] == earlier
    # a process that is killed leaves its folder, and no lock on it
    shutil.move(root / "killed", root / "eval" / "label_app" / "training")
    assert finished.info()["train_stats"][MODEL] == earlier
    assert not (root / "eval" / "label_app" / "training").exists()


def test_a_bundle_that_is_trained_elsewhere_is_left_alone(finished: Any) -> None:
    lock = finished.bundles[MODEL].root / "models" / ".training.lock"
    lock.write_text(json.dumps({"host": "far", "pid": 7}))
    with pytest.raises(RequestError, match="being trained by process 7 on far") as caught:
        finished.train({"model": MODEL})
    assert caught.value.status_code == 409
    assert lock.exists()


def test_a_loss_that_is_no_number_does_not_break_the_servers_answer(tmp_path: Path) -> None:
    best = {"key_metric_name": None, "best_metric": -1, "best_metric_epoch": -1}
    state = SimpleNamespace(epoch=1, max_epochs=2, metrics={}, **best)
    trainer = SimpleNamespace(state=state, get_stats=dict)
    nan = {**vars(state), "metrics": {"val_neg_loss": float("nan")}, "best_metric": float("nan")}
    validator = SimpleNamespace(state=SimpleNamespace(**nan))
    EpochStats(tmp_path / "stats.json", 0.0, validator)(trainer)
    stats = json.loads((tmp_path / "stats.json").read_text(), parse_constant=pytest.fail)
    assert stats["eval"]["metrics"] == {"val_neg_loss": None}
    assert "best_metric" not in stats  # a viewer computes with it


def test_training_that_fails_leaves_the_model(finished: Any, tmp_path: Path) -> None:
    models = finished.bundles[MODEL].root / "models"
    before = (models / "model.pt").read_bytes()
    with pytest.raises(RequestError, match="the model is as it was") as caught:
        finished.train({"model": MODEL, "weights": str(tmp_path / "missing.safetensors")})
    assert caught.value.status_code == 400
    assert "missing.safetensors" in caught.value.detail
    assert (models / "model.pt").read_bytes() == before
    assert finished.info()["train_stats"][MODEL] == {}


def test_settings_come_from_request_server_and_bundle(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def opened(_root: Path, workflow: str, overrides: Mapping[str, Any]) -> Any:
        seen.update(overrides, workflow=workflow)
        raise RuntimeError("far enough")

    monkeypatch.setattr(training, "open_workflow", opened)
    conf = {"weights": "server.safetensors", "text_prior": "server.pt", "models": "x"}
    task = NormalTrainTask(finished.bundles[MODEL], conf)
    request = {"weights": "mine.safetensors", "learning_rate": 0.01, "dataset_dir": "/etc"}
    with pytest.raises(RequestError, match="far enough"):
        task(request, finished.datastore())
    assert seen["workflow"] == "train"
    assert seen["weights"] == "mine.safetensors"
    assert seen["text_prior"] == "server.pt"
    assert seen["learning_rate"] == 0.01
    assert seen["device"] == "cpu"
    assert seen["dataset_dir"].endswith("datalist.json")  # requests cannot set it
    assert "max_epochs" not in seen  # the bundle's own
    config = task.config()
    assert (config["weights"], config["max_epochs"]) == ("server.safetensors", 2)
    assert config["method"] == ["head", "both", "memory"]  # that of the bundle first
    assert "method#parts" not in seen  # the bundle's own
    task = NormalTrainTask(finished.bundles[MODEL], {"method": "memory"})
    assert task.config()["method"] == ["memory", "both", "head"]
    for request, expected in (({}, "memory"), ({"method": "both"}, "both")):
        with pytest.raises(RequestError, match="far enough"):
            task(request, finished.datastore())
        assert seen["method#parts"] == expected
        assert "method" not in seen


@pytest.mark.parametrize(
    "request_",
    [{"max_epochs": 0}, {"learning_rate": "fast"}, {"weights": "$print(1)"}, {"method": "moead"}],
)
def test_wrong_settings_are_refused(finished: Any, request_: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        finished.train({"model": MODEL, **request_})
    assert caught.value.status_code == 400


def test_too_few_normals_say_how_to_add_some(label_app: Any, tmp_path: Path) -> None:
    finish(label_app, "normal", None, tmp_path)
    with pytest.raises(RequestError, match="1 studies of 1 patients are known to be healthy"):
        label_app.train({"model": MODEL})
    store = label_app.datastore()
    for name in ("mass", "ring"):  # of one patient
        store.update_image_info(name, {"normal": True, "patient": "7"})
    finish(label_app, "normal", np.ones(nib.load(store.get_image_uri("normal")).shape), tmp_path)
    with pytest.raises(RequestError, match=r"2 studies of 1 patients.*1 studies with corrections"):
        label_app.train({"model": MODEL})
