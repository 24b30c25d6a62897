"""Slices in threads: in order, one core each, and the rest of the process as it was."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from mcmiad_monai.runtime.cpu import SLICES_A_WORKER, SliceWorkers
from mcmiad_monai.runtime.precision import warn_where_slow

CPU = torch.device("cpu")


def test_order_of_slices_is_kept_and_portions_are_small() -> None:
    portions: list[int] = []

    def run(images: np.ndarray) -> np.ndarray:
        portions.append(len(images))
        return images * 2

    images = torch.arange(13.0).view(13, 1, 1, 1).expand(-1, 1, 2, 2)
    torch.testing.assert_close(SliceWorkers(run, "doubling", workers=3)(images), images * 2)
    assert max(portions) == SLICES_A_WORKER
    assert sum(portions) == 13


def test_workers_use_one_core_each_and_other_threads_what_they_had() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        workers = SliceWorkers(lambda images: images * torch.get_num_threads(), "counting")
        assert workers.slices_at_once % 3 == 0
        assert workers(torch.ones(9, 1, 1, 1)).unique().tolist() == [1.0]
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert [torch.get_num_threads(), *later] == [3, 3]
        assert workers(torch.ones(9, 1, 1, 1)).unique().tolist() == [1.0]
    finally:
        torch.set_num_threads(before)


def test_threads_end_where_one_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    begin, begun = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start"):
        SliceWorkers(lambda images: images, "copying", workers=2)
    begun[0].join(timeout=60)
    assert not begun[0].is_alive()
    assert torch.get_num_threads() == before


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    def run(images: np.ndarray) -> np.ndarray:
        raise MemoryError(f"no room for {len(images)}")

    with pytest.raises(MemoryError, match="no room for 1"):
        SliceWorkers(run, "failing")(torch.ones(1, 1, 1, 1))


@pytest.mark.parametrize(("seconds", "warned"), [((1.0, 9.0), True), ((1.0, 0.5), False)])
def test_precision_that_is_slower_here_is_told(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seconds: tuple[float, float],
    warned: bool,
) -> None:
    taken = dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))
    monkeypatch.setattr("mcmiad_monai.runtime.precision._seconds", lambda dtype: taken[dtype])
    warn_where_slow("float32", CPU)
    assert not caplog.text
    warn_where_slow("bfloat16", CPU)
    assert ("9 times as long" in caplog.text) == warned
