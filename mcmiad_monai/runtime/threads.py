"""Threads in each of which PyTorch uses its share of the cores."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def pool_of_threads(workers: int, name: str, *, cores: int = 1) -> ThreadPoolExecutor:
    """Threads in each of which PyTorch uses so many cores; other threads keep what they had.

    PyTorch's setting is that of the calling thread and of all that begin later, so that it is put
    back once every worker has begun.

    Parameters
    ----------
    workers : int
        Number of threads; all have begun when this returns.
    name : str
        What the threads' names begin with.
    cores : int
        Threads that PyTorch uses in each of them.

    Raises
    ------
    RuntimeError
        If the system does not give that many threads.
    """
    before = torch.get_num_threads()
    begun = threading.Barrier(workers + 1)

    def begin() -> None:
        torch.set_num_threads(cores)
        torch.get_num_threads()  # asked once, a thread no longer follows the setting of others
        begun.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix=name, initializer=begin)
    try:
        for _ in range(workers):
            pool.submit(int)
        begun.wait()
    except RuntimeError:
        begun.abort()  # a thread could not begin; the others do not wait for it forever
        raise
    finally:
        torch.set_num_threads(before)
    return pool
