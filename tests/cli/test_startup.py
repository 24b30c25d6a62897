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
print("last:", json.dumps([code, sorted(loaded() - before - set(sys.stdlib_module_names))]))
"""


def printed_by(script: str, *arguments: str) -> object:
    """What a script prints last, in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.rpartition("last:")[2])


def test_inference_loads_no_package_that_monai_and_timm_do_not(
    cohort: Path, tmp_path: Path
) -> None:
    """Not SimpleITK, OpenCLIP, ONNX or transformers, which other commands and formats need."""
    bundle = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    make_model(bundle / "models" / "model.pt", slice_range=(0.0, 1.0))
    study = next((cohort / "test").rglob("image.nii.gz"))
    out = tmp_path / "out"
    arguments = ["infer", str(study), "--bundle", str(bundle), "--out", str(out)]
    assert printed_by(PACKAGES, *arguments, "--set", "device=cpu") == [0, []]
    assert list(out.rglob("*.nii.gz"))


#: Prints whether the garbage collector is on after a command, and has put its modules aside.
COLLECTOR = """
import gc, json, sys
from mcmiad_monai.cli.parser import main
code = main()
print("last:", json.dumps([code, gc.isenabled(), gc.get_freeze_count() > 100_000]))
"""


def test_modules_of_monai_are_kept_from_the_collector_which_goes_on(tmp_path: Path) -> None:
    none = str(tmp_path / "none")
    assert printed_by(COLLECTOR, "infer", none, "--bundle", none, "--out", none) == [2, True, True]
