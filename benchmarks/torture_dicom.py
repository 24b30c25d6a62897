"""DICOM files, written by hand, so that they can be as wrong as they need to be."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
CLASSES = {"MR": "1.2.840.10008.5.1.4.1.1.4", "CT": "1.2.840.10008.5.1.4.1.1.2"}
LONG = ("OB", "OW", "UN", "UT", "SQ")
Tags = Mapping[tuple[int, int], tuple[str, Any]]


def element(tag: tuple[int, int], kind: str, value: Any) -> bytes:
    """One element in explicit VR, little endian."""
    if kind == "US":
        content = struct.pack("<H", value)
    elif isinstance(value, bytes):
        content = value + b"\0" * (len(value) % 2)
    else:
        content = str(value).encode()
        content += (b"\0" if kind == "UI" else b" ") * (len(content) % 2)
    head = struct.pack("<HH", *tag) + kind.encode()
    size = (
        b"\0\0" + struct.pack("<I", len(content))
        if kind in LONG
        else struct.pack("<H", len(content))
    )
    return head + size + content


def write_dicom(path: Path, tags: Tags, *, syntax: str = EXPLICIT, preamble: bool = True) -> Path:
    """Write a file of tags in order; without preamble also without file meta information."""
    body = b"".join(element(tag, *tags[tag]) for tag in sorted(tags))
    if syntax == DEFLATED:
        press = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = press.compress(body) + press.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not preamble:
        path.write_bytes(body)
        return path
    meta = element((2, 1), "OB", b"\0\1") + element((2, 2), "UI", tags[8, 0x16][1])
    meta += element((2, 3), "UI", tags[8, 0x18][1]) + element((2, 0x10), "UI", syntax)
    length = struct.pack("<HH", 2, 0) + b"UL" + struct.pack("<HI", 4, len(meta))
    path.write_bytes(b"\0" * 128 + b"DICM" + length + meta + body)
    return path


def header(number: int = 1, *, modality: str = "MR", series: str = "1") -> dict[Any, Any]:
    """Tags of an invented patient, without geometry and pixels."""
    return {
        (8, 8): ("CS", "ORIGINAL\\PRIMARY\\M"),
        (8, 0x16): ("UI", CLASSES[modality]),
        (8, 0x18): ("UI", f"1.2.826.0.1.3680043.2.{series}.{number}"),
        (8, 0x60): ("CS", modality),
        (8, 0x103E): ("LO", "FLAIR"),
        (0x10, 0x10): ("PN", "Anon^A"),
        (0x10, 0x20): ("LO", "A1"),
        (0x20, 0xD): ("UI", "1.2.826.0.1.3680043.1"),
        (0x20, 0xE): ("UI", f"1.2.826.0.1.3680043.3.{series}"),
        (0x20, 0x11): ("IS", 1),
        (0x20, 0x13): ("IS", number),
        (0x20, 0x52): ("UI", "1.2.826.0.1.3680043.4"),
        (0x28, 2): ("US", 1),
        (0x28, 4): ("CS", "MONOCHROME2"),
        (0x28, 0x100): ("US", 16),
        (0x28, 0x101): ("US", 16),
        (0x28, 0x102): ("US", 15),
        (0x28, 0x103): ("US", 0),
    }


def write_series(
    folder: Path,
    image: np.ndarray,
    affine: np.ndarray,
    *,
    name: str = "I",
    suffix: str = ".dcm",
    modality: str = "MR",
    series: str = "1",
    slope: Callable[[int], tuple[float, float] | None] = lambda _: None,
    signed: Callable[[int], bool] = lambda _: False,
    preamble: bool = True,
    more: Tags | None = None,
) -> Path:
    """Slices of a volume (X, Y, Z) with its affine (RAS), one file each.

    `slope` gives RescaleSlope and RescaleIntercept of a slice, `signed` its pixel representation.
    """
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    across, down, step = lps[:3, 0], lps[:3, 1], lps[:3, 2]
    width, height = np.linalg.norm(across), np.linalg.norm(down)
    for k in range(image.shape[2]):
        tags = header(k + 1, modality=modality, series=series)
        rescale = slope(k)
        scale, offset = rescale or (1.0, 0.0)
        pixels = np.rint((image[:, :, k].T - offset) / scale)
        tags |= {
            (0x18, 0x50): ("DS", f"{np.linalg.norm(step):.5f}"),
            (0x20, 0x32): ("DS", "\\".join(f"{v:.5f}" for v in lps[:3, 3] + k * step)),
            (0x20, 0x37): (
                "DS",
                "\\".join(f"{v:.8f}" for v in (*(across / width), *(down / height))),
            ),
            (0x28, 0x10): ("US", image.shape[1]),
            (0x28, 0x11): ("US", image.shape[0]),
            (0x28, 0x30): ("DS", f"{height:.6f}\\{width:.6f}"),
            (0x28, 0x103): ("US", int(signed(k))),
            (0x7FE0, 0x10): ("OW", pixels.astype("<i2" if signed(k) else "<u2").tobytes()),
            **(more or {}),
        }
        if rescale:
            tags |= {
                (0x28, 0x1052): ("DS", f"{offset:.8g}"),
                (0x28, 0x1053): ("DS", f"{scale:.8g}"),
            }
        write_dicom(folder / f"{name}{k + 1:04d}{suffix}", tags, preamble=preamble)
    return folder
