"""What `mcmiad infer` imports beyond MONAI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from stressed import make_model

from mcmiad_monai.bundle import copy_bundle

#: Prints the packages that a command loads beyond those which MONAI and timm load by themselves.
PACKAGES = """
import json, sys
import monai.bundle, timm
from mcmiad_monai.cli.parser import main
def loaded(): return {name.partition(".")[0] for name in sys.modules}
before = loaded()
code = main(sys.argv[1:])
print("told:", json.dumps([code, sorted(loaded() - before - set(sys.stdlib_module_names))]))
"""


def test_inference_loads_no_package_that_monai_and_timm_do_not(
    cohort: Path, tmp_path: Path
) -> None:
    """Not SimpleITK, OpenCLIP, ONNX or transformers, which other commands and formats need."""
    bundle = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    make_model(bundle / "models" / "model.pt", slice_range=(0.0, 1.0))
    study = next((cohort / "test").rglob("image.nii.gz"))
    out = tmp_path / "out"
    arguments = ["infer", str(study), "--bundle", str(bundle), "--out", str(out)]
    command = [sys.executable, "-c", PACKAGES, *arguments, "--set", "device=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.rpartition("told:")[2]) == [0, []]
    assert list(out.rglob("*.nii.gz"))
