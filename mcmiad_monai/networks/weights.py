"""Files of weights: reading, digests, and errors that say which file is needed."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mcmiad_monai.files import file_sha256

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
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read as weights ({_first_line(error)}). Needed is a safetensors "
            "file, or a torch checkpoint that holds tensors only."
        ) from error
    return _unwrapped(content, path)


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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
