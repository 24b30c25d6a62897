"""What tests of commands share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The workflows that commands open; none is built or run."""
    calls: list[SimpleNamespace] = []

    def record(root: Any, workflow: Any, overrides: Any, *, tracking: Any = None) -> Any:
        calls.append(SimpleNamespace(root=root, workflow=workflow, overrides=overrides))
        calls[-1].tracking = tracking
        return SimpleNamespace(run=lambda: None)

    monkeypatch.setattr("mcmiad_monai.bundle.open_workflow", record)
    return calls
