"""What `mcmiad infer` imports beyond MONAI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mcmiad_monai.bundle import copy_bundle
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import build_encoder
from mcmiad_monai.networks.head import build_head
from mcmiad_monai.networks.package import save_package
from mcmiad_monai.networks.text_prior import encode_hashing

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
