"""DICOM folders: geometry from slice positions, and refusals that name the trouble."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_slices import COLUMN, ROW, write_slice

from mcmiad_monai.transforms import VolumeError, load_volume


def _write_series(
    folder: Path, positions: np.ndarray, *, size: tuple[int, int] = (6, 8), number: int = 1
) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    hounsfield = np.random.default_rng(0).integers(-400, 400, (len(positions), *size)) * 2
    order = np.random.default_rng(1).permutation(len(positions))  # file names tell nothing
    for name, k in enumerate(order):
        path = folder / f"{number}_{name:03d}.dcm"
        write_slice(path, hounsfield[k], positions[k], number=number)
    return hounsfield


def _even(n: int, step: tuple[float, float, float] = (0.0, 0.0, 2.5)) -> np.ndarray:
    return np.array([10.0, -20.0, 30.0]) + np.arange(n)[:, None] * np.array(step)


@pytest.mark.parametrize("step", [(0.0, 0.0, 2.5), (0.0, 0.8, 2.5)])
def test_hounsfield_units_are_sorted_and_placed_by_positions(
    tmp_path: Path, step: tuple[float, float, float]
) -> None:
    positions = _even(5, step)  # the second step is that of a tilted gantry: a sheared affine
    hounsfield = _write_series(tmp_path / "s", positions)
    volume = load_volume(tmp_path / "s")
    np.testing.assert_array_equal(volume[0].numpy(), hounsfield.transpose(2, 1, 0))
    column, row, k = 5, 2, 3
    lps = positions[k] + column * 0.75 * ROW + row * 1.5 * COLUMN
    world = volume.affine.numpy() @ [column, row, k, 1]
    np.testing.assert_allclose(world[:3], lps * [-1, -1, 1], atol=1e-4)
    single = sorted((tmp_path / "s").iterdir())[0]
    assert load_volume(single).shape == (1, 8, 6, 1)


def test_siemens_mosaic_is_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(-400, 400, (24, 24))
    write_slice(
        tmp_path / "m.dcm", pixels, (0, 0, 0), image_type="ORIGINAL\\PRIMARY\\M\\ND\\MOSAIC"
    )
    for path in (tmp_path, tmp_path / "m.dcm"):
        with pytest.raises(VolumeError, match=r"Siemens mosaic.*24x24.*dcm2niix"):
            load_volume(path)


def test_several_series_are_listed_and_refused(tmp_path: Path) -> None:
    _write_series(tmp_path, _even(3), number=1)
    _write_series(tmp_path, _even(2), number=7, size=(4, 4))
    with pytest.raises(VolumeError, match="2 DICOM series") as caught:
        load_volume(tmp_path)
    text = str(caught.value)
    assert "number 1: 3 files of 8x6" in text
    assert "number 7: 2 files of 4x4" in text
    assert "one folder per series" in text


@pytest.mark.parametrize("places", [[0, 1, 2, 4, 5], [0, 1, 1, 2], [0, 0]], ids=str)
def test_uneven_slices_are_refused(tmp_path: Path, places: list[int]) -> None:
    _write_series(tmp_path / "s", _even(6)[places])
    with pytest.raises(VolumeError, match="unevenly spaced"):
        load_volume(tmp_path / "s")


def test_slices_of_unequal_pixel_spacing_are_refused(tmp_path: Path) -> None:
    pixels = np.arange(48).reshape(6, 8)
    for k, spacing in enumerate(((0.75, 1.5), (1.5, 1.5))):
        write_slice(tmp_path / f"{k}.dcm", pixels, _even(2)[k], spacing=spacing)
    with pytest.raises(VolumeError, match="orientation or pixel spacing"):
        load_volume(tmp_path)


def test_real_chaos_series_lies_where_its_headers_say(shared: Path) -> None:
    volume = load_volume(shared / "data" / "dicom" / "chaos_ct")
    assert volume.shape == (1, 512, 512, 78)
    expected = np.diag([-0.7265625, -0.7265625, 2.0, 1.0])
    expected[:3, 3] = [185.0, 98.0, 1536.5]
    np.testing.assert_allclose(volume.affine.numpy(), expected, atol=1e-6)
    assert -1100 < float(volume.min()) < -900  # air


def test_real_sagittal_series_of_a_patient_on_the_side(shared: Path) -> None:
    volume = load_volume(shared / "data" / "dicom" / "mr_decubitus_sagittal")
    assert volume.shape == (1, 256, 256, 35)
    assert nib.aff2axcodes(volume.affine.numpy()) == ("P", "I", "R")
    assert float(volume.affine[:3, 2].norm()) == pytest.approx(4.8, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("ct_gantry_tilt_ge", "unevenly spaced"), ("ct_mixed_sizes", "unequal size")],
)
def test_real_broken_series_are_refused(shared: Path, name: str, reason: str) -> None:
    with pytest.raises(VolumeError, match=reason):
        load_volume(shared / "data" / "dicom" / name)


def test_each_slice_keeps_its_own_pixel_type_slope_and_intercept(tmp_path: Path) -> None:
    kinds = [("u2", 1, 0), ("i2", 1, 0), ("i2", 12 / 4095, 0), ("u2", 0.5, -1024)]
    expected = []
    for k, (kind, slope, intercept) in enumerate(kinds):
        low = -500 if kind == "i2" else 0
        stored = np.random.default_rng(k).integers(low, 40000 if low == 0 else 4000, (6, 8))
        write_slice(tmp_path / f"{k}.dcm", 2 * stored, _even(4)[k])
        header = pydicom.dcmread(tmp_path / f"{k}.dcm")
        header.PixelRepresentation = int(kind == "i2")
        header.RescaleSlope, header.RescaleIntercept = f"{slope:.8g}", f"{intercept}"
        header.PixelData = stored.astype(kind).tobytes()
        header.save_as(tmp_path / f"{k}.dcm")
        expected.append(stored * float(header.RescaleSlope) + intercept)
    found = load_volume(tmp_path)[0].numpy()
    np.testing.assert_allclose(found, np.stack(expected).transpose(2, 1, 0), atol=1e-3)
