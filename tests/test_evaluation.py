from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from mcmiad_monai.evaluation import (
    EvaluationReport,
    Slices,
    dice,
    slice_labels,
    study_metrics,
    study_slices,
)
from mcmiad_monai.outputs import CohortIncomplete


def study(scores: list[float], lesions: list[int], *, case: str = "a", hot: float = 0.0) -> Any:
    """A study of 4 × 4 pixels a slice; ``hot`` is the heat on the lesion's pixel."""
    n = len(scores)
    label = torch.zeros(1, 4, 4, n)
    label[0, 1, 2, lesions] = 1
    heat = torch.full((1, 4, 4, n), 0.5) + hot * label
    pred = MetaTensor(heat, meta={"case": case, "slice_scores": torch.tensor(scores)})
    return {"pred": pred, "label": label, "image": torch.ones(1, 4, 4, n)}


def test_slice_is_anomalous_by_its_mask() -> None:
    mask = torch.zeros(1, 3, 3, 4)
    mask[0, 2, 0, 3] = 1
    assert slice_labels(mask, 2).tolist() == [False, False, False, True]
    assert slice_labels(mask, 0).tolist() == [False, False, True]


def test_skipped_slices_count_only_where_a_lesion_was_missed() -> None:
    item = study([math.nan, 1.0, 3.0, math.nan], lesions=[2, 3])
    scores, labels, indices = study_slices(item, Slices(2))
    assert indices.tolist() == [1, 2, 3]
    assert scores.tolist() == [1.0, 3.0, 0.0]
    assert labels.tolist() == [False, True, True]


def test_slices_outside_the_range_are_no_part_of_the_figures() -> None:
    item = study([1.0, 2.0, 3.0, math.nan], lesions=[0, 3])
    assert study_slices(item, Slices(2, (0.25, 0.75)))[2].tolist() == [1, 2]


def figures(items: list[Any]) -> dict[str, float]:
    result = {}
    for name, metric in study_metrics(2).items():
        for item in items:
            metric.update(metric._output_transform([item]))
        metric.update(metric._output_transform([]))  # a study that failed
        result[name] = metric.compute()
    return result


def test_figures_by_hand() -> None:
    items = [
        study([1.0, 3.0, 2.0], lesions=[1], case="a", hot=1.0),
        study([2.5, 1.0, 0.5], lesions=[], case="b"),
    ]
    told = figures(items)
    assert told["slice_auroc"] == 1.0  # 3.0 is above all five normal slices
    assert told["volume_auroc"] == 1.0
    assert told["pixel_auroc"] == 1.0
    items[1] = study([3.5, 1.0, 0.5], lesions=[], case="b")
    assert figures(items)["slice_auroc"] == pytest.approx(4 / 5)
    assert figures(items)["volume_auroc"] == 0.0


def test_image_of_one_slice_without_mask_goes_by_its_folder() -> None:
    item = study([1.0], lesions=[])
    item["pred"].meta["anomalous"] = True
    assert study_slices(item, Slices(2))[1].tolist() == [True]


def test_report_writes_figures_and_a_row_a_study(tmp_path: Path) -> None:
    report = EvaluationReport(tmp_path, axis=2, slice_range=(0.0, 1.0), provenance={"seed": 3})
    engine = SimpleNamespace(
        state=SimpleNamespace(
            output=[study([1.0, 3.0], lesions=[1], hot=2.0)],
            metrics={"slice_auroc": 1.0, "volume_auroc": math.nan},
        ),
        failures={"b": "VolumeError: b is empty"},
    )
    report._collect(engine)
    report._write(engine)  # type: ignore[arg-type]
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["metrics"] == {"slice_auroc": 1.0, "volume_auroc": None}
    assert (content["slices"], content["anomalous_slices"]) == (2, 1)
    rows = list(csv.DictReader((tmp_path / "studies.csv").open()))
    assert rows[0]["lesion_voxels"] == "1"
    assert float(rows[0]["dice_at_threshold"]) == 1.0
    with pytest.raises(CohortIncomplete, match="1 failed"):
        report.finish()


def test_dice_by_hand() -> None:
    a = torch.tensor([True, True, False, False])
    b = torch.tensor([True, False, True, True])
    assert dice(a, b) == pytest.approx(2 / 5)
    assert dice(a, torch.zeros(4, dtype=torch.bool)) is None
