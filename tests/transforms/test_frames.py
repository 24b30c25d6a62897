"""Enhanced DICOM files: values and places of each frame, and refusals that name the trouble."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_slices import COLUMN, ROW
from enhanced import write_enhanced
from pydicom.uid import RLELossless

from mcmiad_monai.transforms import VolumeError, load_volume

N = 6
STEP = np.array([0.0, 0.4, 2.5])
POSITIONS = np.array([10.0, -20.0, 30.0]) + np.arange(N)[:, None] * STEP
STORED = np.random.default_rng(0).integers(0, 4000, (N, 7, 9)).astype("u2")
#: Of the frames in the file, which are in no order.
ORDER = np.array([3, 0, 5, 1, 4, 2])


@pytest.mark.parametrize("modality", ["CT", "MR", "OPT"])
@pytest.mark.parametrize("kind", ["u2", "i2"])
def test_frames_lie_where_they_say_with_their_own_slope(
    tmp_path: Path, modality: str, kind: str
) -> None:
    slopes, intercepts = np.linspace(0.1, 3, N), np.linspace(-1000, 50, N)
    stored = STORED.astype(kind) - (2000 if kind == "i2" else 0)
    write_enhanced(
        tmp_path / "f.dcm",
        stored[ORDER].astype(kind),
        POSITIONS[ORDER],
        modality=modality,
        slopes=slopes[ORDER].tolist(),
        intercepts=intercepts[ORDER].tolist(),
    )
    volume = load_volume(tmp_path / "f.dcm")
    expected = stored * slopes[:, None, None] + intercepts[:, None, None]
    np.testing.assert_allclose(volume[0].numpy(), expected.transpose(2, 1, 0), atol=1e-3)
    column, row, k = 5, 2, 3
    lps = POSITIONS[k] + column * 0.75 * ROW + row * 1.5 * COLUMN
    world = volume.affine.numpy() @ [column, row, k, 1]
    np.testing.assert_allclose(world[:3], lps * [-1, -1, 1], atol=1e-4)
    assert volume.meta["dicom_modality"] == modality


def test_shared_slope_bits_and_compression_change_no_value(tmp_path: Path) -> None:
    stored = np.ascontiguousarray(STORED.astype("i2") - 2000)
    (tmp_path / "s").mkdir()
    file = write_enhanced(tmp_path / "s" / "f.dcm", stored, POSITIONS)
    plain = load_volume(tmp_path / "s")[0].numpy()
    np.testing.assert_array_equal(plain, (2.0 * stored - 1000).transpose(2, 1, 0))
    file.compress(RLELossless)
    file.save_as(tmp_path / "r.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(load_volume(tmp_path / "r.dcm")[0].numpy(), plain)
    twelve = (stored & 0x0FFF) | 0x7000  # the upper bits mean nothing
    write_enhanced(tmp_path / "b.dcm", twelve.astype("i2"), POSITIONS, bits=12)
    np.testing.assert_array_equal(load_volume(tmp_path / "b.dcm")[0].numpy(), plain)


def test_frames_of_several_files_of_a_series_are_one_stack(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", STORED[ORDER[:4]], POSITIONS[ORDER[:4]])
    write_enhanced(tmp_path / "b.dcm", STORED[ORDER[4:]], POSITIONS[ORDER[4:]])
    volume = load_volume(tmp_path)[0].numpy()
    np.testing.assert_array_equal(volume, (2.0 * STORED - 1000).transpose(2, 1, 0))


def test_tomography_without_positions_is_stacked_in_the_order_of_its_frames(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "o.dcm", STORED, None, modality="OPT")
    volume = load_volume(tmp_path / "o.dcm")
    np.testing.assert_array_equal(volume[0].numpy(), (2.0 * STORED - 1000).transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine.numpy(), np.diag([-0.75, -1.5, 2.5, 1]))


TURNED = [[*ROW, *COLUMN]] * (N - 1) + [[*COLUMN, *-ROW]]
REFUSED = {
    "6 frames at 3 places": {"positions": POSITIONS[[0, 1, 2, 0, 1, 2]]},
    "unequal orientation.*frame 1 and frame 6": {"positions": POSITIONS, "axes": TURNED},
    "unevenly spaced": {"positions": POSITIONS + STEP * np.eye(N)[2][:, None] * 0.5},
    "lacks a position.*frame 1": {"positions": None, "modality": "MR"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_frames_that_are_no_single_stack_are_refused(tmp_path: Path, reason: str) -> None:
    write_enhanced(tmp_path / "f.dcm", STORED, **REFUSED[reason])
    with pytest.raises(VolumeError, match=reason):
        load_volume(tmp_path / "f.dcm")
