"""Inference on the CPU in several threads, each with slices of its own.

Threads that share a slice wait for each other in every layer, and its activations leave the caches
of the cores. Threads with slices of their own avoid both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.folding import fold_batch_norms
from mcmiad_monai.runtime.gpu import ACCELERATOR_SLICES, accelerated
from mcmiad_monai.runtime.precision import Precision

#: Slices that a worker takes at a time: the activations of more leave the caches of a core.
SLICES_A_WORKER = 2
#: Portions for each worker in one call, so that no worker is idle for long at its end.
PORTIONS_A_CALL = 4
#: Fewest slices in one call of PyTorch on a CPU; with more threads, one slice for each.
CPU_SLICES = 4

Run = Callable[[np.ndarray], np.ndarray]


def slices_at_once(network: Any, device: torch.device) -> int:
    """Number of slices in one call with which a network is fast.

    It is the network's own attribute of this name, if it has one. On a CPU PyTorch is fastest with
    few slices: the activations of many leave the caches (``benchmarks/engines.py --batches``). A
    GPU is fastest with many.
    """
    own = getattr(network, "slices_at_once", None)
    if own is not None:
        return int(own)
    return max(CPU_SLICES, torch.get_num_threads()) if device.type == "cpu" else ACCELERATOR_SLICES


class SliceWorkers(nn.Module):
    """A slice network on the CPU, whose slices are shared by threads.

    Parameters
    ----------
    run : callable
        Maps images (n, 1, S, S) to an array (n, …), both float32. Called in several threads, each
        of which uses one core.
    name : str
        Library that computes, and its version; for messages.
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
        self._pool = _one_core_threads(workers)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 1, S, S); the output (B, …) comes back on their device."""
        images = np.ascontiguousarray(image.detach().cpu().numpy(), dtype=np.float32)
        count = self.slices_a_worker
        starts = range(0, len(images), count)
        parts = self._pool.map(self.run, [images[s : s + count] for s in starts])
        return torch.from_numpy(np.concatenate(list(parts))).to(image.device)


def torch_run(network: nn.Module, precision: Precision = "float32") -> Run:
    """Function that runs a PyTorch network for `SliceWorkers`, in its fastest memory layout."""
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


def _one_core_threads(workers: int) -> ThreadPoolExecutor:
    """Threads in each of which PyTorch uses one core; other threads keep their setting.

    PyTorch's setting is that of the calling thread and of all that start later, so that it is put
    back once every worker has started.

    Raises
    ------
    RuntimeError
        If the system cannot start so many threads.
    """
    before = torch.get_num_threads()
    started = threading.Barrier(workers + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # once it was read, a thread no longer follows others' settings
        started.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="slices", initializer=start)
    try:
        for _ in range(workers):
            pool.submit(int)
        started.wait()
    except RuntimeError:
        started.abort()  # a thread could not start; the others do not wait for it forever
        raise
    finally:
        torch.set_num_threads(before)
    return pool
