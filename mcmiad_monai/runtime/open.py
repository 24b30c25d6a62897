"""What runs the slice network at inference: PyTorch, ONNX Runtime or OpenVINO.

The other two run the file that ``mcmiad export`` writes, and only if it was exported from the very
model that the bundle holds. In float32 all give the same heatmaps to ``EXPORT_TOLERANCE``, but
where a token's second and third expert are equal to rounding: then libraries may choose
differently. Over 340 real slices heat changed by 0.005 of the threshold at most
(``benchmarks/precision.py``).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.runtime.cpu import SliceWorkers, torch_run
from mcmiad_monai.runtime.export import METADATA_KEY, ExportError, description, is_damaged
from mcmiad_monai.runtime.gpu import accelerated
from mcmiad_monai.runtime.precision import (
    Precision,
    require_gpu_to_compile,
    require_precision,
    warn_where_slow,
)

logger = logging.getLogger(__name__)

Engine = Literal["auto", "torch", "onnxruntime", "openvino"]
ENGINES: tuple[Engine, ...] = ("auto", "torch", "onnxruntime", "openvino")

#: Engines that ``"auto"`` takes the first installed one of. In float32 they are as fast as each
#: other, and ONNX Runtime takes less memory (``benchmarks/engines.py``, ``peers_speed.py``).
FASTEST: dict[Precision, tuple[Engine, ...]] = {
    "float32": ("onnxruntime", "openvino"),
    "bfloat16": ("openvino",),
}


def open_network(
    detector: MCMIADDetector,
    *,
    engine: Engine = "torch",
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    compiled: bool = False,
) -> nn.Module:
    """Ready the network of a package for inference.

    Parameters
    ----------
    detector : MCMIADDetector
        Of the package.
    engine : {"auto", "torch", "onnxruntime", "openvino"}
        Which library computes. The last two compute on the CPU. ``"auto"`` takes the fastest of
        those that are installed and have a file of this model, and logs which.
    path : path, optional
        The exported ``.onnx`` file; needed for ``"onnxruntime"`` and ``"openvino"``.
    device : str or torch.device
        Of PyTorch.
    precision : {"float32", "bfloat16"}
        ``"bfloat16"`` is faster and not exact, while thresholds were set in float32: on real FLAIR
        heat changed by 0.006 of the threshold on average and by 0.34 at most, AUROC by 0.002 or
        less by slices and pixels, thresholds by 1 % (``benchmarks/precision.py``).
    compiled : bool
        Of PyTorch on a GPU: see :func:`~mcmiad_monai.runtime.gpu.accelerated`.

    Raises
    ------
    ExportError
        If the engine is not known or not installed, does not compute in this precision, or there
        is no file exported from this model.
    ValueError
        If the precision is not known, or something else than PyTorch on a GPU is to be compiled.
    """
    if engine not in ENGINES:
        raise ExportError(f"engine {engine!r} is not known; choose one of {list(ENGINES)}.")
    require_precision(precision)
    source, place = Path(str(path)), torch.device(device)
    require_gpu_to_compile(place if engine in ("auto", "torch") else "cpu", compiled)
    if place.type != "cpu" and engine in ("auto", "torch"):
        network = _on_gpu(detector, place, precision, compiled=compiled)
    elif engine == "auto":
        network = _fastest(detector, source, precision)
    elif engine == "torch":
        network = _on_cpu(detector, precision)
    else:
        network = _exported(detector, engine, source, precision)
    _give_back_memory()
    return network


class Opened(NamedTuple):
    """An exported file, ready.

    Attributes
    ----------
    workers : SliceWorkers
    precision : str
        The numbers it computes in.
    metadata : str
        The project's metadata in the file, as JSON; empty if it has none.
    """

    workers: SliceWorkers
    precision: str
    metadata: str


def _on_cpu(detector: MCMIADDetector, precision: Precision) -> nn.Module:
    warn_where_slow(precision, torch.device("cpu"))
    workers = SliceWorkers(
        torch_run(detector.cpu().folded(), precision), f"PyTorch {torch.__version__}"
    )
    logger.info("slices are computed by %s on cpu in %s", workers.name, precision)
    return workers


def _on_gpu(
    detector: MCMIADDetector, device: torch.device, precision: Precision, *, compiled: bool
) -> nn.Module:
    form = ", compiled" if compiled else ""
    name = f"PyTorch {torch.__version__}"
    logger.info("slices are computed by %s on %s in %s%s", name, device, precision, form)
    # folded on the CPU, where convolutions are in float32 and the check of the folding is exact
    network = accelerated(detector.cpu().folded(), device, precision, compiled=compiled)
    detector.to(device)
    return network


def _exported(
    detector: MCMIADDetector, engine: Engine, source: Path, precision: Precision
) -> SliceWorkers:
    """The engine that was asked for, or an error."""
    if engine == "onnxruntime" and precision != "float32":
        raise ExportError(
            "onnxruntime computes in float32 on a CPU; for bfloat16 take openvino or torch."
        )
    if not source.is_file():
        raise ExportError(
            f"engine {engine} runs {source}, which does not exist; write it with: "
            f"mcmiad export MODEL {source}"
        )
    opened = _opened(engine, source, precision)
    if not _belongs(opened, detector):
        raise ExportError(
            f"{source} was exported from another model than the one in this bundle; export again: "
            f"mcmiad export MODEL {source}"
        )
    return _announced(opened)


def _fastest(detector: MCMIADDetector, source: Path, precision: Precision) -> nn.Module:
    """What ``"auto"`` means on a CPU, never an engine whose numbers could be another model's."""
    installed = [engine for engine in FASTEST[precision] if importlib.util.find_spec(engine)]
    if not source.is_file() or not installed:
        logger.info(
            "there is no exported file or no engine for it, which is faster on a CPU: pip install "
            "mcmiad-monai[export], then train again or mcmiad export MODEL %s",
            source.name,
        )
        return _on_cpu(detector, precision)
    try:
        opened = _opened(installed[0], source, precision)
    except ExportError as error:
        logger.warning("PyTorch computes, since %s", error)
        return _on_cpu(detector, precision)
    if _belongs(opened, detector):
        return _announced(opened)
    logger.warning(
        "%s was exported from another model than the one in this bundle, or not by mcmiad, so "
        "PyTorch computes; export again: mcmiad export MODEL %s",
        source.name,
        source.name,
    )
    return _on_cpu(detector, precision)


def _belongs(opened: Opened, detector: MCMIADDetector) -> bool:
    """Whether a file was exported from this model, by its metadata."""
    try:
        stored = json.loads(opened.metadata or "{}").get("model_sha256")
    except (ValueError, AttributeError, RecursionError):  # not ours
        return False
    return bool(stored == description(detector)["model_sha256"])


def _announced(opened: Opened) -> SliceWorkers:
    logger.info("slices are computed by %s in %s", opened.workers.name, opened.precision)
    return opened.workers


def _opened(engine: Engine, path: Path, precision: Precision) -> Opened:
    library = _imported(engine)
    if is_damaged(path):
        raise ExportError(
            f"{path} is damaged: its digest is another than when it was written; export again: "
            f"mcmiad export MODEL {path}"
        )
    if engine == "onnxruntime":
        return _onnxruntime(library, path)
    return _openvino(library, path, precision)


@contextlib.contextmanager
def _reading(engine: Engine, path: Path) -> Iterator[None]:
    """Around what an engine does with a file: an error in it says how to get a good one."""
    try:
        yield
    except Exception as error:  # of a type of the engine's own
        problem = str(error).strip().split("\n", 1)[0]
        raise ExportError(
            f"{engine} cannot open {path} ({problem}); export again: mcmiad export MODEL {path}"
        ) from error


def _onnxruntime(runtime: Any, path: Path) -> Opened:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # a worker has one core
    with _reading("onnxruntime", path):
        session = runtime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def run(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run(None, {"image": images})[0]
        return found

    metadata = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
    # as fast with one slice as with two, in less memory
    workers = SliceWorkers(run, f"onnxruntime {runtime.__version__}", slices_a_worker=1)
    return Opened(workers, "float32", metadata)


def _openvino(library: Any, path: Path, precision: Precision) -> Opened:
    settings = {
        # OpenVINO takes bfloat16 by default where the processor has it
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": torch.get_num_threads(),  # a worker has one core
    }
    core = library.Core()
    with _reading("openvino", path):
        model = core.read_model(str(path))
        compiled = core.compile_model(model, "CPU", settings)
    place = ["framework", METADATA_KEY]
    metadata = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else ""
    requests = _Requests(compiled)
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    used = {"f32": "float32", "bf16": "bfloat16"}.get(hint, hint)
    if used != precision:
        logger.warning(
            "this processor has no instructions for %s, so OpenVINO computes in %s", precision, used
        )

    def run(images: np.ndarray) -> np.ndarray:
        return np.array(requests.mine().infer([images], share_inputs=True)[0], dtype=np.float32)

    return Opened(SliceWorkers(run, f"openvino {library.__version__}"), used, metadata)


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


def _give_back_memory() -> None:
    """Hand the system what building and reading a model used and freed.

    glibc keeps it for later, though activations seldom fit in: half of what a process holds then.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
