"""Sources of studies as names alone: finding looks at no content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def touch(root: Path, *names: str) -> Path:
    """Create empty files."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write_list(path: Path, **content: Any) -> Path:
    """Write a datalist."""
    path.write_text(json.dumps(content))
    return path


def names(cases: list[dict[str, Any]]) -> list[str]:
    return [case["case"] for case in cases]
