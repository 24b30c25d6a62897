"""What tests of commands share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from mcmiad_monai.files.writing import write_text


def write_model(root: Any, workflow: Any) -> None:
    if workflow == ["train"]:
        write_text(Path(root) / "models" / "model.pt", "new")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The workflows that commands open; none is built or run, and training leaves a model."""
    calls: list[SimpleNamespace] = []

    def record(root: Any, workflow: Any, overrides: Any, *, tracking: Any = None) -> Any:
        calls.append(SimpleNamespace(root=root, workflow=workflow, overrides=overrides))
        calls[-1].tracking = tracking
        return SimpleNamespace(run=lambda: write_model(root, workflow), parser=MagicMock())

    monkeypatch.setattr("mcmiad_monai.bundle.open_workflow", record)
    return calls
