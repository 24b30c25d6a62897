"""What tests of bundles share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mcmiad_monai.bundle import open_workflow
from mcmiad_monai.inference.cohort import CohortIncomplete


def why_failed(root: Path, options: Mapping[str, Any]) -> str:
    """Run a bundle on one study that it must refuse; the reason in its ``scores.json``."""
    with pytest.raises(CohortIncomplete, match="1 of 1 studies failed"):
        open_workflow(root, "inference", options).run()
    report = json.loads((Path(options["output_dir"]) / "scores.json").read_text())
    (reason,) = report["failed"].values()
    return str(reason)
