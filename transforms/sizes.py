"""How large an image says that it is, asked before anything is unpacked."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from isal import igzip

from mcmiad_monai.transforms.checks import VolumeError

MAX_VOXELS = 500_000_000
"""Most voxels that are read if nothing else is asked for: 2·10⁹ bytes as float32."""

MAX_EXTENSIONS = 1 << 26
"""Most bytes of extensions between the header and the voxels of a packed NIfTI file."""

DEFLATED = b"1.2.840.10008.1.2.1.99"
"""Transfer syntax of DICOM files of which all but the first group is packed."""

MAX_FIRST_GROUP = 1 << 20
"""Most bytes of the first group of a DICOM file, which has the transfer syntax."""

NIFTI1_BYTES, NIFTI2_BYTES = 348, 540

DATA_FILE = re.compile(rb"^(?:data ?file|ElementDataFile)\s*[:=]\s*(.*?)\s*$", re.I | re.M)
"""Line of a NRRD or MetaImage header that says where the voxels are, and what it says."""


def check_size(shape: Sequence[int], path: Path, limit: int) -> None:
    """Refuse an image that says it is larger than what is to be read.

    Raises
    ------
    VolumeError
        If the product of its axes exceeds the limit.
    """
    voxels = math.prod(int(size) for size in shape)
    if voxels > limit:
        raise VolumeError(
            f"{path} has, by its header, {voxels} voxels {tuple(int(size) for size in shape)}; at "
            f"most {limit} are read. If the study is as large as that, raise the limit "
            f"(--max-voxels {voxels}); if not, export it again."
        )


def check_packed_header(path: Path, limit: int) -> None:
    """Refuse a packed NIfTI or MGH file by the size in its header, reading as much as that.

    nibabel unpacks extensions, and goes to the end of the voxels of MGH, to read a header.

    Raises
    ------
    VolumeError
        If its size, or that of its extensions, is too large.
    """
    with igzip.open(path, "rb") as file:
        head = file.read(NIFTI2_BYTES + 4)
        if path.suffix.lower() == ".mgz":
            check_size(_ints(">4i", head, 4), path, limit)
            return
        for order in "<>":
            size = _ints(f"{order}i", head, 0)
            if size == (NIFTI1_BYTES,):
                dims = _ints(f"{order}8h", head, 40)
                offset = _ints(f"{order}f", head, 108)
            elif size == (NIFTI2_BYTES,):
                dims, offset = _ints(f"{order}8q", head, 16), _ints(f"{order}q", head, 168)
            else:
                continue
            check_size(dims[1 : 1 + max(dims[0], 0)] if dims else (), path, limit)
            if head[size[0] : size[0] + 1] not in (b"", b"\0"):
                end = int(offset[0]) if offset and math.isfinite(offset[0]) else 0
                _check_extensions(file, path, start=size[0] + 4, end=end, order=order)


def _check_extensions(file: IO[bytes], path: Path, *, start: int, end: int, order: str) -> None:
    """Go over the extensions without unpacking more than their limit."""
    place = start
    while end < start or place + 16 <= end:
        file.seek(place)
        found = _ints(f"{order}i", file.read(8), 0)
        if not found or found[0] < 16:
            return  # their end, or damage that nibabel reports
        place += found[0]
        if place - start > MAX_EXTENSIONS:
            raise VolumeError(
                f"{path} has extensions of {place - start} bytes or more before its voxels, by its "
                f"header; at most {MAX_EXTENSIONS} are read. Export the study again."
            )


def check_deflated(path: Path, limit: int) -> None:
    """Refuse a deflated DICOM file that unpacks to more than so many float32, unpacking in parts.

    Raises
    ------
    VolumeError
        If it does, or has no length of its first group.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        if head[128:132] != b"DICM":
            return
        has_length = head[132:136] == b"\2\0\0\0" and len(head) >= 144
        length = _ints("<I", head, 140)[0] if has_length else 0
        if length > MAX_FIRST_GROUP:
            raise VolumeError(f"{path} has a first group of {length} bytes. Export it again.")
        if DEFLATED not in head + file.read(length):
            return
        if not has_length:
            raise VolumeError(f"{path} lacks the length of its first group. Export it again.")
        file.seek(144 + length)
        unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while packed := file.read(1 << 16):
            while packed:
                total += len(unpacker.decompress(packed, 1 << 20))
                packed = unpacker.unconsumed_tail
                if total > 4 * limit:
                    raise VolumeError(
                        f"{path} unpacks to more than {4 * limit} bytes. If the study is as large "
                        f"as that, raise the limit (--max-voxels {2 * limit})."
                    )


def check_data_file(path: Path) -> None:
    """Refuse a NRRD or MetaImage header whose voxels are outside of its own folder.

    Raises
    ------
    VolumeError
        If it names a path, or a pattern or list of files, which could be any.
    """
    with path.open("rb") as file:
        head = file.read(1 << 16)
    end = re.search(rb"\r?\n\r?\n|ElementDataFile[^\n]*\n", head, re.I)
    for found in DATA_FILE.findall(head[: end.end() if end else None]):
        name = found.decode(errors="replace")
        if name.upper().startswith("LIST") or any(mark in name for mark in "/\\%"):
            raise VolumeError(
                f"{path} has its voxels in {name!r}; a file beside it, by its name alone, is "
                "needed. Write image and header into one file."
            )


def _ints(form: str, head: bytes, offset: int) -> tuple[Any, ...]:
    """Numbers of a header, none where it is cut short."""
    if len(head) < offset + struct.calcsize(form):
        return ()
    return struct.unpack_from(form, head, offset)
