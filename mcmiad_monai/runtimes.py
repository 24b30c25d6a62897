"""What runs the slice network at inference: PyTorch, ONNX Runtime or OpenVINO.

The other two run the file that ``mcmiad export`` writes, and only if it was exported from the very
model that the bundle holds. All give the same heatmaps to
:data:`~mcmiad_monai.exporting.EXPORT_TOLERANCE`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mcmiad_monai.exporting import METADATA_KEY, ExportError, description
from mcmiad_monai.networks.detector import MCMIADDetector

logger = logging.getLogger(__name__)

Engine = Literal["torch", "onnxruntime", "openvino"]
ENGINES: tuple[Engine, ...] = ("torch", "onnxruntime", "openvino")


class EngineNetwork(nn.Module):
    """A slice network whose products another library computes, on the CPU.

    Parameters
    ----------
    run : callable
        Maps images (B, 1, S, S) to heatmaps of the same shape, both float32 arrays.
    name : str
        Of the library and its version, for people.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], name: str) -> None:
        super().__init__()
        self.run, self.name = run, name

    def forward(self, image: Tensor) -> Tensor:
        """Heatmaps (B, 1, S, S) of images (B, 1, S, S), on the device of the images."""
        images = np.ascontiguousarray(image.detach().cpu().numpy(), dtype=np.float32)
        return torch.from_numpy(self.run(images)).to(image.device)


def open_network(
    detector: MCMIADDetector,
    *,
    engine: Engine = "torch",
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Ready the network of a package for inference.

    Parameters
    ----------
    detector : MCMIADDetector
        Of the package.
    engine : {"torch", "onnxruntime", "openvino"}
        Which library computes. The last two compute on the CPU.
    path : path, optional
        The exported ``.onnx`` file; needed for all but ``"torch"``.
    device : str or torch.device
        Of PyTorch.

    Raises
    ------
    ExportError
        If the engine is not known or not installed, or there is no file exported from this model.
    """
    if engine not in ENGINES:
        raise ExportError(f"engine {engine!r} is not known; choose one of {list(ENGINES)}.")
    if engine == "torch":
        # the same numbers, in the layout that convolutions are fastest in
        return detector.to(device).to(memory_format=torch.channels_last).eval()
    source = Path(str(path))
    if not source.is_file():
        raise ExportError(
            f"engine {engine} runs {source}, which does not exist; write it with: "
            f"mcmiad export MODEL {source}"
        )
    opened = _onnxruntime(source) if engine == "onnxruntime" else _openvino(source)
    run, told, name = opened
    if json.loads(told or "{}").get("model_sha256") != description(detector)["model_sha256"]:
        raise ExportError(
            f"{source} was exported from another model than the one in this bundle; export again: "
            f"mcmiad export MODEL {source}"
        )
    logger.info("slices are computed by %s", name)
    return EngineNetwork(run, name)


Opened = tuple[Callable[[np.ndarray], np.ndarray], str, str]


def _onnxruntime(path: Path) -> Opened:
    runtime = _imported("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    told = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")

    def run(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run(None, {"image": images})[0]
        return found

    return run, told, f"onnxruntime {runtime.__version__}"


def _openvino(path: Path) -> Opened:
    library, onnx = _imported("openvino"), _imported("onnx")
    core = library.Core()
    settings = {
        # exact numbers: OpenVINO takes bfloat16 by itself where the processor has it
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(str(path), "CPU", settings)
    stored = onnx.load(str(path), load_external_data=False)
    told = next((p.value for p in stored.metadata_props if p.key == METADATA_KEY), "")

    def run(images: np.ndarray) -> np.ndarray:
        return np.array(compiled([images])[0])

    return run, told, f"openvino {library.__version__}"


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f"{name} is not installed; engines need the extra: pip install mcmiad-monai[export]"
        ) from error
