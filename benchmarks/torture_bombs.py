"""Bombs, files whose headers ask for more memory than there is, and disks that are full.

A bomb fails its study, the others are done, and the process needs little memory. A full disk is
told in words, what is written stays whole, and the run can be continued.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torture_base import Bench, Limits, Try, failed_in, tree
from torture_dicom import DEFLATED, header, write_dicom
from torture_model import INFER, MEMORY, Model, model, small_cohort

BLOCK = 1 << 24  # bytes of zeros that are compressed once
#: Beyond what a command has anyhow: address space, and resident memory above a run without bomb.
MEMORY_LIMIT, GROWTH = 3 << 30, 800
SECONDS = 600.0


def run_bombs(bench: Bench) -> None:
    """All bombs."""
    of = model(bench)
    names = list(BOMBS)
    with bench.attempt("bombs", "none", "infer, to know its memory") as (one, folder):
        of.good(folder / "in")
        done = bench.run(
            "infer", folder / "in", "--bundle", of.bundle, "--out", folder / "o", *INFER
        )
        one.expect(done.code == 0, done.last)
        one.note(f"{done.peak:.0f} MB")
    bench.each(partial(_bomb, bench, of, done.peak), names[:: 6 if bench.quick else 1])


def _bomb(bench: Bench, of: Model, usual: float, name: str) -> None:
    with bench.attempt("bombs", name, "infer beside a good study, 3 GB") as (one, folder):
        source = folder / "in"
        of.good(source, "a_good")
        BOMBS[name](source)
        of.good(source, "z_good")
        out = folder / "out"
        command = ("infer", source, "--bundle", of.bundle, "--out", out, *INFER)
        done = bench.run(*command, limits=Limits(memory=MEMORY_LIMIT), patience=SECONDS)
        failed = failed_in(out)
        one.expect(done.code == 1 and done.clean, done.last)
        one.expect(len(failed) == 1, f"failed are {sorted(failed)}")
        for good in ("a_good", "z_good"):
            one.expect(of.same_as_good(out, good), f"{good} is not done")
        more = done.peak - usual
        one.expect(more < GROWTH, f"{more:.0f} MB more than without the bomb")
        one.note(f"{more:+.0f} MB; {' '.join(failed.values())}")
        shutil.rmtree(source)


def zeros_gz(path: Path, first: bytes, size: int) -> None:
    """A gzip file of `first` and `size` zeros, of several members."""
    member = gzip.compress(bytes(BLOCK), 9)
    with path.open("wb") as file:
        file.write(gzip.compress(first, 9))
        for _ in range(size // BLOCK):
            file.write(member)


def zeros_zlib(size: int) -> bytes:
    """A zlib stream of zeros; blocks of it are repeated and the checksum is that of zeros."""
    press = zlib.compressobj(9)
    start = press.compress(bytes(BLOCK)) + press.flush(zlib.Z_FULL_FLUSH)
    block = press.compress(bytes(BLOCK)) + press.flush(zlib.Z_FULL_FLUSH)
    count = max(2, size // BLOCK)
    checksum = (count * BLOCK % 65521) << 16 | 1
    return start + block * (count - 1) + b"\x03\x00" + struct.pack(">I", checksum)


def _nifti(side: int, kind: str, payload: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        head = nib.Nifti1Header()
        head.set_data_dtype(kind)
        head.set_data_shape((side, side, side))
        head["vox_offset"], head["magic"] = 352, b"n+1"
        zeros_gz(folder / "bomb.nii.gz", head.binaryblock + bytes(4), payload)

    return write


def _small_nifti_with_much_behind(folder: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2000, 2000, 1), np.uint8), np.eye(4))
    zeros_gz(folder / "bomb.nii.gz", image.to_bytes()[:352], 8 << 30)


def _nifti_4d(folder: Path) -> None:
    head = nib.Nifti2Header()
    head.set_data_dtype("f8")
    head.set_data_shape((4096, 4096, 4096, 100))
    zeros_gz(folder / "bomb.nii.gz", head.binaryblock + bytes(4), 1 << 30)


def _nifti_uncompressed(folder: Path) -> None:
    head = nib.Nifti1Header()
    head.set_data_dtype("f4")
    head.set_data_shape((2000, 2000, 2000))
    head["vox_offset"], head["magic"] = 352, b"n+1"
    with (folder / "bomb.nii").open("wb") as file:  # a hole: the file takes no room on the disk
        file.write(head.binaryblock + bytes(4))
        file.truncate(352 + 4 * 2000**3)


def _mgz(folder: Path) -> None:
    head = nib.MGHImage(np.zeros((1, 1, 1), np.float32), np.eye(4)).header.binaryblock
    head = struct.pack(">5i", 1, 1500, 1500, 1500, 1) + head[20:284]
    zeros_gz(folder / "bomb.mgz", head, 4 << 30)


def _nrrd(folder: Path, encoding: str = "gzip", side: int = 1500) -> None:
    lines = ["NRRD0004", "type: float", "dimension: 3", f"sizes: {side} {side} {side}"]
    lines += ["space: left-posterior-superior", "space directions: (1,0,0) (0,1,0) (0,0,1)"]
    lines += ["space origin: (0,0,0)", "endian: little", f"encoding: {encoding}", "", ""]
    path = folder / "bomb.nrrd"
    zeros_gz(path, b"", 4 << 30)
    content = path.read_bytes() if encoding == "gzip" else b"\0" * 1000
    path.write_bytes("\n".join(lines).encode() + content)


def _metaimage(folder: Path) -> None:
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "CompressedData = True"]
    stream = zeros_zlib(4 << 30)
    lines += [f"CompressedDataSize = {len(stream)}", "DimSize = 1500 1500 1500"]
    lines += ["ElementSpacing = 1 1 1", "ElementType = MET_FLOAT", "ElementDataFile = LOCAL", ""]
    (folder / "bomb.mha").write_bytes("\n".join(lines).encode() + stream)


def _png(side: int, payload: bool = True) -> Callable[[Path], None]:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    def write(folder: Path) -> None:
        head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        data = zeros_zlib(side * (side + 1) + BLOCK) if payload else b""
        parts = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
        (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)

    return write


def _tiff(pages: int, side: int) -> Callable[[Path], None]:
    """TIFF, deflate, one strip that all pages share."""

    def write(folder: Path) -> None:
        stream = zeros_zlib(side * side + BLOCK)
        content = bytearray(b"II*\0\0\0\0\0" + stream)
        content += bytes(len(content) % 2)
        place = 4
        for _ in range(pages):
            struct.pack_into("<I", content, place, len(content))
            entries = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 273: 8, 277: 1, 278: side}
            entries[279] = len(stream)
            content += struct.pack("<H", len(entries))
            for tag, value in sorted(entries.items()):
                content += struct.pack("<HHII", tag, 4, 1, value)
            place = len(content)
            content += bytes(4)
        (folder / "bomb.tiff").write_bytes(content)

    return write


def _jpeg(folder: Path) -> None:
    frame = b"\xff\xc0" + struct.pack(">HBHHBBBB", 11, 8, 65500, 65500, 1, 1, 0x11, 0)
    (folder / "bomb.jpg").write_bytes(b"\xff\xd8" + frame + b"\xff\xd9")


def _bmp(folder: Path) -> None:
    info = struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 8, 0, 0, 0, 0, 0, 0)
    (folder / "bomb.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info)


def _dicom(frames: int, side: int, *, deflated: bool = False) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tags = header() | {
            (0x20, 0x32): ("DS", "0\\0\\0"),
            (0x20, 0x37): ("DS", "1\\0\\0\\0\\1\\0"),
            (0x28, 8): ("IS", frames),
            (0x28, 0x10): ("US", side),
            (0x28, 0x11): ("US", side),
            (0x28, 0x30): ("DS", "1\\1"),
            (0x7FE0, 0x10): ("OW", bytes(1 << 28 if deflated else 1000)),
        }
        write_dicom(folder / "bomb.dcm", tags, **({"syntax": DEFLATED} if deflated else {}))

    return write


def _dicom_series(folder: Path) -> None:
    for number in range(1, 5):
        tags = header(number) | {
            (0x20, 0x32): ("DS", f"0\\0\\{5 * number}"),
            (0x20, 0x37): ("DS", "1\\0\\0\\0\\1\\0"),
            (0x28, 0x10): ("US", 60000),
            (0x28, 0x11): ("US", 60000),
            (0x28, 0x30): ("DS", "1\\1"),
            (0x7FE0, 0x10): ("OW", bytes(1000)),
        }
        write_dicom(folder / "bomb" / f"{number}.dcm", tags)


BOMBS: dict[str, Callable[[Path], None]] = {
    "NIfTI of 4 GB, whole": _nifti(1024, "f4", 4 << 30),
    "NIfTI of 32 TB by its header": _nifti(20000, "f4", 1 << 28),
    "NIfTI of bytes, 3 GB": _nifti(1500, "u1", 4 << 30),
    "NIfTI-2, 4-D": _nifti_4d,
    "NIfTI of 32 GB, not compressed, a sparse file": _nifti_uncompressed,
    "NIfTI of one empty slice with 8 GB behind it": _small_nifti_with_much_behind,
    "MGZ of 13 GB": _mgz,
    "NRRD of 13 GB": _nrrd,
    "NRRD of 27 TB, raw": partial(_nrrd, encoding="raw", side=19000),
    "MetaImage of 13 GB": _metaimage,
    "PNG of 900 million pixels": _png(30000),
    "PNG of 4 billion pixels by its header": _png(65000, payload=False),
    "TIFF of 900 million pixels": _tiff(1, 30000),
    "TIFF of 3,000 pages": _tiff(3000, 4000),
    "JPEG of 4 billion pixels by its header": _jpeg,
    "BMP of 4 billion pixels by its header": _bmp,
    "DICOM, rows x columns": _dicom(1, 65000),
    "DICOM, frames": _dicom(2_000_000, 512),
    "DICOM, deflated": _dicom(500, 4096, deflated=True),
    "DICOM series": _dicom_series,
}


# ---- full disks ---------------------------------------------------------------------------------


def run_disks(bench: Bench) -> None:
    """Disks of several sizes, and folders that cannot be written."""
    of = model(bench)
    needed = sum(path.stat().st_size for path in of.truth.rglob("*") if path.is_file())
    shares = (0.5,) if bench.quick else (0.05, 0.3, 0.5, 0.7, 0.9, 0.97)
    bench.each(partial(_full, bench, of, needed), shares)
    if not bench.quick:
        bundle = sum(p.stat().st_size for p in of.bundle.rglob("*") if p.suffix != ".onnx")
        bench.each(partial(_full_training, bench, bundle), (0.02, 0.5, 0.9))
        bench.each(partial(_file_limit, bench, of), (2_000, 12_000, 40_000))
    bench.each(
        partial(_no_folder, bench, of),
        ("a file", "below a file", "read only")[: 1 if bench.quick else 3],
    )


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None] | None]:
    """A folder with room for `size` bytes, and what gives it more; None where nobody may mount."""
    folder.mkdir()
    options = f"size={-(-size // 4096) * 4096}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield lambda more: subprocess.run(
            ["mount", "-o", f"remount,size={more}", str(folder)], check=True
        )
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def _full(bench: Bench, of: Model, needed: int, share: float) -> None:
    name = f"room for {share:.0%} of the results"
    way = "infer, then infer --continue"
    with (
        bench.attempt("full disk", name, way) as (one, folder),
        small_disk(folder / "disk", int(needed * share)) as grow,
    ):
        if grow is None:
            one.held = None
            one.seen.append("a disk cannot be mounted here")
            return
        out = folder / "disk" / "out"
        command = ("infer", of.studies, "--bundle", of.bundle, "--out", out, *INFER)
        done = bench.run(*command)
        _told_in_words(one, done, "out")
        for path in out.glob("*/*_scores.json"):
            case = path.parent.name
            whole = tree(path.parent) == tree(of.truth / case)
            one.expect(whole, f"{case} has scores and is not whole")
        hidden = [p.name for p in out.rglob(".*")] if out.exists() else []
        one.expect(not hidden, f"left over: {hidden[:3]}")
        grow(2 << 30)
        again = bench.run(*command, "--continue")
        one.expect(again.code == 0, f"going on: {again.last}")
        from torture_kills import compare_inferred

        difference = compare_inferred(out, of.truth)
        one.expect(not difference, f"not as undisturbed: {difference}")
        one.note(done.last)


def _told_in_words(one: Try, done: Any, *parts: str) -> None:
    words = ("no space", "disk", "room", "too large", "full")
    one.expect(done.code in (1, 2), done.last)
    one.expect(done.clean, f"no clear message: {done.last}")
    one.expect(any(w in done.told.lower() for w in words), f"not told in words: {done.last}")
    one.expect(all(part in done.told for part in parts), f"no path: {done.last}")


def _full_training(bench: Bench, needed: int, share: float) -> None:
    name = f"room for {share:.0%} of a trained bundle"
    with bench.attempt("full disk", name, "train, then train --overwrite") as (one, folder):
        data, options = small_cohort(bench), (*MEMORY, "--set", "export=false")
        with small_disk(folder / "disk", int(needed * share)) as grow:
            if grow is None:
                one.held = None
                one.seen.append("a disk cannot be mounted here")
                return
            out = folder / "disk" / "out"
            done = bench.run("train", data, "--out", out, *options)
            if done.code == 0:
                one.note("there was room enough")
                return
            _told_in_words(one, done)
            grow(2 << 30)
            again = bench.run("train", data, "--out", out, *options, "--overwrite")
            one.expect(again.code == 0, f"again: {again.last}")
            one.note(done.last)


def _file_limit(bench: Bench, of: Model, size: int) -> None:
    name = f"files of at most {size} bytes"
    with bench.attempt("full disk", name, "infer, then infer --continue") as (one, folder):
        out = folder / "out"
        command = ("infer", of.studies, "--bundle", of.bundle, "--out", out, *INFER)
        done = bench.run(*command, limits=Limits(file=size))
        one.expect(done.code in (1, 2), done.last)
        one.expect(done.clean, f"no clear message: {done.last}")
        again = bench.run(*command, "--continue")
        one.expect(again.code == 0, f"going on: {again.last}")
        one.note(done.last)


def _no_folder(bench: Bench, of: Model, what: str) -> None:
    with bench.attempt("full disk", f"output folder is {what}", "infer") as (one, folder):
        (folder / "file").write_text("mine")
        out = {"a file": folder / "file", "below a file": folder / "file" / "out"}.get(what)
        out = out or Path("/proc/torture_out")
        done = bench.run("infer", of.studies, "--bundle", of.bundle, "--out", out, *INFER)
        one.expect(done.code == 2 and done.clean, done.last)
        one.expect(out.name in done.told, f"no path: {done.last}")
        one.expect((folder / "file").read_text() == "mine", "the file was replaced")
        one.note(done.last)
