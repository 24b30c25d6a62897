from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch

from mcmiad_monai.metrics import (
    AUPRO,
    FROC,
    PixelAUROC,
    PixelMetrics,
    SliceAP,
    SliceAUROC,
    SliceF1Max,
)

KINDS: list[Any] = [SliceAUROC, SliceAP, SliceF1Max, PixelAUROC, PixelMetrics, AUPRO, FROC]


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images (B, 1, H, W) and masks, in batches of unequal size."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(7, 1, 12, 12)
    mask[1:5, :, 3:6, 3:6] = 1
    heat = torch.exp(torch.randn(mask.shape, generator=generator) + mask)
    return [(heat[:3], mask[:3]), (heat[3:5], mask[3:5]), (heat[5:], mask[5:])]


def figures(own: list[tuple[torch.Tensor, torch.Tensor]]) -> list[Any]:
    """All metrics over one's own batches, and those of the other processes."""
    result = []
    for kind in KINDS:
        metric = kind()
        for heat, mask in own:
            images = (heat.amax((1, 2, 3)), mask.amax((1, 2, 3)))
            metric.update(images if kind in KINDS[:3] else (heat, mask))
        result.append(metric.compute())
    return result


def work(folder: Path) -> None:
    """What each process runs: once with batches for both, once with batches for the last alone."""
    with idist.Parallel(backend="gloo"):
        shared = batches()[idist.get_rank() :: idist.get_world_size()]
        lonely = batches() if idist.get_rank() == 1 else []
        found = [figures(shared), figures(lonely)]
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
    alone = json.loads(json.dumps(figures(batches())))
    for rank in (0, 1):
        for together in json.loads((tmp_path / f"{rank}.json").read_text()):
            for kind, found, expected in zip(KINDS, together, alone, strict=True):
                assert found == pytest.approx(expected, abs=1e-12), kind.__name__


if __name__ == "__main__":
    work(Path(sys.argv[1]))
