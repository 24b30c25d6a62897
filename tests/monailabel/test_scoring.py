"""Scores of a datastore, and the order of reading that follows from them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel", reason="MONAI Label comes with the extra `label`")

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.utils.async_tasks.task import AsyncTask

from mcmiad_monai.monailabel.requests import RequestError

MODEL = "brain_mri_anomaly"


def test_scores_are_made_once_a_model(
    label_app: Any, studies: Path, bad_files: Mapping[str, Path]
) -> None:
    shutil.copy(bad_files["CT"], studies / "ct.nii.gz")
    store = label_app.datastore()
    store.refresh()
    method = label_app._scoring_methods["anomaly_score"]
    assert len(method.pending(store)) == 5
    result = label_app.scoring({"method": "anomaly_score"})
    assert "seems to be CT" in result["ct"]["error"]
    assert result["mass"]["anomaly_score"] > result["normal"]["anomaly_score"]
    assert store.get_image_info("mass")["anomaly_model"] == MODEL
    assert store.get_image_info("mass")["anomalous"] is None
    assert method.pending(store) == []
    assert label_app.scoring({"method": "anomaly_score"}) == {}
    assert len(label_app.scoring({"method": "anomaly_score", "force": "true"})) == 5
    label_app.bundles[MODEL].model_file.touch()  # another model
    assert len(method.pending(store)) == 5
    with pytest.raises(RequestError, match="no scoring method 'dice'"):
        label_app.scoring({"method": "dice"})


def test_studies_that_could_not_be_fetched_are_scored_the_next_time(
    label_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, store = label_app._scoring_methods["anomaly_score"], label_app.datastore()
    errors = {"mass": RequestError(502, "no answer"), "ring": RequestError(400, "4 dimensions")}

    def fail(request: Mapping[str, Any], _: Any) -> Any:
        raise errors.get(request["image"], OSError("disk"))

    monkeypatch.setattr(method, "infer", fail)
    monkeypatch.setattr(store, "list_images", lambda: ["gone", "mass", "ring"])
    errors["gone"] = RequestError(400, "could not be read")  # listed by a server, never here
    result = method({}, store)
    assert {image: entry["error"] for image, entry in result.items()} == {
        "gone": "could not be read",
        "mass": "no answer",
        "ring": "4 dimensions",
    }
    assert method.pending(store) == ["gone", "mass"]


def test_most_anomalous_first_is_deterministic_and_puts_unscored_first(label_app: Any) -> None:
    store = label_app.datastore()
    sample = {"strategy": "most_anomalous_first"}
    assert label_app.next_sample(sample)["id"] == "mass"  # none has a score: by name
    store.update_image_info("mass", {"anomaly_score": 0.1})
    assert label_app.next_sample(sample)["id"] == "normal"
    store.update_image_info("sheared", {"anomaly_score": 3, "anomalous": True})
    store.update_image_info("ring", {"anomaly_score": 3.0})
    chosen = label_app.next_sample({})
    assert (chosen["id"], chosen["anomaly_score"]) == ("normal", None)
    assert Path(chosen["path"]).name == "normal.nii.gz"
    for name in ("normal", "ring", "sheared", "mass"):
        assert label_app.next_sample(sample)["id"] == name
        store.save_label(name, store.get_image_uri(name), "final", {})
    assert label_app.next_sample(sample) == {}
    with pytest.raises(RequestError, match="no strategy 'best'"):
        label_app.next_sample({"strategy": "best"})


@pytest.mark.parametrize(
    "answer",
    [
        {"volume_score": None, "anomalous": None},
        {"volume_score": math.nan, "anomalous": False},
        {"volume_score": math.inf, "anomalous": True},
        {"volume_score": 0.0, "anomalous": False, "slices_scored": 0},
        RequestError(400, "4 dimensions"),
    ],
)
def test_study_whose_score_could_not_be_computed_is_read_first(
    label_app: Any, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    method, store = label_app._scoring_methods["anomaly_score"], label_app.datastore()
    label_app.scoring({"method": "anomaly_score"})
    assert label_app.next_sample({})["id"] != "normal"

    def give(_request: Mapping[str, Any], _store: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return {"params": answer}

    monkeypatch.setattr(method, "infer", give)
    monkeypatch.setattr(store, "list_images", lambda: ["normal"])
    result = method({"force": "true"}, store)
    assert result["normal"].get("anomaly_score") is None
    chosen = label_app.next_sample({})
    assert (chosen["id"], chosen["anomaly_score"], chosen["anomalous"]) == ("normal", None, None)


def test_background_scoring_starts_where_something_is_left_to_score(
    label_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def run(_kind: str, request: Any = None, **_: Any) -> tuple[Any, None]:
        started.append(request["method"])
        return {"id": "1"}, None

    monkeypatch.setattr(AsyncTask, "run", run)
    label_app.server_mode(True)
    assert set(label_app.async_scoring(None)) == {"anomaly_score"}
    label_app.scoring({"method": "anomaly_score"})
    assert label_app.async_scoring(None) == {}
    assert label_app.async_scoring("anomaly_score") == {"id": "1"}  # somebody asks
    assert started == ["anomaly_score"] * 2
    label_app._datastore = object.__new__(DICOMWebDatastore)
    assert label_app.async_scoring(None) == {}
