"""What a command imports before its work, and what becomes of the garbage collector meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcmiad_monai.bundle import copy_bundle
from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import build_encoder
from mcmiad_monai.networks.head import build_head
from mcmiad_monai.networks.package import save_package
from mcmiad_monai.networks.text_prior import encode_hashing
from mcmiad_monai.scoring import AnomalyScore

#: MONAI imports none of these by itself, and inference with PyTorch needs none.
NOT_NEEDED = {
    "SimpleITK",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "open_clip",
    "openvino",
    "transformers",
}

RUN = """
import gc, json, sys
from mcmiad_monai.cli import main
light = sorted({"torch", "monai", "numpy"} & set(sys.modules))
code = main(*json.loads(sys.argv.pop(1)))
told = {"light": light, "code": code, "on": gc.isenabled(), "frozen": gc.get_freeze_count()}
after = set(sys.modules)
import monai, monai.bundle, timm
told["more"] = sorted({name.partition(".")[0] for name in after})
told["monai"] = sorted({name.partition(".")[0] for name in sys.modules if name not in after})
print("told:", json.dumps(told))
"""


def run(*options: str, own: bool = True) -> dict[str, Any]:
    """Run a command in a new process, as its own command line or by a call from Python."""
    given = [] if own else [list(options)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(given), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.rpartition("told:")[2])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a small model of random weights."""
    with pytest.warns(UserWarning, match="RANDOM"):
        encoder = build_encoder("test_efficientnet.r160_in1k", weights="random")
    head = build_head(
        in_channels=encoder.out_channels,
        stage_channels=encoder.stage_channels,
        prior=encode_hashing(normal_prompts()),
        dim=64,
        hidden=128,
        rounds=2,
    )
    root = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    told = {"training": {"modality": "brain_mri", "slice_range": [0.0, 1.0]}}
    save_package(
        root / "models" / "model.pt", MCMIADDetector(encoder, head, AnomalyScore()), provenance=told
    )
    return root
