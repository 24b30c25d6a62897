"""The slice network as one file for other runtimes: ONNX or TorchScript, thresholds inside.

Both take any number of slices at once. Configuration, calibration and provenance go into the file's
metadata under the key ``mcmiad``, as JSON.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from mcmiad_monai.files.reading import file_sha256
from mcmiad_monai.files.writing import replace_atomically
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.networks.weights import tensors_sha256

logger = logging.getLogger(__name__)

ExportFormat = Literal["onnx", "torchscript"]

#: Suffix of each format.
SUFFIXES: dict[str, ExportFormat] = {".onnx": "onnx", ".ts": "torchscript"}
#: Metadata key, and name of the extra file in TorchScript.
METADATA_KEY = "mcmiad"
#: The last bytes of an ONNX file, before 64 digits: the head of a metadata entry ``mcmiad_sha256``
#: in protobuf, whose messages may be appended to. Its value is the SHA-256 of all bytes before.
SEAL = b"\x72\x51\x0a\x0dmcmiad_sha256\x12\x40"
#: What writing and checking ONNX needs, all of the extra ``export``.
ONNX_MODULES = ("onnx", "onnxscript", "onnxruntime")
#: Loggers of what writes ONNX; their messages do not help a user.
CHATTY = ("onnx_ir", "onnxscript", "torch.onnx")
#: Slices of the example with which a graph is captured; two, since one would be taken for fixed.
EXAMPLE_SLICES = 2
#: Largest difference of a heatmap of an exported model from that of the network, in units of the
#: pixel threshold, or of the hottest pixel where that is hotter.
EXPORT_TOLERANCE = 1e-4


class ExportError(RuntimeError):
    """A model cannot be exported, or an exported file cannot be used."""


def export_model(detector: MCMIADDetector, path: str | Path, *, size: int = 224) -> Path:
    """Write a network to the format that the file's suffix names, and check it against PyTorch.

    Parameters
    ----------
    detector : MCMIADDetector
        Of a package.
    path : path
        Ends in ``.onnx`` or ``.ts``.
    size : int
        Side of the slices in pixels; fixed in the file.

    Raises
    ------
    ExportError
        If the suffix is not known, a package is missing, or the exported model gives other
        heatmaps.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise ExportError(
            f"{target.name} does not name a format; end the file in one of {sorted(SUFFIXES)}."
        )
    detector = detector.cpu().eval()
    # smooth, as anatomy is: white noise is so far from what a model knows that rounding grows
    coarse = torch.rand(
        EXAMPLE_SLICES, detector.channels, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    example = functional.interpolate(coarse, (size, size), mode="bilinear")
    write = _write_onnx if SUFFIXES[target.suffix] == "onnx" else _write_torchscript
    with torch.no_grad():
        replace_atomically(target, lambda partial: write(detector, example, partial))
    return target


class Exporter:
    """Export a trained package beside it, so that inference on CPUs is fast without asking.

    Parameters
    ----------
    model : path
        The package ``model.pt``; the export is ``model.onnx`` in the same folder.
    when : {"auto", True, False}
        ``"auto"`` exports after training on a CPU, if the extra ``export`` is installed; a model
        that was trained on a GPU is taken to be used on one.
    device : str or torch.device
        On which the model is trained.

    Raises
    ------
    ValueError
        If `when` is none of the three.
    """

    def __init__(
        self,
        model: str | Path,
        when: Literal["auto"] | bool = "auto",
        device: str | torch.device = "cpu",
    ) -> None:
        if when not in ("auto", True, False):
            raise ValueError(f"export is {when!r}; it must be auto, true or false.")
        self.model, self.when, self.device = Path(model), when, torch.device(device)

    def check(self) -> None:
        """Find out before the training whether the export that is asked for can be made.

        Raises
        ------
        ExportError
            If `when` is true and the extra is not installed.
        """
        missing = _missing_modules()
        if self.when is True and missing:
            raise _needs_extra(missing[0])

    def run(self) -> Path | None:
        """Export; returns the file, or None if there is none to be made.

        With ``"auto"`` a failure is a warning: the package, for which the training was, is there.

        Raises
        ------
        ExportError
            As `export_model`, if `when` is true.
        """
        by_itself = self.device.type == "cpu" and not _missing_modules()
        if not (by_itself if self.when == "auto" else self.when):
            return None
        try:
            path = export_model(load_package(self.model), self.model.with_suffix(".onnx"))
        except (ExportError, RuntimeError, OSError) as error:
            if self.when is True:
                raise
            logger.warning("%s is ready, but was not exported: %s", self.model.name, error)
            return None
        logger.info("exported: %s, which engine: auto takes on CPUs", path)
        return path


def description(detector: MCMIADDetector) -> dict[str, Any]:
    """Metadata of an exported file: ``config``, ``calibration`` and ``provenance``.

    ``model_sha256`` is the digest of all weights, by which the file is matched with its model.
    """
    return {**detector.description, "model_sha256": tensors_sha256(detector.weights())}


def seal(path: Path) -> None:
    """Append the digest of an ONNX file to it, as metadata that every reader takes."""
    digest = file_sha256(path)
    with path.open("ab") as file:
        file.write(SEAL + digest.encode())


def is_damaged(path: Path) -> bool:
    """Whether a file is not as it was sealed; False for files of older versions, without digest."""
    length = len(SEAL) + 64
    with path.open("rb") as file:
        file.seek(-min(length, path.stat().st_size), 2)
        found = file.read()
    if not found.startswith(SEAL):
        return False
    return found[len(SEAL) :] != file_sha256(path, without_last=length).encode()


def _write_onnx(detector: MCMIADDetector, example: torch.Tensor, path: Path) -> None:
    if missing := _missing_modules():
        raise _needs_extra(missing[0])
    import onnx
    import onnxruntime

    output = io.StringIO()
    with contextlib.redirect_stdout(output), _quiet():
        program = torch.onnx.export(
            detector.folded().eval(),
            (example,),
            dynamo=True,
            # without the exporter's passes it takes a quarter less, but ONNX Runtime 1.23, the last
            # for Python 3.10, then fuses a product wrongly and refuses the file
            optimize=True,
            input_names=["image"],
            output_names=["pred"],
            dynamic_shapes={"image": {0: torch.export.Dim("slices", min=1)}},
        )
    if program is None:
        raise ExportError(f"PyTorch gave no ONNX program: {output.getvalue()}")
    program.save(str(path), external_data=False)
    model = onnx.load(str(path))
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(description(detector))
    onnx.save(model, str(path))
    seal(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, EXAMPLE_SLICES):
        given = example[:count]
        (found,) = session.run(None, {"image": given.numpy()})
        _require_equal(torch.from_numpy(found), detector(given), path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings of its own deprecations and its line for every node."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _missing_modules() -> list[str]:
    return [name for name in ONNX_MODULES if importlib.util.find_spec(name) is None]


def _needs_extra(module: str) -> ExportError:
    return ExportError(
        f"{module} is not installed; ONNX needs the extra: pip install mcmiad-monai[export]"
    )


def _write_torchscript(detector: MCMIADDetector, example: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes that the tracer takes for constants are constant
        traced = torch.jit.trace(detector.folded().eval(), example, check_trace=False)
    extra = {METADATA_KEY: json.dumps(description(detector))}
    torch.jit.save(traced, str(path), _extra_files=extra)
    loaded = torch.jit.load(str(path))
    _require_equal(loaded(example[:1]), detector(example[:1]), path)


def _require_equal(found: torch.Tensor, expected: torch.Tensor, path: Path) -> None:
    scale = max(1.0, float(expected.abs().max()))
    error = float((found - expected).abs().max()) / scale
    if not error <= EXPORT_TOLERANCE:
        raise ExportError(
            f"the model exported to {path.name} gives heatmaps that differ by {error:.2g} from "
            f"PyTorch's; at most {EXPORT_TOLERANCE:g} is needed. Nothing was kept."
        )
