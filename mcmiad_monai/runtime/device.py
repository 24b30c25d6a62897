"""The device that computes."""

from __future__ import annotations

import torch


def choose_device(device: str | torch.device | None) -> torch.device:
    """Device to compute on; a GPU if there is one, where none is named.

    Raises
    ------
    ValueError
        If the device is not known or not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        message = f"device {device!r} is not known; choose cpu, cuda, cuda:1 or mps."
        raise ValueError(message) from error
    count = torch.cuda.device_count()
    absent = chosen.type == "cuda" and (chosen.index or 0) >= count
    if absent or (chosen.type == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(
            f"device {device} is not there: this machine has {count} CUDA GPUs that PyTorch can "
            "use. Choose another device, or leave it out."
        )
    return chosen
