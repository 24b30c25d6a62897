"""Files whose headers lie: refused by their size before anything is unpacked."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name in its manual)
from dicom_slices import write_slice
from PIL import Image

from mcmiad_monai.data.studies import StudyDataset
from mcmiad_monai.transforms import VolumeError, load_volume, preprocessing

SHAPE = (9, 8, 7)
VALUES = np.random.default_rng(0).integers(0, 200, SHAPE).astype("i2")


def nifti1(path: Path, dims: tuple[int, int, int] = (3000, 3000, 3000)) -> None:
    head = bytearray(nib.Nifti1Image(VALUES, np.eye(4)).to_bytes())
    head[42:48] = struct.pack("<3h", *dims)
    path.write_bytes(gzip.compress(head))


def nifti2(path: Path) -> None:
    head = bytearray(nib.Nifti2Image(VALUES, np.eye(4)).to_bytes())
    head[24:48] = struct.pack("<3q", 1 << 40, 8, 7)
    path.write_bytes(gzip.compress(head))


def mgh(path: Path) -> None:
    head = bytearray(nib.MGHImage(VALUES, np.eye(4)).to_bytes())
    head[4:16] = struct.pack(">3i", 1 << 15, 1 << 15, 7)
    path.write_bytes(gzip.compress(head))


def raw_nifti(path: Path) -> None:
    head = bytearray(nib.Nifti1Image(VALUES, np.eye(4)).to_bytes())
    head[42:48] = struct.pack("<3h", 3000, 3000, 3000)
    path.write_bytes(head)


def nrrd(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VALUES.T), str(path), True)
    path.write_bytes(path.read_bytes().replace(b"sizes: 9 8 7", b"sizes: 9999 8888 77"))


def mha(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VALUES.T), str(path), True)
    path.write_bytes(path.read_bytes().replace(b"DimSize = 9 8 7", b"DimSize = 9999 8888 77"))


def png(path: Path) -> None:
    Image.fromarray(VALUES[:, :, 0].astype("u1")).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">2I", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def tiff(path: Path) -> None:
    Image.fromarray(VALUES[:, :, 0].astype("u1")).save(path)
    content = path.read_bytes()
    for tag in (256, 257):  # width and length
        place = content.index(struct.pack("<HH", tag, 4)) + 8
        content = content[:place] + struct.pack("<I", 30_000) + content[place + 4 :]
    path.write_bytes(content)


def dicom(path: Path) -> None:
    write_slice(path, VALUES[:, :, 0] * 2 - 1000, (0, 0, 0))
    content = path.read_bytes()
    for element in (b"\x10\x00", b"\x11\x00"):  # rows and columns
        place = content.index(b"\x28\x00" + element + b"\x02\x00\x00\x00") + 8
        content = content[:place] + b"\xff\xff" + content[place + 2 :]
    path.write_bytes(content)


LIARS: dict[str, Callable[[Path], None]] = {
    "n1.nii.gz": nifti1,
    "n2.nii.gz": nifti2,
    "m.mgz": mgh,
    "r.nii": raw_nifti,
    "n.nrrd": nrrd,
    "m.mha": mha,
    "p.png": png,
    "t.tiff": tiff,
    "d.dcm": dicom,
}


@pytest.mark.parametrize("name", LIARS)
def test_a_file_of_a_huge_size_by_its_header_is_refused_by_that(tmp_path: Path, name: str) -> None:
    LIARS[name](tmp_path / name)
    assert (tmp_path / name).stat().st_size < 10_000
    with pytest.raises(VolumeError, match="by its header") as caught:
        load_volume(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("start", [0, 352])
def test_extensions_of_a_packed_header_are_not_unpacked_without_limit(
    tmp_path: Path, start: int
) -> None:
    head = bytearray(nib.Nifti1Image(VALUES, np.eye(4)).to_bytes())
    head[108:112] = struct.pack("<f", start and 1 << 30)
    head[348:352] = b"\1\0\0\0"
    head[352:360] = struct.pack("<2i", (1 << 30) - 16, 6)
    (tmp_path / "e.nii.gz").write_bytes(gzip.compress(head))
    with pytest.raises(VolumeError, match="extensions of"):
        load_volume(tmp_path / "e.nii.gz")


def test_a_header_with_a_comment_in_its_extensions_is_read(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, np.eye(4))
    for text in (b"made by a scanner", b"and looked at"):
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", text))
    nib.save(image, tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(load_volume(tmp_path / "v.nii.gz")[0].numpy(), VALUES)


def deflated(path: Path, private: int) -> None:
    """A slice in a deflated transfer syntax, with a private element of so many zeros."""
    write_slice(path, VALUES[:, :, 0] * 2 - 1000, (0, 0, 0))
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = b"\x02\x00\x10\x00UI" + struct.pack("<H", len(syntax)) + syntax
    zeros = b"\x09\x00\x01\x10OB\0\0" + struct.pack("<I", private) + bytes(private)
    length = b"\x02\x00\x00\x00UL\x04\x00" + struct.pack("<I", len(meta))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(zeros) + packer.flush()
    path.write_bytes(bytes(128) + b"DICM" + length + meta + packed)


@pytest.mark.parametrize("folder", [False, True])
def test_a_deflated_dicom_file_is_not_unpacked_without_limit(tmp_path: Path, folder: bool) -> None:
    deflated(tmp_path / "d.dcm", 1 << 20)
    assert (tmp_path / "d.dcm").stat().st_size < 10_000
    source = tmp_path if folder else tmp_path / "d.dcm"
    with pytest.raises(VolumeError, match="unpacks to more than 4000 bytes"):
        load_volume(source, max_voxels=1000)
    with pytest.raises(VolumeError, match=r"DICOM|could not be read"):  # an image it is not
        load_volume(source)


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.mgz", "v.nrrd", "v.mha"])
def test_the_limit_is_that_of_the_voxels_and_can_be_chosen(tmp_path: Path, name: str) -> None:
    path, voxels = tmp_path / name, VALUES.size
    if name.endswith(("nrrd", "mha")):
        sitk.WriteImage(sitk.GetImageFromArray(VALUES.T), str(path), True)
    else:
        nib.save((nib.MGHImage if "mgz" in name else nib.Nifti1Image)(VALUES, np.eye(4)), path)
    assert load_volume(path, max_voxels=voxels).shape == (1, *SHAPE)
    with pytest.raises(VolumeError, match=rf"{voxels} voxels.*at most {voxels - 1}.*--max-voxels"):
        load_volume(path, max_voxels=voxels - 1)


def test_the_voxels_of_all_slices_of_a_series_count(tmp_path: Path) -> None:
    for k in range(3):
        write_slice(tmp_path / f"{k}.dcm", VALUES[:, :, k] * 2 - 1000, (0, 0, 2.0 * k))
    assert load_volume(tmp_path, max_voxels=9 * 8 * 3).shape[3] == 3
    with pytest.raises(VolumeError, match="216 voxels"):
        load_volume(tmp_path, max_voxels=9 * 8 * 3 - 1)


def test_one_bomb_fails_its_study_and_not_the_others(tmp_path: Path) -> None:
    nifti1(tmp_path / "bomb.nii.gz")
    good = np.random.default_rng(1).integers(0, 200, (40, 40, 4)).astype("i2")
    nib.save(nib.Nifti1Image(good, np.eye(4)), tmp_path / "good.nii.gz")
    cases = [{"case": n, "image": str(tmp_path / f"{n}.nii.gz")} for n in ("bomb", "good")]
    bomb, read = StudyDataset(cases, preprocessing("brain_mri"))
    assert bomb["error"].startswith("VolumeError: ")
    assert "27000000000 voxels" in bomb["error"]
    assert read["image"].shape == (1, 40, 40, 4)
    small = StudyDataset(cases, preprocessing("brain_mri", max_voxels=6399))
    assert "6400 voxels" in small[1]["error"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.nhdr", b"data file: a.raw", b"data file: /etc/hostname"),
        ("a.nhdr", b"data file: a.raw", b"DATAFILE: ../a.raw"),
        ("a.nhdr", b"data file: a.raw", b"data file: LIST"),
        ("a.nhdr", b"data file: a.raw", b"data file: a%d.raw 1 3 1"),
        ("a.mhd", b"ElementDataFile = a.raw", b"ElementDataFile = /etc/hostname"),
        ("a.mhd", b"ElementDataFile = a.raw", b"ElementDataFile=../a.raw"),
    ],
)
def test_header_takes_voxels_from_its_own_folder_alone(
    tmp_path: Path, name: str, old: bytes, new: bytes
) -> None:
    path = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(VALUES.T), str(path))
    assert load_volume(path).shape == (1, *SHAPE)
    header = path.read_bytes()
    assert old in header
    path.write_bytes(header.replace(old, new))
    with pytest.raises(VolumeError, match="has its voxels in"):
        load_volume(path)
    whole = tmp_path / "whole.nrrd"  # what looks like such a line in the voxels is none
    values = np.frombuffer(b"\ndata file: /a/b/c/d\n" * 24, "i2")[:240].reshape(4, 6, 10)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(whole))
    assert load_volume(whole).shape == (1, 10, 6, 4)


def test_transfer_syntax_is_found_behind_a_long_first_element(tmp_path: Path) -> None:
    syntax = b"1.2.840.10008.1.2.1.99"
    elements = b"\2\0\1\0OB\0\0" + struct.pack("<I", 5000) + bytes(5000)
    elements += b"\2\0\x10\0UI" + struct.pack("<H", len(syntax)) + syntax
    head = bytes(128) + b"DICM\2\0\0\0UL\4\0" + struct.pack("<I", len(elements)) + elements
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(bytes(10**6)) + packer.flush()
    (tmp_path / "a.dcm").write_bytes(head + bomb)
    with pytest.raises(VolumeError, match="unpacks to more than"):
        load_volume(tmp_path / "a.dcm", max_voxels=1000)
    long = head[:140] + struct.pack("<I", 1 << 31) + head[144:]
    (tmp_path / "a.dcm").write_bytes(long + bomb)
    with pytest.raises(VolumeError, match="first group of 2147483648 bytes"):
        load_volume(tmp_path / "a.dcm", max_voxels=1000)
