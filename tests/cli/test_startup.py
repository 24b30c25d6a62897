"""What `mcmiad infer` imports beyond MONAI, and the garbage collector while it imports."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcmiad_monai.bundle import copy_bundle
from mcmiad_monai.cli import parser as cli
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import build_encoder
from mcmiad_monai.networks.head import build_head
from mcmiad_monai.networks.package import save_package
from mcmiad_monai.networks.text_prior import encode_hashing

#: Prints the packages that a command loads beyond those which MONAI and timm load by themselves.
PACKAGES = """
import json, sys
import monai.bundle, timm
from mcmiad_monai.cli import main
def loaded(): return {name.partition(".")[0] for name in sys.modules}
before = loaded()
code = main(sys.argv[1:])
print("told:", json.dumps([code, sorted(loaded() - before - set(sys.stdlib_module_names))]))
"""

#: Runs its own command line, and prints what became of the collector.
COLLECTOR = """
import gc, json, os, sys
before = gc.get_freeze_count()  # Python 3.12 begins with some hundred
from mcmiad_monai.cli import main
code = main()
frozen = gc.get_freeze_count() - before
print("told:", json.dumps([code, "monai" in sys.modules, gc.isenabled(), frozen]))
"""


def told(script: str, *arguments: str) -> list[object]:
    """What a script prints last, in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.rpartition("told:")[2])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a small model of random weights."""
    with pytest.warns(UserWarning, match="RANDOM"):
        encoder = build_encoder("test_efficientnet.r160_in1k", weights="random")
    head = build_head(
        in_channels=encoder.out_channels,
        stage_channels=encoder.stage_channels,
        prior=encode_hashing(["healthy"], dim=16),
        dim=32,
        hidden=64,
        rounds=2,
    )
    root = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    training = {"modality": "brain_mri", "slice_range": [0.0, 1.0]}
    save_package(
        root / "models" / "model.pt",
        MCMIADDetector(encoder, head),
        provenance={"training": training},
    )
    return root


def test_inference_loads_no_package_that_monai_and_timm_do_not(
    bundle: Path, cohort: Path, tmp_path: Path
) -> None:
    """Not SimpleITK, OpenCLIP, ONNX or transformers, which other commands and formats need."""
    study = next((cohort / "test").rglob("image.nii.gz"))
    out = tmp_path / "out"
    arguments = ["infer", str(study), "--bundle", str(bundle), "--out", str(out)]
    code, packages = told(PACKAGES, *arguments, "--set", "device=cpu")
    assert code == 0
    assert list(out.rglob("*.nii.gz"))
    assert packages == []


def test_collector_rests_while_a_command_imports_monai(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    arguments = ["infer", missing, "--bundle", missing, "--out", missing]
    code, has_monai, is_on, frozen = told(COLLECTOR, *arguments)
    assert (code, has_monai, is_on) == (2, True, True)
    assert isinstance(frozen, int)
    assert frozen > 100_000  # objects: MONAI, and all that comes with it


def test_light_command_imports_no_monai(cohort: Path) -> None:
    assert told(COLLECTOR, "cases", str(cohort)) == [0, False, True, 0]


def test_collector_is_the_callers_where_the_command_is_called_from_python(
    tmp_path: Path,
) -> None:
    before, missing = gc.get_freeze_count(), str(tmp_path / "missing")
    assert cli.main(["infer", missing, "--bundle", missing, "--out", missing]) == 2
    assert gc.get_freeze_count() == before
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": str(cli.SPINS)}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_threads_wait_briefly_unless_the_user_says_how(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], expected: dict[str, str]
) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in names} | chosen
    monkeypatch.setattr(os, "environ", environment)

    def without_monai() -> None:
        raise RuntimeError("far enough")

    monkeypatch.setattr(cli, "_import_monai", without_monai)
    monkeypatch.setattr(sys, "argv", ["mcmiad", "infer", "study", "--bundle", "b", "--out", "o"])
    assert cli.main() == 2
    assert {name: environment[name] for name in names if name in environment} == expected


def test_collector_comes_back_if_monai_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.bundle", None)
    before = gc.get_freeze_count()
    with pytest.raises(ImportError):
        cli._import_monai()
    assert gc.isenabled()
    assert gc.get_freeze_count() == before
