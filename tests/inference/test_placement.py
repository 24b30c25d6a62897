"""Heatmaps and masks lie over the study in every reader, whichever part of a header it uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name in its manual)
import torch
from dicom_slices import COLUMN, ROW, write_slice

from mcmiad_monai.inference.outputs import anomaly_mask, study_scores
from mcmiad_monai.inference.writers import write_study
from mcmiad_monai.transforms import CanonicalOrientation, as_heatmap, load_volume

SHAPE = (16, 18, 9)
AFFINE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.3) @ np.diag([-1.5, 2.0, 4.0]), [12.0, -34.0, 56.0]
)
TILTED = AFFINE.copy()
TILTED[:3, 2] += [0.0, 1.3, 0.0]


def write_results(image: Path, heat: np.ndarray | None = None) -> tuple[Path, dict[str, Any]]:
    """Write the results of a study as they are after the road through the canonical grid."""
    orient = CanonicalOrientation("LPS")
    volume = orient(load_volume(image))
    noise = torch.rand(volume.shape, generator=torch.Generator().manual_seed(0)) * 2
    heatmap = orient.inverse(as_heatmap(noise, volume))
    if heat is not None:
        heatmap[0] = torch.from_numpy(heat)
    heatmap.meta["case"] = "s"
    scores = study_scores(heatmap, torch.ones(volume.shape[3]), slice_axis=2, calibration=None)
    folder = write_study(image.parent / "out", scores, heatmap, anomaly_mask(heatmap), None)
    return folder, json.loads((folder / "s_scores.json").read_text())


def nifti(kind: Any = nib.Nifti1Image, affine: np.ndarray = AFFINE) -> Any:
    values = np.random.default_rng(0).integers(0, 900, SHAPE).astype("i2")
    image = kind(values, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header["descrip"] = b"FLAIR, of a test"
    image.header.set_xyzt_units("mm", "sec")
    return image


def two_forms(image: Any) -> None:
    moved = AFFINE.copy()
    moved[:3, 3] += [20, -15, 8]
    image.set_qform(moved, 1)
    image.set_sform(AFFINE, 2)


def no_form(image: Any) -> None:
    image.set_qform(None, 0)
    image.set_sform(None, 0)


def in_microns(image: Any) -> None:
    larger = np.diag([1000, 1000, 1000, 1]) @ AFFINE
    image.set_qform(larger, 1)
    image.set_sform(larger, 1)
    image.header.set_xyzt_units("micron")


def tilted_with_qform(image: Any) -> None:
    image.set_sform(TILTED, 1)


@pytest.mark.parametrize(
    "change", [two_forms, no_form, in_microns, tilted_with_qform], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_results_lie_over_the_image_in_itk_and_nibabel(
    tmp_path: Path, change: Any, kind: Any
) -> None:
    image = nifti(kind)
    change(image)
    nib.save(image, tmp_path / "s.nii")
    folder, scores = write_results(tmp_path / "s.nii")
    source = nib.load(tmp_path / "s.nii")
    itk = None
    if kind is nib.Nifti1Image:  # SimpleITK reads no NIfTI-2 without a switch
        itk = sitk.ReadImage(str(tmp_path / "s.nii"))
    for name in ("heatmap", "mask"):
        path = folder / f"s_{name}.nii.gz"
        found = nib.load(path)
        assert found.get_data_dtype() == ("f4" if name == "heatmap" else "u1")
        np.testing.assert_allclose(found.affine, source.affine, atol=1e-3)
        np.testing.assert_allclose(found.get_qform(), source.get_qform(), rtol=1e-4, atol=1e-3)
        for field in ("qform_code", "sform_code", "xyzt_units", "descrip"):
            assert found.header[field] == source.header[field]
        if itk is not None:
            same_place(sitk.ReadImage(str(path)), itk)
    assert scores["viewer_heatmap"] is None
    assert len(list(folder.iterdir())) == 3


def same_place(found: Any, expected: Any) -> None:
    for part in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(found, part)(), getattr(expected, part)(), atol=1e-3)


def test_affine_is_in_millimetres_whatever_the_unit_of_the_file(tmp_path: Path) -> None:
    image = nifti()
    in_microns(image)
    nib.save(image, tmp_path / "s.nii.gz")
    np.testing.assert_allclose(load_volume(tmp_path / "s.nii.gz").affine.numpy(), AFFINE, atol=1e-3)


def series(folder: Path, step: np.ndarray) -> Any:
    """A series whose slices step along a vector, as ITK places it slice by slice."""
    folder.mkdir()
    for k in range(SHAPE[2]):
        pixels = 2 * np.random.default_rng(k).integers(0, 500, SHAPE[1::-1])
        write_slice(folder / f"{k}.dcm", pixels, step * k)
    return load_volume(folder)


def test_series_with_rounded_positions_opens_in_itk(tmp_path: Path) -> None:
    series(tmp_path / "s", np.array([0.002, 0.0, 2.5]))  # more than ITK takes for a right angle
    folder, scores = write_results(tmp_path / "s")
    assert scores["viewer_heatmap"] is None
    found = sitk.ReadImage(str(folder / "s_heatmap.nii.gz"))
    last = found.TransformIndexToPhysicalPoint([n - 1 for n in SHAPE])
    expected = 15 * 0.75 * ROW + 17 * 1.5 * COLUMN + 8 * np.array([0.002, 0, 2.5])
    np.testing.assert_allclose(last, expected, atol=0.02)


def test_tilted_gantry_gets_an_upright_heatmap_in_place(tmp_path: Path) -> None:
    step = np.array([0.0, 1.1, 2.5])
    series(tmp_path / "s", step)
    heat = np.zeros(SHAPE, np.float32)
    heat[6:9, 3:6, 6] = 2.0
    folder, scores = write_results(tmp_path / "s", heat)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(folder / "s_heatmap.nii.gz"))
    assert scores["viewer_heatmap"] == "s_heatmap_viewer.nii.gz"
    assert len(list(folder.iterdir())) == 4
    found = sitk.ReadImage(str(folder / "s_heatmap_viewer.nii.gz"))
    values = sitk.GetArrayFromImage(found)  # (Z, Y, X)
    centre = np.array(np.nonzero(values)) @ values[values > 0] / values.sum()
    expected = 7 * 0.75 * ROW + 4 * 1.5 * COLUMN + 6 * step
    place = found.TransformContinuousIndexToPhysicalPoint(centre[::-1].tolist())
    np.testing.assert_allclose(place, expected, atol=1e-3)
    assert values.sum() == pytest.approx(heat.sum(), rel=1e-3)
    for corner in np.ndindex(2, 2, 2):  # the whole study lies in it
        i, j, k = np.array(corner) * (np.array(SHAPE) - 1)
        index = found.TransformPhysicalPointToContinuousIndex(
            (i * 0.75 * ROW + j * 1.5 * COLUMN + k * step).tolist()
        )
        assert (np.array(index) > -0.01).all()
        assert (np.array(index) < np.array(found.GetSize()) - 0.99).all()


def test_sheared_nifti_without_qform_gets_one_too(tmp_path: Path) -> None:
    image = nifti()
    image.set_sform(TILTED, 1)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "s.nii.gz")
    folder, scores = write_results(tmp_path / "s.nii.gz")
    found = sitk.ReadImage(str(folder / scores["viewer_heatmap"]))
    assert sitk.GetArrayFromImage(found).max() > 1
    np.testing.assert_allclose(nib.load(folder / "s_heatmap.nii.gz").affine, TILTED, atol=1e-4)
