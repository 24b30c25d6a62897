"""What tests of bundles share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mcmiad_monai.bundle import open_workflow
from mcmiad_monai.errors import unwrap
from mcmiad_monai.inference.cohort import CohortIncomplete


def shared_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder that the first worker of the session makes, and the others read."""
    base = factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    target = base / "shared" / name
    target.parent.mkdir(exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            making = target.with_name(f"making_{name}") / name
            making.parent.mkdir()
            make(making)
            making.rename(target)
    return target


def why_refused(root: Path, workflow: str, options: Mapping[str, Any], part: str = "") -> str:
    """Run a workflow that MONAI's configuration must refuse, or build a part of it; the reason."""
    opened = open_workflow(root, workflow, options)
    with pytest.raises(RuntimeError) as caught:
        opened.parser.get_parsed_content(part) if part else opened.run()
    return str(unwrap(caught.value))


def why_failed(root: Path, options: Mapping[str, Any]) -> str:
    """Run a bundle on one study that it must refuse; the reason in its ``scores.json``."""
    with pytest.raises(CohortIncomplete, match="1 of 1 studies failed"):
        open_workflow(root, "inference", options).run()
    report = json.loads((Path(options["output_dir"]) / "scores.json").read_text())
    (reason,) = report["failed"].values()
    return str(reason)


def without_scores(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """A calibration without the held-out scores, as ``metadata.json`` has it."""
    return {
        key: without_scores(value) if isinstance(value, Mapping) else value
        for key, value in calibration.items()
        if key not in ("slice_scores", "volume_scores", "typical_heat")
    }
