"""A study's row says what became of it, and only the files that are wanted are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cohort_records import ends, events

from mcmiad_monai.cohort.ledger import Ledger
from mcmiad_monai.cohort.options import WorkOptions
from mcmiad_monai.cohort.work import Work, do, found
from mcmiad_monai.files.leftovers import partial_path
from mcmiad_monai.files.room import DiskFullError
from mcmiad_monai.inference import prediction
from mcmiad_monai.runtime.interrupts import Terminated


def study(folder: Path, name: str) -> dict[str, Any]:
    return {"number": 0, "case": name, "image": str(folder / f"{name}.nii.gz")}


def opened(model: Path, out: Path, **options: Any) -> Work:
    out.mkdir(exist_ok=True)
    return Work(model, out, WorkOptions(device="cpu", **options))


def test_row_is_that_of_the_scores(
    model: Path, studies: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = studies("a"), tmp_path / "out"
    work = opened(model, out)
    row = work(study(folder, "a"))
    scores = work.predictor(folder / "a.nii.gz").scores
    assert (row["score"], row["anomaly_ml"]) == (scores["volume_score"], scores["anomaly_ml"])
    assert [row[f"hottest_{axis}_mm"] for axis in "xyz"] == scores["hottest_mm"]
    assert row["slices_above"] == sum(s["score"] > s["slice_threshold"] for s in scores["slices"])
    assert row["verdict"] == ("anomalous" if scores["anomalous"] else "normal")
    assert (row["status"], row["folder"]) == ("done", "a")
    assert row["input"] == scores["input"]
    assert row["model"] == work.predictor.made_with["model"]
    assert sorted(path.name for path in (out / "a").iterdir()) == [
        "a_heatmap.nii.gz",
        "a_mask.nii.gz",
        "a_scores.json",
    ]


def test_study_that_is_no_image_is_refused_and_a_bug_is_a_failure(
    model: Path, studies: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = studies("a", "refused")
    work = opened(model, tmp_path / "out")
    row = work(study(folder, "refused"))
    assert row["status"] == "refused"
    assert "refused.nii.gz" in row["error"]

    def fails(*_: Any) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr(work.predictor, "predict", fails)
    row = work(study(folder, "a"))
    assert (row["status"], row["error"]) == ("failed", "MemoryError: too large")


@pytest.mark.parametrize(
    ("keep", "anomalous", "warnings", "kept"),
    [
        ("all", False, [], True),
        ("anomalous", True, [], True),
        ("anomalous", None, [], True),
        ("anomalous", False, ["out_of_distribution"], True),
        ("anomalous", False, [], False),
        ("none", True, [], False),
    ],
)
def test_files_are_kept_as_asked_and_no_all_clear_is_taken_for_one(
    model: Path,
    studies: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    keep: Any,
    anomalous: bool | None,
    warnings: list[str],
    kept: bool,
) -> None:
    folder, out = studies("a"), tmp_path / "out"
    work = opened(model, out, keep=keep)
    predict = work.predictor.predict

    def changed(sample: Any) -> Any:
        made = predict(sample)
        made.scores.update(anomalous=anomalous, warnings=warnings)
        return made

    monkeypatch.setattr(work.predictor, "predict", changed)
    row = work(study(folder, "a"))
    assert (out / "a").exists() is kept
    assert row["folder"] == ("a" if kept else None)
    assert row["verdict"] == {True: "anomalous", False: "normal", None: "none"}[anomalous]


def test_study_in_which_nothing_was_looked_at_has_no_verdict() -> None:
    names = ("volume_score", "volume_threshold", "anomaly_ml", "hottest", "hottest_mm")
    scores = dict.fromkeys((*names, "anomalous", "modality", "input"))
    row = found({**scores, "warnings": ["nothing_looked_at"], "slices": [], "slices_scored": 0})
    assert (row["verdict"], row["score"], row["hottest_x_mm"]) == ("none", None, None)
    assert row["warnings"] == "nothing_looked_at"


def test_rest_of_a_killed_worker_goes(
    model: Path, studies: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = studies("a"), tmp_path / "out"
    (out / "a").mkdir(parents=True)
    mine = partial_path(out / "a" / "a_heatmap.nii.gz").name
    rest = out / "a" / mine.replace(f"-{os.getpid()}-", "-4194304-")  # no process has this number
    rest.write_bytes(b"half")
    opened(model, out)(study(folder, "a"))
    assert not rest.exists()


def test_signal_drops_the_study(tmp_path: Path) -> None:
    def work(_: Any) -> Any:
        raise Terminated

    with pytest.raises(Terminated):
        do(work, Ledger(tmp_path, "w-1-0"), {"number": 0, "case": "a"})
    assert [line["event"] for line in events(tmp_path)] == ["begin", "stopped"]


def test_full_disk_is_no_fault_of_the_study(
    model: Path, studies: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise DiskFullError("there is no room")

    folder, out = studies("a"), tmp_path / "out"
    work = opened(model, out)
    monkeypatch.setattr(prediction, "write_study", full)
    with pytest.raises(DiskFullError):
        do(work, Ledger(out, "w-1-0"), study(folder, "a"))
    assert [line["event"] for line in events(out)] == ["begin", "stopped"]
    monkeypatch.undo()
    do(work, Ledger(out, "w-1-0"), study(folder, "a"))
    assert ends(out) == {"a": "done"}
