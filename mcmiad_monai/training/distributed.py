"""One process or many: who writes, who waits, and how the head is replicated.

Every process holds the whole head and takes its share of each batch; gradients are averaged by
PyTorch's DistributedDataParallel. Without an initialised process group everything here is what one
process does. On a GPU, a process that is alone runs its steps as CUDA graphs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mcmiad_monai.networks.head import MCMIADHead
from mcmiad_monai.runtime.gpu import GraphedHead
from mcmiad_monai.runtime.precision import require_gpu_to_compile

#: The others wait while the first process computes the features of a whole cohort.
TIMEOUT = timedelta(hours=12)


def is_initialised() -> bool:
    """Whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process in its group, from 0."""
    return dist.get_rank() if is_initialised() else 0


def world_size() -> int:
    """Processes in the group."""
    return dist.get_world_size() if is_initialised() else 1


def is_main() -> bool:
    """Whether this process is the one that validates and writes."""
    return rank() == 0


def start(backend: str | None = None) -> None:
    """Join the group that ``torchrun`` describes: NCCL where there are GPUs, gloo elsewhere.

    Raises
    ------
    RuntimeError
        If the process was not started by ``torchrun``.
    """
    if "RANK" not in os.environ:
        raise RuntimeError(
            "multi_gpu_train.yaml needs several processes, and this one was started alone. Start "
            "it with: torchrun --standalone --nproc_per_node=2 -m monai.bundle run …"
        )
    chosen = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(device())  # gathering objects goes through the current GPU
    dist.init_process_group(chosen, timeout=TIMEOUT)


def finish() -> None:
    """Leave the group, after all have come here."""
    if is_initialised():
        dist.barrier()
        dist.destroy_process_group()


def device() -> torch.device:
    """GPU of this process on its machine, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process through alone, and the others when it is done or has failed."""
    try:
        if not is_main():
            dist.barrier()
        yield
    finally:
        if is_main() and is_initialised():
            dist.barrier()


def replicate(
    network: nn.Module, place: str | torch.device, *, compiled: bool = False
) -> nn.Module:
    """Put a network on a device in the form that trains fastest, and average over a group.

    Parameters
    ----------
    network : nn.Module
        Moved in place. Use its own state dict, which has no wrapper's prefix. An `MCMIADHead`
        trains as CUDA graphs on a GPU of one process; any other network stays as it is.
    place : str or torch.device
        Where to.
    compiled : bool
        Of a head that is trained as graphs: see `GraphedHead`.

    Raises
    ------
    ValueError
        If the head is to be compiled and is not trained as graphs.
    """
    where = torch.device(place)
    require_gpu_to_compile(where, compiled)
    if compiled and is_initialised():
        raise ValueError("compile is for training in one process; leave compile false.")
    network = network.to(where)
    if not is_initialised():
        if where.type == "cuda" and isinstance(network, MCMIADHead):
            return GraphedHead(network, compiled=compiled)
        return network
    return DistributedDataParallel(network, device_ids=[where] if where.type == "cuda" else None)
