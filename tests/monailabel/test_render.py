"""Heatmaps as masks, bands and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

pytest.importorskip("monailabel", reason="MONAI Label comes with the extra `label`")

from mcmiad_monai.monailabel import render as rendering
from mcmiad_monai.monailabel.render import label_names, render, write_volume
from mcmiad_monai.transforms import load_heatmap

SHEARED = np.array(
    [[-1.9, 0.4, 0.6, 12.0], [0.3, 2.1, -0.5, -40.0], [0.1, 0.7, 4.8, 7.5], [0, 0, 0, 1.0]]
)


def test_limits_are_multiples_of_the_threshold() -> None:
    heat = np.array([0, 0.9, 1.0, 1.1, 2.0, 2.1, 4.0, 4.1], np.float32).reshape(2, 2, 2)
    options: dict[str, Any] = {"threshold": 1.0, "dtype": np.dtype(np.uint8)}
    assert render(heat, "mask", **options).ravel().tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    bands = render(heat, "bands", **options)
    assert bands.ravel().tolist() == [0, 0, 0, 1, 1, 2, 2, 3]
    assert bands.dtype == np.uint8
    doubled = render(heat, "bands", threshold=2.0, dtype=np.dtype(np.uint16))
    assert doubled.ravel().tolist() == [0, 0, 0, 0, 0, 1, 1, 2]
    assert doubled.dtype == np.uint16
    assert render(heat, "heatmap", **options).dtype == np.float32


def test_names_are_those_of_the_labels_that_are_there() -> None:
    """Slicer gives names to segments in their order: a missing one must not shift the others."""
    volume = np.zeros((2, 2, 2), np.uint8)
    assert label_names(volume, "bands") == {}
    volume[0, 0, 0], volume[1, 1, 1] = 1, 3
    assert label_names(volume, "bands") == {"anomaly": 1, "anomaly: severe": 3}
    assert label_names(volume.astype(np.float32), "heatmap") == {}


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_files_keep_voxels_type_and_a_sheared_affine(extension: str, dtype: Any) -> None:
    volume = (np.random.default_rng(0).random((5, 6, 3)) * 9).astype(dtype)
    path = write_volume(volume, SHEARED, extension, compress=True)
    try:
        assert path.name.endswith(extension)
        read = load_heatmap(path)
        np.testing.assert_array_equal(read[0].numpy(), volume.astype(np.float32))
        np.testing.assert_allclose(read.affine.numpy(), SHEARED, atol=1e-5)
        if extension.startswith(".nii"):
            assert nib.load(path).get_data_dtype() == dtype
        else:
            itk = sitk.ReadImage(str(path))
            assert itk.GetPixelID() == (sitk.sitkUInt8 if dtype is np.uint8 else sitk.sitkFloat32)
    finally:
        path.unlink()


def test_nothing_is_left_where_writing_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(rendering.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(rendering, "replace_atomically", fail)
    with pytest.raises(OSError, match="disk full"):
        write_volume(np.zeros((2, 2, 2), np.uint8), np.eye(4), ".nii.gz")
    assert list(tmp_path.iterdir()) == []
