"""Files of weights: reading, digests, and errors that say which file is needed."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mcmiad_monai.files.reading import file_sha256

WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_state")
"""Names under which checkpoints nest their state dict."""


class WeightsError(RuntimeError):
    """Weights are missing, damaged or of another model; the message says what to bring."""


def read_state_dict(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a torch checkpoint of plain tensors.

    Parameters
    ----------
    path : Path
        ``.safetensors``, or anything that `torch.load` reads with ``weights_only=True``.
    sha256 : str, optional
        Expected digest of the file.

    Raises
    ------
    WeightsError
        If the file is missing, is not such a file, or has another digest.
    """
    require_file(path, sha256=sha256)
    try:
        content = load_file(path) if path.suffix == ".safetensors" else load_checkpoint(path)
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(
            f"{path} cannot be read as weights ({in_short(error)}). Needed is a safetensors "
            "file, or a torch checkpoint that holds tensors only."
        ) from error
    state = _unwrapped(content, path)
    check_tensors(state, path)
    return state


def load_checkpoint(path: Path) -> object:
    """Content of a torch checkpoint, on the CPU; code in it does not run.

    Raises
    ------
    WeightsError
        If it is an archive that unpacks to more than the file has: PyTorch packs nothing.
    Exception
        Of any kind, if it is no checkpoint.
    """
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\3\4"
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > (size := path.stat().st_size):
            raise WeightsError(
                f"{path} has {size} bytes and unpacks to {unpacked}; a checkpoint of PyTorch is "
                "not packed. Bring the original file."
            )
    return torch.load(path, map_location="cpu", weights_only=True)


def check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not plain finite numbers, as many as their storage holds.

    Raises
    ------
    WeightsError
        Naming the first.
    """
    for name, tensor in tensors.items():
        if problem := _problem(tensor):
            raise WeightsError(
                f"{path} is damaged, or no file of weights: {name[:100]!r} {problem}. Bring the "
                "file again."
            )


def _problem(tensor: Tensor) -> str | None:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.is_nested or tensor.is_complex():
        return "is no plain tensor of real numbers"
    # one number that is repeated along an axis takes no room in the file
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"has the shape {tuple(tensor.shape)}, and fewer numbers are stored"
    if tensor.is_floating_point() and tensor.numel():
        low, high = tensor.detach().aminmax()  # NaN is passed on
        if not (torch.isfinite(low) and torch.isfinite(high)):
            return "has values that are not finite"
    return None


def require_file(path: Path, *, sha256: str | None = None) -> str:
    """SHA-256 of a file; a `WeightsError` if it is missing or has another digest than expected."""
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}; give the path of an existing file.")
    found = file_sha256(path)
    if sha256 is not None and found != sha256.lower():
        raise WeightsError(
            f"{path} has the SHA-256 {found}, but {sha256} was expected. It is damaged or another "
            "file: bring the right one, or leave out the digest if this file is intended."
        )
    return found


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_keys(
    loaded: Mapping[str, Tensor],
    *,
    needed: Mapping[str, Tensor],
    known: set[str],
    model: str,
    source: str,
) -> None:
    """Refuse weights that lack a needed tensor, or hold one that the model does not know.

    Parameters
    ----------
    loaded : mapping of str to Tensor
        What the file holds.
    needed : mapping of str to Tensor
        State of the truncated model; counters of BatchNorm may be missing.
    known : set of str
        Names in the whole model, whose later layers are not needed.
    model, source : str
        Names for the message.

    Raises
    ------
    WeightsError
        Naming some of the tensors that do not fit.
    """
    missing = {k for k in needed if k not in loaded and not k.endswith("num_batches_tracked")}
    foreign = set(loaded) - known - set(needed)
    shapes = [k for k in needed if k in loaded and loaded[k].shape != needed[k].shape]
    problems = [
        f"{what} {_some(names)}"
        for what, names in (
            ("lacks", missing),
            ("has unknown", foreign),
            ("has other sizes of", shapes),
        )
        if names
    ]
    if problems:
        raise WeightsError(
            f"{source} does not hold the weights of {model}: it {', and '.join(problems)}. "
            "Bring the weights of this model, or name the model that they belong to."
        )


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(
            f"{path} holds no state dict (a mapping of names to tensors), plain or under "
            f"{', '.join(WRAPPERS)}."
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _some(names: set[str] | list[str], limit: int = 4) -> str:
    listed = ", ".join(sorted(names)[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"


def in_short(error: Exception) -> str:
    """First line of an error's message, and its kind where the message says little by itself."""
    text = str(error).strip().split("\n", 1)[0][:300]
    return (
        text if isinstance(error, (ValueError, RuntimeError)) else f"{type(error).__name__}: {text}"
    )
