"""The series that was analysed: its headers, and where each of its slices lies."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.data import MetaTensor
from numpy.typing import NDArray
from pydicom.valuerep import DSfloat

from mcmiad_monai.files.formats import is_dicom
from mcmiad_monai.transforms.dicom import Slice, series_files, stack_affine
from mcmiad_monai.transforms.frames import frame_place, has_frames

PATIENT = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""Attributes that every object has to have, empty where the series does not have them."""

REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
"""Attributes by which objects refer to a series."""

SAME_GRID = 1e-3
"""Largest difference of affines of one grid, in millimetres."""


class SourceError(ValueError):
    """DICOM objects cannot be made of a study."""


@dataclass(frozen=True)
class Source:
    """Headers of the series that was analysed.

    Attributes
    ----------
    path : Path
        Folder of the series, or its one file.
    headers : list of Dataset
        Without pixels: one a slice, in ascending position along the normal; or one of many frames.
        What DICOM objects need and a series may lack is there, empty.
    places : list of Slice
        Of the slices, in ascending position along their normal.
    order : (Z,) ndarray
        Place, in the file, of the frame of each slice; of single slices 0, 1, 2, …
    affine : (4, 4) ndarray
        Voxel indices to RAS millimetres, of the volume as it is loaded.
    """

    path: Path
    headers: list[Any]
    places: list[Slice]
    order: NDArray[np.intp]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows and slices."""
        return int(self.headers[0].Columns), int(self.headers[0].Rows), len(self.places)

    @property
    def series(self) -> str:
        """UID of the series."""
        return str(self.headers[0].SeriesInstanceUID)

    @property
    def drift(self) -> float:
        """How far the last slice lies beside the first one's normal, in pixels."""
        first, last = self.places[0], self.places[-1]
        way = last.position - first.position
        return float(np.abs(first.axes @ way / first.spacing).max())

    def frames(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A volume (X, Y, Z) as frames (Z, Y, X) in the order of `headers`, or of their frames."""
        frames = np.empty_like(volume.T, order="C")
        frames[self.order] = volume.T
        return frames

    def image_of(self, number: int) -> tuple[str, str, list[int] | None]:
        """Class and UID of the instance of a slice, and its frame, counted from 1, if of many."""
        single = len(self.headers) > 1 or "NumberOfFrames" not in self.headers[0]
        header = self.headers[number if single else 0]
        frame = None if single else [int(self.order[number]) + 1]
        return header.SOPClassUID, header.SOPInstanceUID, frame

    def check_grid(self, heatmap: MetaTensor) -> None:
        """Refuse a heatmap (1, X, Y, Z) that does not lie on the slices.

        Raises
        ------
        SourceError
            If it has another shape or affine.
        """
        affine, shape = heatmap.affine.numpy(), tuple(heatmap.shape[1:])
        if shape != self.shape or not np.allclose(affine, self.affine, rtol=0, atol=SAME_GRID):
            raise SourceError(
                f"the heatmap {shape} does not lie on the slices of {self.path} {self.shape}; pass "
                "the series from which it was made."
            )


def is_series(path: str | Path) -> bool:
    """Whether a case's image is DICOM, by its kind: a folder, or a DICOM file."""
    path = Path(path).expanduser()
    return path.is_dir() or is_dicom(path)


def read_source(path: str | Path) -> Source:
    """Read the headers of the series of a study.

    Parameters
    ----------
    path : path
        As of a case: a folder with one DICOM series, or a DICOM file of one or more frames.

    Raises
    ------
    SourceError
        If it is no DICOM, or its frames have no places in the patient.
    VolumeError
        If the slices are no even stack; as where the series is loaded.
    """
    path = Path(path).expanduser()
    if not is_series(path):
        raise SourceError(
            f"{path} is no DICOM series, and DICOM objects refer to one. Leave seg, pmap, sr and "
            "sc out of --output for this study, or analyse the series that it was converted from."
        )
    files = series_files(path) if path.is_dir() else [path]
    with no_names_told():
        headers = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in files]
        return _of_frames(path, headers) if has_frames(files[0]) else _of_slices(path, headers)


@contextmanager
def no_names_told() -> Iterator[None]:
    """Keep warnings of pydicom and highdicom off the screen, for they quote patients' names."""
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(highdicom|pydicom)\b")
        yield


def _of_slices(path: Path, headers: Sequence[Any]) -> Source:
    placed = [(_place(path, header), header) for header in headers]
    normal = placed[0][0].normal
    placed.sort(key=lambda pair: float(pair[0].position @ normal))
    places = [place for place, _ in placed]
    affine = stack_affine(places, path)
    step = float(np.linalg.norm(affine[:3, 2]))
    first = placed[0][1]
    orientation = _decimals(first.ImageOrientationPatient)
    for _, header in placed:
        _complete(path, header)
        header.ImageOrientationPatient = orientation
        header.ImagePositionPatient = _decimals(header.ImagePositionPatient)
        header.PixelSpacing = _decimals(first.PixelSpacing)
        (header.SpacingBetweenSlices,) = _decimals([step])
        (header.SliceThickness,) = _decimals([header.get("SliceThickness") or step])
    return Source(path, [h for _, h in placed], places, np.arange(len(placed)), affine)


def _place(path: Path, header: Any) -> Slice:
    return Slice(
        path,
        np.array(header.ImagePositionPatient, np.float64),
        np.array(header.ImageOrientationPatient, np.float64).reshape(2, 3),
        np.array(header.PixelSpacing, np.float64)[::-1],  # (between rows, between columns)
        float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1.0),
    )


def _of_frames(path: Path, headers: Sequence[Any]) -> Source:
    if len(headers) > 1:
        raise SourceError(
            f"{path} has {len(headers)} multi-frame files of one series; DICOM objects refer to "
            "the frames of one. Join them, or leave seg, pmap, sr and sc out of --output."
        )
    header = headers[0]
    count = int(header.get("NumberOfFrames", 1))
    if not any("PlanePositionSequence" in group for group in _groups(header)):
        raise SourceError(
            f"{path} has frames without a position in the patient, which DICOM objects need. Leave "
            "seg, pmap, sr and sc out of --output for it."
        )
    found = [frame_place(path, header, number) for number in range(count)]
    normal = found[0].normal
    order = np.argsort([float(place.position @ normal) for place in found], kind="stable")
    places = [found[k] for k in order]
    affine = stack_affine(places, path)
    _complete(path, header)
    _share_geometry(header, float(np.linalg.norm(affine[:3, 2])))
    return Source(path, [header], places, order, affine)


def _groups(header: Any) -> list[Any]:
    return [*header.SharedFunctionalGroupsSequence, *header.PerFrameFunctionalGroupsSequence]


def _share_geometry(header: Any, step: float) -> None:
    """Have orientation and pixel size in the shared groups, where all frames have the same."""
    shared = header.SharedFunctionalGroupsSequence[0]
    first = header.PerFrameFunctionalGroupsSequence[0]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if name not in shared:
            setattr(shared, name, first[name].value)
    plane, measures = shared.PlaneOrientationSequence[0], shared.PixelMeasuresSequence[0]
    plane.ImageOrientationPatient = _decimals(plane.ImageOrientationPatient)
    measures.PixelSpacing = _decimals(measures.PixelSpacing)
    (measures.SpacingBetweenSlices,) = _decimals([step])
    (measures.SliceThickness,) = _decimals([measures.get("SliceThickness") or step])
    for group in header.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSequence[0]
        place.ImagePositionPatient = _decimals(place.ImagePositionPatient)


def _decimals(values: Iterable[Any]) -> list[DSfloat]:
    """Numbers in the at most 16 characters of DICOM, which not every scanner keeps to."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def _complete(path: Path, header: Any) -> None:
    """Add what objects have to have, empty, and refuse a series that they cannot refer to."""
    for name in REQUIRED:
        if not header.get(name):
            raise SourceError(
                f"{path} lacks {name}, by which DICOM objects refer to it. Export the series again."
            )
    for name in PATIENT:
        if name not in header:
            setattr(header, name, "")
