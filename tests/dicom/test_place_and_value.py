"""Heat and mask come back at their place and with their values, whoever reads them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (the name in its manual)
from known_heat import SERIES, heat_on, tool

from mcmiad_monai.dicom.objects import write_objects
from mcmiad_monai.dicom.source import read_source
from mcmiad_monai.inference.prediction import Prediction

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Millimetres between places that are one: positions are written with six decimals.
NEAR = 1e-3
#: Half a step of a compact map.
ROUNDED = 5.1e-4


def written(series: Path, kind: str, **options: Any) -> tuple[Prediction, Path]:
    prediction = heat_on(series)
    (path,) = write_objects(
        prediction, read_source(series), [kind], series.parent / "out", **options
    )
    return prediction, path


def canonical(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (X, Y, Z) in the order that is nearest to RAS, and where they lie."""
    turned = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
    return np.asarray(turned.dataobj), turned.affine


def require_same(
    found: tuple[np.ndarray, np.ndarray], prediction: Prediction, part: str, atol: float = 0
) -> None:
    """Compare whole arrays, affines, and the place of the largest value."""
    image = getattr(prediction, part)
    values, affine = canonical(*found)
    expected, place = canonical(image.numpy()[0], image.affine.numpy())
    assert values.shape == expected.shape
    np.testing.assert_allclose(affine, place, atol=NEAR)
    np.testing.assert_allclose(values, expected, atol=atol, rtol=0)
    if part == "heatmap":
        voxel = np.unravel_index(values.argmax(), values.shape)
        world = affine[:3, :3] @ voxel + affine[:3, 3]
        np.testing.assert_allclose(world, prediction.scores["hottest_mm"], atol=NEAR)


def by_highdicom(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array (slices, rows, columns) of a map as (columns, rows, slices), and its affine in RAS."""
    volume = hd.imread(path).get_volume(dtype=np.float32)
    affine = LPS_TO_RAS @ volume.affine  # of axes (slices, rows, columns)
    return volume.array.T, affine[:, [2, 1, 0, 3]]


def by_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    cosines = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3], affine[:3, 3] = cosines * image.GetSpacing(), image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, LPS_TO_RAS @ affine


@pytest.mark.parametrize("compact", [False, True], ids=["float32", "compact"])
def test_map_is_the_heatmap_to_highdicom(series: Path, compact: bool) -> None:
    prediction, path = written(series, "pmap", compact=compact)
    require_same(by_highdicom(path), prediction, "heatmap", atol=ROUNDED if compact else 0)


def test_map_is_the_heatmap_to_dcmqi(series: Path, tmp_path: Path) -> None:
    reader = tool("paramap2itkimage")
    prediction, path = written(series, "pmap")
    arguments = ["--inputDICOM", str(path), "--outputDirectory", str(tmp_path), "--prefix", "q"]
    subprocess.run([reader, *arguments], check=True, capture_output=True)
    require_same(by_itk(tmp_path / "q-pmap.nrrd"), prediction, "heatmap")


def test_segmentation_is_the_mask_to_highdicom(series: Path) -> None:
    prediction, path = written(series, "seg")
    read = hd.seg.segread(path)
    geometry = hd.imread(path).get_volume_geometry()
    assert geometry is not None
    volume = read.get_volume(combine_segments=True)
    found, mask = places_of(volume.array, LPS_TO_RAS @ volume.affine), prediction.mask
    expected = places_of(mask.numpy()[0], mask.affine.numpy())
    np.testing.assert_allclose(found, expected, atol=NEAR)


def places_of(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Sorted places (n, 3) in millimetres where there is something: empty slices are left out."""
    places = np.argwhere(values) @ affine[:3, :3].T + affine[:3, 3]
    return np.array(sorted(places.round(3).tolist()))


def test_segmentation_is_the_mask_to_dcmqi(series: Path, tmp_path: Path) -> None:
    reader = tool("segimage2itkimage")
    prediction, path = written(series, "seg")
    arguments = ["--inputDICOM", str(path), "--outputDirectory", str(tmp_path), "--prefix", "q"]
    subprocess.run([reader, *arguments, "-t", "nrrd"], check=True, capture_output=True)
    found, mask = places_of(*by_itk(tmp_path / "q-1.nrrd")), prediction.mask
    expected = places_of(mask.numpy()[0], mask.affine.numpy())
    np.testing.assert_allclose(found, expected, atol=NEAR)


@pytest.mark.parametrize("kind", ["seg", "pmap"])
def test_each_frame_refers_to_the_slice_at_its_place(series: Path, kind: str) -> None:
    _, path = written(series, kind)
    places = positions_in(series)
    frames = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    for frame in frames:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        number = int(source.get("ReferencedFrameNumber", 1))
        position = [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient]
        assert position == pytest.approx(places[source.ReferencedSOPInstanceUID, number], abs=NEAR)
    assert len(frames) == (7 if kind == "pmap" else 5)


def positions_in(series: Path) -> dict[tuple[str, int], list[float]]:
    """Instance and frame → position."""
    found = {}
    for path in series.iterdir():
        file = pydicom.dcmread(path)
        if "ImagePositionPatient" in file:
            found[file.SOPInstanceUID, 1] = [float(v) for v in file.ImagePositionPatient]
        for number, group in enumerate(file.get("PerFrameFunctionalGroupsSequence", ()), 1):
            position = group.PlanePositionSequence[0].ImagePositionPatient
            found[file.SOPInstanceUID, number] = [float(v) for v in position]
    return found


def test_bands_are_segments_of_the_heat(tmp_path: Path) -> None:
    series = SERIES["oblique"](tmp_path / "series")
    prediction, path = written(series, "seg", bands=True)
    read = hd.seg.segread(path)
    labels = [read.get_segment_description(n).segment_label for n in (1, 2, 3)]
    assert labels == ["anomaly", "anomaly: moderate", "anomaly: severe"]
    heat = prediction.heatmap
    for number, (low, high) in enumerate(((1, 2), (2, 4), (4, np.inf)), 1):
        volume = read.get_volume(segment_numbers=[number], combine_segments=True)
        inside = (heat.numpy()[0] > low) & (heat.numpy()[0] <= high)
        found = places_of(volume.array, LPS_TO_RAS @ volume.affine)
        np.testing.assert_allclose(found, places_of(inside, heat.affine.numpy()), atol=NEAR)
