"""Pixels are the same in whichever transfer syntax a DICOM file has them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (the name in its manual)
from dicom_slices import write_slice
from enhanced import write_enhanced
from scipy.ndimage import gaussian_filter

from mcmiad_monai.transforms import VolumeError
from mcmiad_monai.transforms.readers import read_image

#: dcmtk's command for each lossless syntax, and the end of the UID that it gives.
LOSSLESS = {
    "implicit": (["dcmconv", "+ti"], "1.2"),
    "big endian": (["dcmconv", "+tb"], "1.2.2"),
    "deflated": (["dcmconv", "+td"], "1.2.1.99"),
    "RLE": (["dcmcrle"], "1.2.5"),
    "JPEG lossless": (["dcmcjpeg", "+el"], "1.2.4.57"),
    "JPEG lossless SV1": (["dcmcjpeg", "+e1"], "1.2.4.70"),
    "JPEG-LS": (["dcmcjpls", "+el"], "1.2.4.80"),
}
#: Commands that write a lossy syntax, and that unpack it.
LOSSY = {
    "JPEG baseline": (["dcmcjpeg", "+eb"], "dcmdjpeg", "1.2.4.50"),
    "JPEG extended": (["dcmcjpeg", "+ee"], "dcmdjpeg", "1.2.4.51"),
    "JPEG-LS near": (["dcmcjpls", "+en"], "dcmdjpls", "1.2.4.81"),
}
KINDS = ("slices", "frames")
POSITIONS = [(0.0, 0.0, 2.5 * k) for k in range(3)]


def _series(folder: Path, kind: str) -> np.ndarray:
    """Write smooth Hounsfield units (n, Y, X), as slices or as one file of frames."""
    noise = np.random.default_rng(0).normal(size=(3, 40, 48))
    units = (gaussian_filter(noise, 2) * 8000).astype(int).clip(-900, 900) // 2 * 2
    folder.mkdir()
    if kind == "frames":
        of_frame = {"slopes": [1.0] * 3, "intercepts": [-1000.0] * 3}
        write_enhanced(folder / "f.dcm", (units + 1000).astype("u2"), POSITIONS, **of_frame)
    else:
        for k in range(3):
            write_slice(folder / f"{k}.dcm", units[k], POSITIONS[k])
    return units


def _converted(folder: Path, command: list[str], to: Path) -> str:
    """Convert every file; returns the transfer syntax of the last one, below DICOM's root."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed; it comes with dcmtk")
    to.mkdir()
    for file in folder.iterdir():
        subprocess.run([*command, str(file), str(to / file.name)], check=True, capture_output=True)
    header = pydicom.dcmread(to / file.name, stop_before_pixels=True)
    return str(header.file_meta.TransferSyntaxUID).removeprefix("1.2.840.10008.")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_syntax_changes_no_value(tmp_path: Path, name: str, kind: str) -> None:
    units = _series(tmp_path / "plain", kind)
    command, syntax = LOSSLESS[name]
    assert _converted(tmp_path / "plain", command, tmp_path / "packed") == syntax
    image = read_image(tmp_path / "packed")
    np.testing.assert_array_equal(image.values.T, units)
    np.testing.assert_allclose(image.affine, read_image(tmp_path / "plain").affine, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    # dcmcjpls packs no signed pixels with a loss
    [
        (name, kind)
        for name in LOSSY
        for kind in KINDS
        if (name, kind) != ("JPEG-LS near", "slices")
    ],
)
def test_lossy_syntax_is_read_as_another_program_unpacks_it(
    tmp_path: Path, name: str, kind: str
) -> None:
    command, unpack, syntax = LOSSY[name]
    _series(tmp_path / "plain", kind)
    assert _converted(tmp_path / "plain", command, tmp_path / "packed") == syntax
    _converted(tmp_path / "packed", [unpack], tmp_path / "unpacked")
    expected = read_image(tmp_path / "unpacked").values
    assert np.ptp(expected) > 100
    np.testing.assert_array_equal(read_image(tmp_path / "packed").values, expected)


def _write_jpeg2000(folder: Path) -> np.ndarray:
    """Signals (n, Y, X) of an MR; ITK has a coder of JPEG 2000, dcmtk none."""
    signals = np.random.default_rng(0).integers(0, 900, (3, 24, 32))
    folder.mkdir()
    for k, plane in enumerate(signals):
        image = sitk.GetImageFromArray(plane.astype("i2"))
        tags = {"0008|0060": "MR", "0020|000e": "1.2.3", "0020|0032": f"0\\0\\{3 * k}"}
        for key, value in {**tags, "0020|0037": "1\\0\\0\\0\\1\\0"}.items():
            image.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.Execute(image)
    return signals


def test_jpeg_2000_changes_no_value(tmp_path: Path) -> None:
    signals = _write_jpeg2000(tmp_path / "s")
    header = pydicom.dcmread(tmp_path / "s" / "0.dcm", stop_before_pixels=True)
    assert header.file_meta.TransferSyntaxUID == pydicom.uid.JPEG2000Lossless
    np.testing.assert_array_equal(read_image(tmp_path / "s").values.T, signals)


def test_what_cannot_be_unpacked_is_refused_by_its_name(tmp_path: Path) -> None:
    _write_jpeg2000(tmp_path / "s")
    for file in (tmp_path / "s").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.MPEG4HP41
        dataset.PixelData = pydicom.encaps.encapsulate([b"\0\0\1\xb3" * 50])
        dataset.save_as(file)
    with pytest.raises(VolumeError, match=r"is compressed \(MPEG-4 .*gdcmconv --raw"):
        read_image(tmp_path / "s")
