"""Several runs into one folder: no result takes another's place, and reports keep all studies."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mcmiad_monai.data.studies import prepare_study
from mcmiad_monai.inference.cohort import CohortReport
from mcmiad_monai.inference.outputs import AnomalyMaskd, SaveStudyd
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.inference.writers import StudyExistsError, write_study
from mcmiad_monai.transforms import LoadVolumed

NAMES = ("../../escaped", "/abs", "a/b", "..", ".", "", ".hidden", "n\nl", "x" * 300, "scores.json")


def heatmap(case: str = "flair", digest: str | None = None, value: float = 0.5) -> MetaTensor:
    return MetaTensor(
        torch.full((1, 3, 4, 2), value),
        affine=torch.eye(4, dtype=torch.float64),
        meta={"case": case, "input": digest},
    )


def save(out: Path, pred: MetaTensor) -> dict[Any, Any]:
    """Save as the bundle's inference does."""
    data = AnomalyMaskd("pred")({"pred": pred, "slice_scores": torch.ones(2)})
    return SaveStudyd("pred", output_dir=out)(data)


def prediction(image: MetaTensor, value: float) -> Prediction:
    pred = heatmap(value=value)
    return Prediction(pred, pred, {"case": "flair", "input": None}, image)


def volume(folder: Path, seed: int = 0, name: str = "flair.nii.gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 200, (9, 8, 7)).astype("i2")
    nib.save(nib.Nifti1Image(values, np.eye(4)), folder / name)
    return folder / name


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def digest_of(path: Path, case: str = "flair") -> str:
    sample = prepare_study({"case": case, "image": str(path)}, LoadVolumed("image"))
    return str(sample["image"].meta["input"])


def test_the_digest_is_of_the_content_wherever_the_file_lies(tmp_path: Path) -> None:
    first, copy = volume(tmp_path / "a"), volume(tmp_path / "b", name="other.nii.gz")
    copy.write_bytes(first.read_bytes())
    assert digest_of(first) == digest_of(copy)
    assert digest_of(first) != digest_of(volume(tmp_path / "c", seed=1))


def test_another_study_of_the_same_name_is_refused_and_the_same_one_replaced(
    tmp_path: Path,
) -> None:
    done = save(tmp_path, heatmap(digest="1"))
    scores = json.loads((tmp_path / "flair/flair_scores.json").read_text())
    assert scores == done["scores"]
    assert scores["input"] == "1"
    before = content(tmp_path)
    with pytest.raises(StudyExistsError, match=r"flair holds the result of another.*--out"):
        save(tmp_path, heatmap(digest="2", value=0.7))
    assert content(tmp_path) == before
    save(tmp_path, heatmap(digest="1", value=0.7))
    assert content(tmp_path) != before


def test_an_image_in_memory_is_told_from_others_by_its_values(tmp_path: Path) -> None:
    one, other = (MetaTensor(torch.full((1, 3, 4, 2), v)) for v in (1.0, 2.0))
    prediction(one, 0.1).save(tmp_path)
    prediction(one, 0.2).save(tmp_path)
    before = content(tmp_path)
    with pytest.raises(StudyExistsError):
        prediction(other, 0.3).save(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_result_whose_input_is_not_known_is_kept(tmp_path: Path, damage: str) -> None:
    save(tmp_path, heatmap(digest="1"))
    (tmp_path / "flair/flair_scores.json").write_text(damage)
    before = content(tmp_path)
    with pytest.raises(StudyExistsError, match="earlier version"):
        save(tmp_path, heatmap(digest="1"))
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_folder_s_is_refused_with_one_that_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyExistsError, match="name the study"):
        save(tmp_path / "deep/out", heatmap(name))
    assert not content(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_case_is_called_its_files_lie_below_the_output(
    tmp_path: Path, name: str
) -> None:
    sample = prepare_study(
        {"case": name, "image": str(volume(tmp_path / "in"))}, LoadVolumed("image")
    )
    out = tmp_path / "deep/out"
    pred = heatmap(sample["image"].meta["case"], digest="1")
    save(out, pred)
    (folder,) = out.iterdir()
    assert len(list(folder.iterdir())) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"in", "deep"}
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {"out"}


def test_a_folder_of_a_study_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/flair").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StudyExistsError, match="is a link"):
        save(tmp_path / "out", heatmap(digest="1"))
    assert not content(tmp_path)


def test_of_two_writers_of_one_name_at_a_time_one_wins_whole(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def write(digest: str) -> None:
        pred = heatmap(digest=digest, value=float(digest))
        scores = {"case": "flair", "input": digest}
        try:
            write_study(tmp_path, scores, pred, pred, None)
        except StudyExistsError as error:
            refused.append(error)

    threads = [threading.Thread(target=write, args=(str(k),)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = json.loads((tmp_path / "flair/flair_scores.json").read_text())["input"]
    heat = nib.load(tmp_path / "flair/flair_heatmap.nii.gz").get_fdata()
    assert set(heat.ravel()) == {float(winner)}
    assert len(refused) == 5


def study(case: str, score: float) -> dict[str, Any]:
    entry = {"index": 0, "score": score, "anomalous": False}
    return {"case": case, "volume_score": score, "slices": [entry]}


def report(
    out: Path, scores: list[dict[str, Any]], failures: dict[str, str], model: str = "m"
) -> dict[str, Any]:
    made = CohortReport(out, provenance={"model": model})
    made.scores, made.failures = scores, failures
    made.write()
    return json.loads((out / "scores.json").read_text())


def rows(out: Path) -> list[tuple[str, str, str]]:
    with (out / "scores.csv").open(newline="") as file:
        return [(r["case"], r["slice_score"], r["error"]) for r in csv.DictReader(file)]


def test_a_second_run_keeps_the_studies_of_the_first(tmp_path: Path) -> None:
    report(tmp_path, [study("a", 1), study("b", 2)], {"c": "no", "d": "no"})
    merged = report(tmp_path, [study("b", 3), study("c", 4)], {"e": "no"})
    assert [(s["case"], s["volume_score"]) for s in merged["scores"]] == [
        ("a", 1),
        ("b", 3),
        ("c", 4),
    ]
    assert merged["failed"] == {"d": "no", "e": "no"}
    assert merged["studies"] == 5
    assert "earlier_models" not in merged
    assert rows(tmp_path) == [
        ("a", "1", ""),
        ("b", "3", ""),
        ("c", "4", ""),
        ("d", "", "no"),
        ("e", "", "no"),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.csv", "scores.json"]


def test_a_study_that_fails_in_the_second_run_keeps_its_earlier_scores(tmp_path: Path) -> None:
    report(tmp_path, [study("a", 1)], {})
    merged = report(tmp_path, [], {"a": "StudyExistsError: another input"})
    assert [s["case"] for s in merged["scores"]] == ["a"]
    assert list(merged["failed"]) == ["a"]
    assert merged["studies"] == 1


def test_scores_of_another_model_are_named_with_that_model(tmp_path: Path) -> None:
    report(tmp_path, [study("a", 1), study("b", 1)], {}, "first")
    report(tmp_path, [study("b", 2)], {}, "second")
    merged = report(tmp_path, [study("c", 3)], {}, "third")
    assert merged["provenance"] == {"model": "third"}
    assert [(m["provenance"]["model"], m["studies"]) for m in merged["earlier_models"]] == [
        ("first", ["a"]),
        ("second", ["b"]),
    ]
    again = report(tmp_path, [study("a", 3)], {}, "third")
    assert [m["provenance"]["model"] for m in again["earlier_models"]] == ["second"]


@pytest.mark.parametrize(
    "content",
    [
        '{"mine": 1}',
        '{"scores": [{"case": "b"}], "failed": {}}',
        '{"scores": [{"case": "b", "slices": [{}], "volume_score": 1}], "failed": {}}',
        '{"scores": [], "failed": {}, "earlier_models": [5]}',
        '{"scores": {}, "failed": 5}',
    ],
)
def test_a_file_that_is_no_report_is_kept_under_another_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    assert report(tmp_path, [study("a", 1)], {})["studies"] == 1
    assert (tmp_path / "scores.json.unreadable").read_text() == content


def test_runs_side_by_side_lose_no_study(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=report, args=(tmp_path, [study(f"s{k}", k)], {})) for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    final = json.loads((tmp_path / "scores.json").read_text())
    assert sorted(s["case"] for s in final["scores"]) == [f"s{k}" for k in range(8)]
    assert len(rows(tmp_path)) == 8


def test_a_report_holds_no_formula(tmp_path: Path) -> None:
    report(tmp_path, [study("=HYPERLINK(1)", -1.0)], {"@SUM(1)": "-no"})
    assert rows(tmp_path) == [("'=HYPERLINK(1)", "-1", ""), ("'@SUM(1)", "", "'-no")]


def test_heatmap_of_the_pages_of_a_picture_is_a_volume(tmp_path: Path) -> None:
    pages = heatmap(digest="1")
    pages.meta["picture"] = True
    save(tmp_path, pages)
    assert nib.load(tmp_path / "flair/flair_heatmap.nii.gz").shape == (3, 4, 2)
