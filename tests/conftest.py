"""Shared fixtures. Two test workers share two cores, so each worker computes on one thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and weights beside the checkout; a user who clones the project has none."""
    if not SHARED.exists():
        pytest.skip("no ../shared folder beside the checkout: real images and weights are absent")
    return SHARED
