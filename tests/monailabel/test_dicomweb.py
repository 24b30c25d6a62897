"""The app in front of a DICOM server: Orthanc with DICOMweb, on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from small_phantoms import make_liver

from mcmiad_monai.monailabel.layout import lay_out_app
from mcmiad_monai.phantom.brain import make_phantom

requests = pytest.importorskip("requests")
pydicom = pytest.importorskip("pydicom", reason="pydicom comes with the extra `label`")

BRAIN, UNIFIED, STRICT = "brain_mri_anomaly", "unified_anomaly", "brain_strict"
REAL_CT = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom" / "chaos_ct"
#: Slices of the real series to send: enough for a volume, and a third of the time.
REAL_SLICES = 26
LABEL_INFO = [{"name": "anomaly", "idx": 1, "model_name": "MCMIAD", "description": "research only"}]


@pytest.fixture(scope="module")
def mr_series(orthanc: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """UID and phantom of an oblique MR series with a lesion, sent to Orthanc."""
    phantom = make_phantom(511, lesion="mass", shape=(48, 56, 10), orientation="LPS")
    folder = tmp_path_factory.mktemp("mr")
    uid = write_series(folder, phantom.image, phantom.affine)
    send(orthanc, folder.glob("*.dcm"))
    return uid, phantom


@pytest.fixture(scope="module")
def ct_series(
    orthanc: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, tuple[int, ...], tuple[float, ...]]:
    """UID, shape and spacing of a CT series: a real one where there is one, else a phantom."""
    if REAL_CT.is_dir():
        headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in REAL_CT.glob("*.dcm")]
        headers.sort(key=lambda header: header.ImagePositionPatient[2])
        send(orthanc, [Path(header.filename) for header in headers[:REAL_SLICES]])
        uid = str(headers[0].SeriesInstanceUID)
        return uid, (512, 512, REAL_SLICES), (0.7265625, 0.7265625, 2.0)
    phantom, _ = make_liver(521, lesion="dark", orientation="LPS")
    folder = tmp_path_factory.mktemp("ct")
    uid = write_series(folder, phantom.image, phantom.affine, modality="CT")
    send(orthanc, folder.glob("*.dcm"))
    return uid, phantom.image.shape, tuple(np.linalg.norm(phantom.affine[:3, :3], axis=0))


@pytest.fixture(scope="module")
def app(
    brain_bundle: Path,
    unified_bundle: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Brain, all modalities, and a brain bundle whose masks are always empty."""
    folder = tmp_path_factory.mktemp("app")
    shutil.copytree(brain_bundle, folder / STRICT)
    config = folder / STRICT / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("mask_threshold: 1.0", "mask_threshold: 1000.0"))
    return lay_out_app(folder / "app", [brain_bundle, unified_bundle[0], folder / STRICT])


@pytest.fixture(scope="module")
def server(orthanc: str, app: Path, serve: Callable[..., Any]) -> Any:
    """The app in front of Orthanc; it lists MR, and anew each time."""
    return serve(
        app,
        f"{orthanc}/dicom-web",
        MONAI_LABEL_DICOMWEB_SEARCH_FILTER=json.dumps({"Modality": "MR"}),
        MONAI_LABEL_DICOMWEB_CACHE_EXPIRY="0",
    )


def write_series(folder: Path, image: np.ndarray, affine: np.ndarray, modality: str = "MR") -> str:
    """Write an image (X, Y, Z) whose axes are right-handed in LPS as slices; return the UID."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    study, series, frame = (pydicom.uid.generate_uid() for _ in range(3))
    for k in range(image.shape[2]):
        ds = pydicom.dataset.FileDataset("", {}, preamble=b"\0" * 128)
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.Modality, ds.PatientID, ds.PatientName = modality, "PHANTOM1", "Phantom^One"
        ds.PatientBirthDate, ds.PatientSex, ds.StudyID, ds.AccessionNumber = "", "O", "1", "1"
        ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = "20200101", "000000", ""
        ds.SeriesNumber, ds.InstanceNumber, ds.Manufacturer = 1, k + 1, "phantom"
        ds.ImagePositionPatient = [f"{v:.6f}" for v in lps[:3, :3] @ (0, 0, k) + lps[:3, 3]]
        ds.ImageOrientationPatient = [f"{v:.10f}" for v in [*axes[:, 0], *axes[:, 1]]]
        ds.PixelSpacing = [f"{spacing[1]:.8f}", f"{spacing[0]:.8f}"]
        ds.SliceThickness = ds.SpacingBetweenSlices = f"{spacing[2]:.8f}"
        ds.Rows, ds.Columns = image.shape[1], image.shape[0]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 1
        ds.PixelData = np.ascontiguousarray(image[:, :, k].T.astype("<i2")).tobytes()
        ds.is_little_endian, ds.is_implicit_VR = True, False
        ds.save_as(folder / f"{k:03d}.dcm", write_like_original=False)
    return str(series)


def send(orthanc: str, files: Iterable[Path]) -> None:
    """Send files to Orthanc."""
    for path in files:
        answer = requests.post(f"{orthanc}/instances", data=path.read_bytes(), timeout=30)
        assert answer.status_code == 200, answer.text


def infer(server: Any, model: str, uid: str, output: str = "image", **params: Any) -> Any:
    """One inference on a series."""
    return requests.post(
        f"{server.url}/infer/{model}",
        params={"image": uid, "output": output},
        data={"params": json.dumps(params)},
        timeout=300,
    )


def volume(answer: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of an answer."""
    assert answer.status_code == 200, answer.text
    path.write_bytes(answer.content)
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def segmentation(answer: Any, path: Path, shape: Any, affine: np.ndarray) -> tuple[Any, np.ndarray]:
    """Data set of a DICOM SEG, and its labels put on a grid by the position of every frame."""
    assert answer.status_code == 200, answer.text
    path.write_bytes(answer.content)
    ds = pydicom.dcmread(path)
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)  # (F, y, x)
    labels = np.zeros(shape, np.uint8)
    to_voxel = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ affine)
    for frame, group in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        position = group.PlanePositionSequence[0].ImagePositionPatient
        i, j, k = (to_voxel @ [*map(float, position), 1])[:3]
        assert abs(i) < 0.05
        assert abs(j) < 0.05
        assert abs(k - round(k)) < 0.05
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        labels[:, :, round(k)][frame.T > 0] = number
    return ds, labels


def check_reference(ds: Any, uid: str) -> None:
    assert ds.Modality == "SEG"
    assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    assert ds.SegmentSequence[0].SegmentLabel == "anomaly"


def test_series_is_listed_and_its_lesion_lights_up(
    server: Any, mr_series: tuple[str, Any], tmp_path: Path
) -> None:
    uid, phantom = mr_series
    assert requests.get(f"{server.url}/datastore/", timeout=30).json()["total"] >= 1
    mask, affine = volume(infer(server, BRAIN, uid), tmp_path / "a.nii.gz")
    assert mask.shape == phantom.image.shape
    np.testing.assert_allclose(affine, phantom.affine, atol=1e-3)
    lesion = phantom.mask > 0
    assert mask[lesion].mean() > 0.5
    assert mask[~lesion].mean() < 0.03


def test_dicom_seg_references_the_series_and_holds_the_mask(
    server: Any, mr_series: tuple[str, Any], tmp_path: Path
) -> None:
    uid, phantom = mr_series
    mask, affine = volume(infer(server, BRAIN, uid), tmp_path / "a.nii.gz")
    answer = infer(server, BRAIN, uid, "dicom_seg", label_info=LABEL_INFO)
    ds, labels = segmentation(answer, tmp_path / "a.dcm", mask.shape, affine)
    check_reference(ds, uid)
    np.testing.assert_array_equal(labels, mask)
    assert labels[phantom.mask > 0].mean() > 0.5


def test_ct_series_and_its_segmentation(
    server: Any, ct_series: tuple[str, Any, Any], tmp_path: Path
) -> None:
    uid, shape, spacing = ct_series
    heat, affine = volume(infer(server, UNIFIED, uid, output_kind="heatmap"), tmp_path / "a.nii.gz")
    assert heat.shape == shape
    assert heat.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), spacing, atol=1e-4)
    assert heat.max() > 1
    answer = infer(server, UNIFIED, uid, "dicom_seg", label_info=LABEL_INFO)
    ds, labels = segmentation(answer, tmp_path / "a.dcm", heat.shape, affine)
    check_reference(ds, uid)
    np.testing.assert_array_equal(labels == 1, heat > 1)


def test_wrong_modality_is_told_by_the_header(server: Any, orthanc: str, tmp_path: Path) -> None:
    """MONAI Label loses the header on the way to NIfTI, and keeps what it said."""
    rng = np.random.default_rng(3)
    image = rng.normal(300, 60, (48, 40, 10))
    affine = np.diag([-2.0, -2, 4, 1])
    uid = write_series(tmp_path, image, affine, modality="CT")
    send(orthanc, tmp_path.glob("*.dcm"))
    answer = infer(server, BRAIN, uid, "json")
    assert answer.status_code == 400
    assert "CT by its header" in answer.json()["detail"]
    assert "Traceback" not in answer.text
    # no value below 0: that is no CT either
    answer = infer(server, UNIFIED, uid, "json")
    assert answer.status_code == 400
    assert "Hounsfield" in answer.json()["detail"]


def test_series_with_a_gap_is_refused(server: Any, orthanc: str, tmp_path: Path) -> None:
    """MONAI Label stacks what slices there are; its NIfTI would be in the wrong place."""
    phantom = make_phantom(513, shape=(48, 56, 10), orientation="LPS")
    uid = write_series(tmp_path, phantom.image, phantom.affine)
    (tmp_path / "004.dcm").unlink()
    send(orthanc, tmp_path.glob("*.dcm"))
    answer = infer(server, BRAIN, uid, "json")
    assert answer.status_code == 400
    assert "unevenly spaced slices" in answer.json()["detail"]
    assert "/" not in answer.json()["detail"].partition(" has ")[0]


def test_what_cannot_be_a_segmentation_says_so(server: Any, mr_series: tuple[str, Any]) -> None:
    uid, _ = mr_series
    answer = infer(server, BRAIN, uid, "dicom_seg", label_info=LABEL_INFO, output_kind="heatmap")
    assert answer.status_code == 400
    assert "mask or bands" in answer.json()["detail"]
    answer = infer(server, BRAIN, "1.2.3.4", "json")
    assert answer.status_code == 404
    assert "1.2.3.4" in answer.json()["detail"]


def test_empty_mask_is_no_segmentation(server: Any, mr_series: tuple[str, Any]) -> None:
    uid, _ = mr_series
    answer = infer(server, STRICT, uid, "dicom_seg", label_info=LABEL_INFO)
    assert answer.status_code == 404
    assert "at least one segment" in answer.json()["detail"]
    assert infer(server, STRICT, uid, "json").json()["label_names"] == {}


def test_series_is_marked_as_normal_by_its_info(server: Any, mr_series: tuple[str, Any]) -> None:
    uid, _ = mr_series
    assert infer(server, BRAIN, uid, "json").status_code == 200  # fetches it
    told = requests.put(
        f"{server.url}/datastore/image/info",
        params={"image": uid},
        data={"info": json.dumps({"normal": True})},
        timeout=30,
    )
    assert told.status_code == 200, told.text
    answer = requests.post(f"{server.url}/train/{BRAIN}?run_sync=true", json={}, timeout=60)
    assert answer.status_code == 400
    assert "1 studies of 1 patients are known to be healthy" in answer.json()["detail"]
