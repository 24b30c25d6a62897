"""Whether there is room: tried before anything is computed, and told in words when it ends."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mcmiad_monai.files.leftovers import partial_path, remove_leftovers

#: What the system says where there is no room: disk, quota, largest file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Free bytes of a disk that is full, where a library does not say why it could not write.
FULL_BELOW = 1 << 20


class OutputError(ValueError):
    """Nothing can be written into a folder, or not as much as is needed."""


class DiskFullError(OSError):
    """A file could not be written because there is no room for it."""


@contextmanager
def room_for(target: Path) -> Iterator[None]:
    """Raise `DiskFullError` where a file in `target` is not written because there is no room."""
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(target.parent).free
        if not _says_full(error) and (isinstance(error, OSError) or free >= FULL_BELOW):
            raise
        raise DiskFullError(
            f"there is no room for {target} (its disk has {_size(free)} free; a quota or a limit "
            "of file sizes may be lower). What was written before is kept. Make room, or name "
            "another output folder."
        ) from error


def _says_full(error: BaseException | None) -> bool:
    """Whether an error, or what raised it, is the system's word for no room."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return error is not None and _says_full(error.__cause__ or error.__context__)


def _size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def prepare_output(folder: str | Path, *, room: int = 0, levels: int = 1) -> None:
    """Try a folder before anything is computed, and remove what killed runs left in it.

    Parameters
    ----------
    folder : path
        Need not exist; what is made to try it is removed again.
    room : int
        Bytes that will be written, roughly.
    levels : int
        Of folders below it in which left-overs of killed runs are looked for.

    Raises
    ------
    OutputError
        If it cannot be made, is not writable, or has too little room.
    """
    folder, made = Path(folder), []
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, levels=levels)
        trial = partial_path(folder / "trial")
        try:
            trial.write_bytes(b"trial")
        finally:
            trial.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        what = "has no room left" if error.errno in FULL else f"cannot be used ({error.strerror})"
        raise OutputError(
            f"the output folder {folder} {what}; a folder is needed in which files can be written. "
            "Name another one, or change its rights or its disk."
        ) from error
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()
    if free < room:
        raise OutputError(
            f"the output folder {folder} has {_size(free)} free, and about {_size(room)} will be "
            "written. Make room, or name a folder on another disk."
        )
