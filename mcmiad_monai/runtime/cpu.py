"""Slices through a network in several threads, each with slices of its own.

Cores that share a slice wait for each other in every layer, and what they work on leaves their
caches; cores with a slice each do neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.folding import fold_batch_norms
from mcmiad_monai.runtime.gpu import ACCELERATOR_SLICES, accelerated
from mcmiad_monai.runtime.precision import Precision
from mcmiad_monai.runtime.threads import pool_of_threads

#: Slices that one worker takes at a time: the activations of more leave the caches of a core.
SLICES_A_WORKER = 2
#: Portions for each worker in one call, so that none idles long at its end.
PORTIONS_A_CALL = 4
#: Slices in one call of PyTorch on a CPU, where there are no more threads than that.
CPU_SLICES = 4

Run = Callable[[np.ndarray], np.ndarray]


def slices_at_once(network: Any, device: torch.device) -> int:
    """Slices in one call that a network is fast with.

    An engine tells its own number. On a CPU PyTorch is fastest with few: the activations of many
    leave the caches (``benchmarks/engines.py --batches``). An accelerator wants to be filled.
    """
    told = getattr(network, "slices_at_once", None)
    if told is not None:
        return int(told)
    return max(CPU_SLICES, torch.get_num_threads()) if device.type == "cpu" else ACCELERATOR_SLICES


class SliceWorkers(nn.Module):
    """A slice network on the CPU, computed in portions by threads.

    Parameters
    ----------
    run : callable
        Maps images (n, 1, S, S) to an array (n, …), both float32, in any thread, with one core.
    name : str
        Of what computes, and its version, for people.
    workers : int, optional
        Calls of `run` at the same time; by default the threads that PyTorch would use.
    slices_a_worker : int
        Slices in one call of `run`.

    Attributes
    ----------
    slices_at_once : int
        Slices in a call that keep all workers busy.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        workers: int | None = None,
        *,
        slices_a_worker: int = SLICES_A_WORKER,
    ) -> None:
        super().__init__()
        workers = workers or torch.get_num_threads()
        self.run, self.name, self.slices_a_worker = run, name, slices_a_worker
        self.slices_at_once = workers * slices_a_worker * PORTIONS_A_CALL
        self._pool = pool_of_threads(workers, "slices")

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 1, S, S); the output (B, …) comes back on their device."""
        images = np.ascontiguousarray(image.detach().cpu().numpy(), dtype=np.float32)
        count = self.slices_a_worker
        starts = range(0, len(images), count)
        parts = self._pool.map(self.run, [images[s : s + count] for s in starts])
        return torch.from_numpy(np.concatenate(list(parts))).to(image.device)


def torch_run(network: nn.Module, precision: Precision = "float32") -> Run:
    """How a worker runs a network of PyTorch, in the layout that convolutions are fastest in."""
    network = network.to(memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            output: Tensor = network(torch.from_numpy(images))
        return output.float().numpy()

    return run


def encoding(encoder: FrozenEncoder, device: torch.device) -> nn.Module:
    """The fastest form of an encoder on a device: the same features, (B, C, grid, grid)."""
    # folded on the CPU, where the check of the folding is exact
    folded = fold_batch_norms(encoder.cpu())
    encoder.to(device)
    if device.type != "cpu":
        return accelerated(folded, device)
    return SliceWorkers(torch_run(folded), "PyTorch")
