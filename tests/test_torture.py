"""The script that tortures the command: its quick form, on a few tries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mcmiad_monai.phantom.cohorts import write_brain_cohort

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "torture.py"


def test_quick_torture_of_verify_and_of_names_holds_and_is_told(tmp_path: Path) -> None:
    out = tmp_path / "torture.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--only", "flips", "--only", "disks"]
    done = subprocess.run(
        [*command, "--workers", "1", "--out", str(out)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(out.read_text())
    assert done.returncode == 0, done.stdout + done.stderr
