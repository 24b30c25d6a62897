"""What runs the slice network at inference: PyTorch, ONNX Runtime or OpenVINO.

The other two run the file that ``mcmiad export`` writes, and only if it was exported from the very
model that the bundle holds. In float32 all give the same heatmaps to
:data:`~mcmiad_monai.exporting.EXPORT_TOLERANCE`, but where a token's second and third expert are
equal to rounding: then libraries may choose differently. Over 340 real slices heat changed by 0.005
of the threshold at most (``benchmarks/precision.py``).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mcmiad_monai.exporting import METADATA_KEY, ExportError, description
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.precision import Precision, require_precision, warn_where_slow
from mcmiad_monai.workers import Run, SliceWorkers, torch_run

logger = logging.getLogger(__name__)

Engine = Literal["auto", "torch", "onnxruntime", "openvino"]
ENGINES: tuple[Engine, ...] = ("auto", "torch", "onnxruntime", "openvino")


class HalfPrecision(nn.Module):
    """A slice network whose products PyTorch computes in bfloat16; the score stays in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Heatmaps (B, 1, S, S), float32, of images (B, 1, S, S)."""
        with torch.autocast(image.device.type, torch.bfloat16):
            heatmap: Tensor = self.network(image)
        return heatmap


def open_network(
    detector: MCMIADDetector,
    *,
    engine: Engine = "torch",
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> nn.Module:
    """Ready the network of a package for inference.

    Parameters
    ----------
    detector : MCMIADDetector
        Of the package.
    engine : {"auto", "torch", "onnxruntime", "openvino"}
        Which library computes. The last two compute on the CPU. ``"auto"`` takes the fastest of
        those that are installed and have a file of this model, and tells which.
    path : path, optional
        The exported ``.onnx`` file; needed for ``"onnxruntime"`` and ``"openvino"``.
    device : str or torch.device
        Of PyTorch.
    precision : {"float32", "bfloat16"}
        ``"bfloat16"`` is faster and not exact, while thresholds were set in float32: on real FLAIR
        heat changed by 0.006 of the threshold on average and by 0.34 at most, AUROC by 0.002 or
        less by slices and pixels, thresholds by 1 % (``benchmarks/precision.py``).

    Raises
    ------
    ExportError
        If the engine is not known or not installed, does not compute in this precision, or there
        is no file exported from this model.
    ValueError
        If the precision is not known.
    """
    if engine not in ENGINES:
        raise ExportError(f"engine {engine!r} is not known; choose one of {list(ENGINES)}.")
    require_precision(precision)
    source = Path(str(path))
    compared = engine == "auto"
    if engine == "auto":
        engine = _fastest(detector, source, torch.device(device))
    if engine == "torch":
        return _torch(detector, torch.device(device), precision)
    if engine == "onnxruntime" and precision != "float32":
        raise ExportError(
            "onnxruntime computes in float32 on a CPU; for bfloat16 take openvino or torch."
        )
    if not source.is_file():
        raise ExportError(
            f"engine {engine} runs {source}, which does not exist; write it with: "
            f"mcmiad export MODEL {source}"
        )
    opened = _onnxruntime(source) if engine == "onnxruntime" else _openvino(source, precision)
    if not compared and not _belongs(_told(source), detector):
        raise ExportError(
            f"{source} was exported from another model than the one in this bundle; export again: "
            f"mcmiad export MODEL {source}"
        )
    return _workers(opened)


class Opened(NamedTuple):
    """A network, ready: its function, what runs it and in which numbers."""

    run: Run
    name: str
    precision: str


def _workers(opened: Opened) -> SliceWorkers:
    logger.info("slices are computed by %s in %s", opened.name, opened.precision)
    return SliceWorkers(opened.run, opened.name)


def _torch(detector: MCMIADDetector, device: torch.device, precision: Precision) -> nn.Module:
    warn_where_slow(precision, device)
    if device.type == "cpu":
        run = torch_run(detector.cpu().folded(), precision)
        return _workers(Opened(run, f"PyTorch {torch.__version__}", precision))
    # the same numbers, in the layout that convolutions are fastest in
    network = detector.to(device).to(memory_format=torch.channels_last).eval()
    return network if precision == "float32" else HalfPrecision(network)


def _fastest(detector: MCMIADDetector, source: Path, device: torch.device) -> Engine:
    """The engine that ``"auto"`` means, never one whose numbers could be another model's."""
    if device.type != "cpu":
        return "torch"
    installed = [e for e in ("openvino", "onnxruntime") if importlib.util.find_spec(e)]
    if not source.is_file() or not installed or not importlib.util.find_spec("onnx"):
        logger.info(
            "there is no exported file or no engine for it, which is faster on a CPU: pip install "
            "mcmiad-monai[export], then train again or mcmiad export MODEL %s",
            source.name,
        )
        return "torch"
    if not _belongs(_told(source), detector):
        logger.warning(
            "%s was exported from another model than the one in this bundle, or not by mcmiad, so "
            "PyTorch computes; export again: mcmiad export MODEL %s",
            source.name,
            source.name,
        )
        return "torch"
    return "openvino" if "openvino" in installed else "onnxruntime"


def _belongs(told: str, detector: MCMIADDetector) -> bool:
    """Whether a file's metadata tells of this model."""
    stored = json.loads(told or "{}").get("model_sha256")
    return bool(stored == description(detector)["model_sha256"])


def _told(path: Path) -> str:
    """The project's metadata in an ONNX file; empty if it has none."""
    stored = _imported("onnx").load(str(path), load_external_data=False)
    return next((str(p.value) for p in stored.metadata_props if p.key == METADATA_KEY), "")


def _onnxruntime(path: Path) -> Opened:
    runtime = _imported("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # a worker has one core
    session = runtime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )

    def run(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run(None, {"image": images})[0]
        return found

    return Opened(run, f"onnxruntime {runtime.__version__}", "float32")


def _openvino(path: Path, precision: Precision) -> Opened:
    library = _imported("openvino")
    settings = {
        # told, since OpenVINO takes bfloat16 by itself where the processor has it
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": torch.get_num_threads(),  # a worker has one core
    }
    compiled = library.Core().compile_model(str(path), "CPU", settings)
    requests = _Requests(compiled)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    used = {"f32": "float32", "bf16": "bfloat16"}.get(used, used)
    if used != precision:
        logger.warning(
            "this processor has no instructions for %s, so OpenVINO computes in %s", precision, used
        )

    def run(images: np.ndarray) -> np.ndarray:
        return np.array(requests.mine().infer([images], share_inputs=True)[0], dtype=np.float32)

    return Opened(run, f"openvino {library.__version__}", used)


class _Requests:
    """One inference request of a compiled model for each thread that asks."""

    def __init__(self, compiled: Any) -> None:
        self._compiled, self._local = compiled, threading.local()

    def mine(self) -> Any:
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        return self._local.request


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f"{name} is not installed; engines need the extra: pip install mcmiad-monai[export]"
        ) from error
