"""Files of the model hub: cached or downloaded; an unreachable hub fails within seconds."""

from __future__ import annotations

from pathlib import Path

HUB_TIMEOUT = 5.0
"""Seconds in which the hub must answer; the client itself tries again and again."""


def hub_file(repository: str, file: str) -> Path:
    """Path of a file of the hub: that of the cache, or a download if the hub answers in time.

    Raises
    ------
    OSError
        If the hub cannot be reached, or does not give the file.
    """
    from huggingface_hub import hf_hub_download

    found = cached_file(repository, file)
    if found is not None:
        return found
    require_hub()
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # of requests or of httpx, by the version of the client
        raise OSError(f"{type(error).__name__} for {repository}/{file}") from error


def cached_file(repository: str, file: str) -> Path | None:
    """Path of a file of the hub in the cache of this machine."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, local_files_only=True))
    except (OSError, ValueError):
        return None


def require_hub() -> None:
    """Ask the hub for an answer.

    Raises
    ------
    OSError
        If there is none in time.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception as error:  # of requests or of httpx, by the version of the client
        raise OSError(f"{type(error).__name__} at {constants.ENDPOINT}") from error
