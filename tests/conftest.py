"""Shared fixtures. Two test workers share two cores, so each worker computes on one thread."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from forked_commands import ForkedCommands

from mcmiad_monai.phantom.cohorts import write_brain_cohort

if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)

# a shell that runs the tests in the background has processes ignore it; some tests send it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and weights beside the checkout; a user who clones the project has none."""
    if not SHARED.exists():
        pytest.skip("no ../shared folder beside the checkout: real images and weights are absent")
    return SHARED


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small phantom studies with a datalist; read it, do not write into it."""
    return write_brain_cohort(
        tmp_path_factory.mktemp("phantoms") / "cohort",
        train=4,
        val=4,
        test_normal=2,
        test_lesion=2,
        shape=(40, 48, 10),
        progress=False,
    )


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> ForkedCommands:
    """Commands in processes of their own, without waiting for MONAI each time."""
    return ForkedCommands(tmp_path_factory.mktemp("forked"))
