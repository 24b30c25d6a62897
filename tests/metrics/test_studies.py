"""All figures at once: of single images by scikit-learn, of two processes by one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from mcmiad_monai.metrics.slices import SliceAUROC
from mcmiad_monai.metrics.studies import StudyFigures


def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heatmaps (8, 1, 12, 12), masks, and scores."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(8, 1, 12, 12)
    mask[1:5, :, 3:6, 3:6] = 1
    heat = torch.exp(torch.randn(mask.shape, generator=generator) + mask)
    return heat, mask, heat.mean((1, 2, 3))


def test_figures_of_images_are_those_of_scikit_learn() -> None:
    heat, mask, scores = images()
    labels = [False, True, True, True, True, False, True, False]  # one more than by the masks
    found = StudyFigures("image")
    for rows in (slice(0, 3), slice(3, None)):
        names = [str(k) for k in range(8)[rows]]
        found.update_images(names, heat[rows], mask[rows], scores=scores[rows], labels=labels[rows])
    figures = found.compute()
    assert figures["image_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert figures["image_ap"] == pytest.approx(average_precision_score(labels, scores))
    pixels = roc_auc_score(mask.flatten(), heat.flatten())
    assert figures["pixel_auroc"] == pytest.approx(pixels, abs=1e-4)
    assert not [name for name in figures if name.startswith(("volume", "froc"))]
    intervals = found.intervals()
    assert list(intervals) == ["pixel_auroc", "image_auroc"]
    assert intervals["image_auroc"].patients == 8
    assert intervals["image_auroc"].value == figures["image_auroc"]


def test_without_a_study_every_figure_is_undefined() -> None:
    assert all(math.isnan(value) for value in StudyFigures().compute().values())
    assert StudyFigures().intervals() == {}


def figures(chosen: list[int]) -> dict[str, float]:
    """Every figure of studies of two slices, and those of the other processes."""
    found, slices = StudyFigures(), SliceAUROC()
    heat, mask, _ = images()
    for k in chosen:
        study = [part[2 * k : 2 * k + 2].movedim(0, 1) for part in (heat, mask)]  # (1, 2, 12, 12)
        scores, labels = study[0].amax((0, 2, 3)), study[1].amax((0, 2, 3)) > 0
        given: dict[str, Any] = {"volume_score": float(scores.max()), "labels": labels}
        found.update(f"p{k}", *study, study[0] - 1, scores=scores, **given)
        slices.update((scores, labels))
    return {**found.compute(), "alone": slices.compute()}


def work(folder: Path) -> None:
    """What each process runs: with studies for both, then with studies for the last alone."""
    with idist.Parallel(backend="gloo"):
        shared = list(range(idist.get_rank(), 4, idist.get_world_size()))
        found = [figures(shared), figures([0, 1, 2, 3] if idist.get_rank() == 1 else [])]
        (folder / f"{idist.get_rank()}.json").write_text(json.dumps(found))


def test_two_processes_give_the_figures_of_one(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [sys.executable, *launch, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    alone = figures([0, 1, 2, 3])
    assert len(alone) == 22
    for rank in (0, 1):
        for together in json.loads((tmp_path / f"{rank}.json").read_text()):
            assert together == pytest.approx(alone, abs=1e-12)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
