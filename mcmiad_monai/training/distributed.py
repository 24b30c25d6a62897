"""Joining a group of processes, and the form in which a network trains.

Ranks, waiting and leaving are ignite's (`ignite.distributed`). Every process holds the whole head
and takes its share of each batch; gradients are averaged by PyTorch's DistributedDataParallel. On a
GPU, a process that is alone runs its steps as CUDA graphs.
"""

from __future__ import annotations

import os
from datetime import timedelta

import ignite.distributed as idist
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mcmiad_monai.networks.head import MCMIADHead
from mcmiad_monai.runtime.gpu import GraphedHead
from mcmiad_monai.runtime.precision import require_gpu_to_compile

#: The others wait while the first process computes the features of a whole cohort.
TIMEOUT = timedelta(hours=12)


def start(backend: str | None = None) -> None:
    """Join the group of ``torchrun``: NCCL where there are GPUs, gloo elsewhere.

    ignite alone would take a process that was started by itself for a group of one.

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
    idist.initialize(chosen, timeout=TIMEOUT)


def replicate(
    network: nn.Module, device: str | torch.device, *, compiled: bool = False
) -> nn.Module:
    """Put a network on a device in the form that trains fastest, and average over a group.

    Parameters
    ----------
    network : nn.Module
        Moved in place. Use its own state dict, which has no wrapper's prefix. An `MCMIADHead`
        trains as CUDA graphs on a GPU of one process; any other network stays as it is.
    device : str or torch.device
    compiled : bool
        Of a head that is trained as graphs: see `GraphedHead`.

    Raises
    ------
    ValueError
        If the head is to be compiled and is not trained as graphs.
    """
    place = torch.device(device)
    alone = idist.get_world_size() == 1
    require_gpu_to_compile(place, compiled)
    if compiled and not alone:
        raise ValueError("compile is for training in one process; leave compile false.")
    network = network.to(place)
    if alone:
        if place.type == "cuda" and isinstance(network, MCMIADHead):
            return GraphedHead(network, compiled=compiled)
        return network
    # ignite's auto_model would take all GPUs of one process, and move the network by itself
    return DistributedDataParallel(network, device_ids=[place] if place.type == "cuda" else None)
