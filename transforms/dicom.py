"""One DICOM series as a volume, placed by the position that every slice carries.

The slice axis of the affine is the step between slice positions and not the plane normal, so a
tilted gantry gives the sheared affine that is true to the patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name in its manual)
from numpy.typing import NDArray

from mcmiad_monai.transforms.checks import VolumeError, check_affine
from mcmiad_monai.transforms.readers import LPS_TO_RAS, Image
from mcmiad_monai.transforms.sizes import MAX_VOXELS, check_deflated, check_size

POSITION_TOLERANCE = 0.1
"""How far a slice may lie from its place in an even stack, as a share of the slice step."""

GEOMETRY_TOLERANCE = 1e-3
"""Largest difference of direction cosines, or of pixel spacing in millimetres, within a series."""

GDCM = "GDCMImageIO"
"""ITK's reader of DICOM; by itself ITK does not take every file without preamble for DICOM."""

MODALITY = "0008|0060"
IMAGE_TYPE = "0008|0008"
IMAGE_POSITION = "0020|0032"
IMAGE_ORIENTATION = "0020|0037"
PIXEL_SPACING = "0028|0030"
SLICE_SPACING = "0018|0088"
SLICE_THICKNESS = "0018|0050"
SERIES_NUMBER = "0020|0011"


@dataclass(frozen=True)
class Slice:
    """Header of one slice, in the LPS millimetres of DICOM.

    Attributes
    ----------
    path : Path
        Its file, or the file and the frame in it.
    position : (3,) ndarray
        Centre of the first pixel.
    axes : (2, 3) ndarray
        Unit vectors along a row (x) and along a column (y).
    spacing : (2,) ndarray
        Millimetres between pixels along x and along y.
    thickness : float
        Distance to the next slice where the header has it, else the thickness, else 1 mm.
    """

    path: Path
    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    spacing: NDArray[np.float64]
    thickness: float

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit normal of the plane (3,)."""
        return np.cross(self.axes[0], self.axes[1])


def read_dicom_folder(folder: Path, max_voxels: int = MAX_VOXELS) -> Image:
    """Read the one DICOM series that lies in a folder; Hounsfield rescaling is applied by GDCM.

    Raises
    ------
    VolumeError
        If there is none, there are several, or the slices are no even stack of grey images.
    """
    files = series_files(folder, max_voxels)
    return read_dicom_files(files, source=folder, max_voxels=max_voxels)


def series_files(folder: Path, max_voxels: int = MAX_VOXELS) -> list[Path]:
    """Files of the one DICOM series that lies in a folder.

    Raises
    ------
    VolumeError
        If there is none, or there are several.
    """
    for file in folder.iterdir():
        if file.is_file():
            check_deflated(file, max_voxels)
    with _quiet():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        files = {
            uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in series
        }
    if not files:
        raise VolumeError(
            f"{folder} is a folder without DICOM slices; a folder that directly holds one DICOM "
            "series is needed. Pass the file itself if it is NIfTI, or the series' own folder."
        )
    if len(files) > 1:
        found = "; ".join(_describe(names) for names in files.values())
        raise VolumeError(
            f"{folder} holds {len(files)} DICOM series ({found}); one is needed. Move each series "
            "to a folder of its own and pass one folder per series."
        )
    return [Path(name) for name in next(iter(files.values()))]


def read_dicom_files(paths: Sequence[Path], *, source: Path, max_voxels: int = MAX_VOXELS) -> Image:
    """Stack DICOM slices by position, each with its own pixel type, slope and intercept.

    `source` names them in errors. Files of several frames are read by `read_frames`.

    Raises
    ------
    VolumeError
        If slices differ in size, orientation or pixel spacing, are coloured, lack a position, are
        not evenly spaced, are mosaics, or have more than `max_voxels` together.
    """
    from mcmiad_monai.transforms.frames import has_frames, read_frames

    if has_frames(paths[0]):
        return read_frames(paths, source, max_voxels)
    with _quiet():
        headers = [_open(path) for path in paths]
        _check_sizes(headers, source)
        _check_no_mosaic(headers, source)
        check_size((*headers[0].GetSize()[:2], len(headers)), source, max_voxels)
        slices = [_slice(path, header) for path, header in zip(paths, headers, strict=True)]
        normal = slices[0].normal
        slices.sort(key=lambda s: float(s.position @ normal))
        affine = stack_affine(slices, source)
        check_affine(affine, source)
        columns, rows = headers[0].GetSize()[:2]
        volume = np.empty((len(slices), rows, columns), np.float32)  # (Z, Y, X)
        for k, place in enumerate(slices):
            # one by one: a reader of series gives all slices the type of the first, and wraps them
            volume[k] = unpacked(place.path)[0]
    return Image(volume.T, affine, dicom_modality=_tag(headers[0], MODALITY) or None)


def unpacked(path: Path, *, of: Path | None = None) -> NDArray[Any]:
    """Values (n, Y, X) of a file, with slope and intercept where GDCM knows them.

    Parameters
    ----------
    path : Path
    of : Path, optional
        The file that it was made of, for errors.

    Raises
    ------
    VolumeError
        If they are compressed and cannot be unpacked.
    """
    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO=GDCM)))
    except RuntimeError as error:
        syntax = _transfer_syntax(path)
        if syntax is None or not syntax.is_compressed:
            raise
        raise VolumeError(
            f"{of or path} is compressed ({syntax.name}), and its pixels cannot be unpacked: they "
            "are damaged, or of a kind that is not read. Unpack the series, for example with "
            "gdcmconv --raw or dcmdjpeg, or export it again."
        ) from error


def _transfer_syntax(path: Path) -> Any:
    """How a file stores its pixels; None where it does not say, or not in a way that is known."""
    import pydicom

    meta = pydicom.dcmread(path, stop_before_pixels=True, force=True).file_meta
    syntax = meta.get("TransferSyntaxUID")
    return syntax if syntax is not None and syntax.is_transfer_syntax else None


def _open(path: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(GDCM)
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _describe(names: Sequence[str]) -> str:
    header = _open(Path(names[0]))
    columns, rows = header.GetSize()[:2]
    number = _tag(header, SERIES_NUMBER) or "?"
    return f"number {number}: {len(names)} files of {columns}x{rows}"


def _check_sizes(headers: Sequence[Any], source: Path) -> None:
    kinds = [(*h.GetSize()[:2], h.GetNumberOfComponents()) for h in headers]
    if len(set(kinds)) > 1:
        counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        found = "; ".join(f"{n} of {w}x{h} with {c} channel(s)" for (w, h, c), n in counts.items())
        raise VolumeError(
            f"{source} has slices of unequal size ({found}); slices of one size are needed. Move "
            "localisers, summaries and screen captures out of the folder."
        )
    if kinds[0][2] > 1:
        raise VolumeError(
            f"{source} has colour pixels ({kinds[0][2]} channels); grey ones are needed. Use the "
            "original series instead of a screen capture or a colour map."
        )
    frames = max(h.GetSize()[2] if len(h.GetSize()) > 2 else 1 for h in headers)
    if frames > 1:
        raise VolumeError(
            f"{source} is a multi-frame DICOM file with {frames} frames and no positions of them; "
            "single slices, or an enhanced CT, enhanced MR or ophthalmic tomography image are "
            "needed. Convert it to NIfTI, for example with dcm2niix."
        )


def _check_no_mosaic(headers: Sequence[Any], source: Path) -> None:
    """A mosaic of Siemens has all slices of a volume as tiles of one image."""
    if any("MOSAIC" in _tag(header, IMAGE_TYPE).split("\\") for header in headers):
        columns, rows = headers[0].GetSize()[:2]
        raise VolumeError(
            f"{source} is a Siemens mosaic: each image of {columns}x{rows} pixels has all slices "
            "of a volume as tiles (ImageType says MOSAIC); one slice per image is needed. Unfold "
            "it with dcm2niix and give one time point of the result as NIfTI."
        )


def _slice(path: Path, header: Any) -> Slice:
    position = _numbers(header, IMAGE_POSITION, 3)
    axes = _numbers(header, IMAGE_ORIENTATION, 6)
    spacing = _numbers(header, PIXEL_SPACING, 2)
    if position is None or axes is None or spacing is None:
        raise VolumeError(
            f"{path} lacks an image position, orientation or pixel spacing; all three are needed "
            "to place a slice. Use the original series instead of a screen capture."
        )
    thickness = _numbers(header, SLICE_SPACING, 1)
    if thickness is None:
        thickness = _numbers(header, SLICE_THICKNESS, 1)
    size = 1.0 if thickness is None else float(thickness[0])
    # PixelSpacing is (between rows, between columns), that is (y, x)
    return Slice(path, position, axes.reshape(2, 3), spacing[::-1], size)


def _tag(header: Any, key: str) -> str:
    return header.GetMetaData(key).strip() if header.HasMetaDataKey(key) else ""


def _numbers(header: Any, key: str, count: int) -> NDArray[np.float64] | None:
    parts = [part for part in _tag(header, key).split("\\") if part.strip()]
    return np.array([float(part) for part in parts]) if len(parts) == count else None


def stack_affine(slices: Sequence[Slice], source: Path) -> NDArray[np.float64]:
    """Affine (4, 4) in RAS of slices that are sorted along their normal."""
    first = slices[0]
    for other in slices[1:]:
        _check_same_plane(first, other, source)
    affine = np.eye(4)
    affine[:3, 0] = first.axes[0] * first.spacing[0]
    affine[:3, 1] = first.axes[1] * first.spacing[1]
    affine[:3, 2] = _slice_step(slices, source)
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def _check_same_plane(first: Slice, other: Slice, source: Path) -> None:
    turned = np.abs(first.axes - other.axes).max() > GEOMETRY_TOLERANCE
    if turned or np.abs(first.spacing - other.spacing).max() > GEOMETRY_TOLERANCE:
        raise VolumeError(
            f"{source} has slices of unequal orientation or pixel spacing ({first.path.name} and "
            f"{other.path.name}); parallel slices of one spacing are needed. Separate the planes "
            "into series and folders of their own."
        )


def _slice_step(slices: Sequence[Slice], source: Path) -> NDArray[np.float64]:
    """Vector (3,) from one slice to the next, in LPS millimetres."""
    if len(slices) == 1:
        return slices[0].normal * slices[0].thickness
    positions = np.stack([s.position for s in slices])  # (n, 3)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    length = float(np.linalg.norm(step))
    even = positions[0] + np.arange(len(slices))[:, None] * step  # (n, 3)
    error = np.linalg.norm(positions - even, axis=1).max()
    if error > POSITION_TOLERANCE * length or length == 0:
        gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        raise VolumeError(
            f"{source} has unevenly spaced slices: steps from {gaps.min():.3f} to {gaps.max():.3f} "
            "mm between neighbours; even steps are needed. Restore missing slices, separate phases "
            "and repeated slices into folders of their own, or resample the series evenly first."
        )
    return step


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep GDCM's warnings off the console: what matters is checked here and raised as an error."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
