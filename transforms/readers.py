"""File formats: each reader returns the voxels as stored and an affine in RAS millimetres.

A reader looks at the header before it reads voxels, so that an unsuitable file is refused quickly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import NDArray

from mcmiad_monai.files.formats import (
    DICOM_SUFFIXES,
    IMAGE_SUFFIXES,
    ITK_SUFFIXES,
    NIBABEL_SUFFIXES,
    PICTURE_SUFFIXES,
    is_dicom,
)
from mcmiad_monai.transforms.checks import VolumeError, check_affine, check_dtype, spatial_shape
from mcmiad_monai.transforms.sizes import (
    MAX_VOXELS,
    check_data_file,
    check_deflated,
    check_packed_header,
    check_size,
)

NIFTI_LABEL_INTENTS = (1002, 1003)
"""NIfTI intent codes of label maps: NIFTI_INTENT_LABEL and NIFTI_INTENT_NEURONAME."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""ITK and DICOM count millimetres to the left and to the back, NIfTI to the right and the front."""

UNCOPIED = {"sizeof_hdr", "magic", "vox_offset"}
"""Fields of a NIfTI header that differ between its two versions."""

PACKED = (".gz", ".mgz")
"""Ends of the names of files that gzip packed."""

GREY_MODES = ("L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes that hold one grey value a pixel."""


@dataclass(frozen=True)
class Image:
    """Voxels as read.

    Attributes
    ----------
    values : (X, Y, Z) ndarray
        Voxels, with the scaling of the header applied.
    affine : (4, 4) ndarray of float64
        Voxel indices to millimetres in RAS.
    is_label : bool
        The header itself says that this is a label map.
    is_picture : bool
        A PNG, JPEG, TIFF or BMP: grey levels of a display rather than measured intensities.
    colours : (3, X, Y, Z) ndarray, optional
        Red, green and blue of a picture in colour.
    dicom_modality : str or None
        ``"MR"``, ``"CT"``, …, where a DICOM header or a BIDS sidecar has it.
    nifti_header : (348,) ndarray of uint8, optional
        Of a NIfTI file, whose voxels can be placed in several ways.
    """

    values: NDArray[Any]
    affine: NDArray[np.float64]
    is_label: bool = False
    is_picture: bool = False
    colours: NDArray[Any] | None = None
    dicom_modality: str | None = None
    nifti_header: NDArray[np.uint8] | None = None


def read_image(path: Path, max_voxels: int = MAX_VOXELS) -> Image:
    """Read one file or one folder with a DICOM series.

    Raises
    ------
    VolumeError
        If the path does not exist, is empty, of an unknown type, damaged, no single volume, or
        larger by its header than `max_voxels`.
    """
    if not path.exists():
        raise VolumeError(f"{path} does not exist; a file or a DICOM folder is needed.")
    if path.is_dir():
        return _read_dicom_folder(path, max_voxels)
    if path.stat().st_size == 0:
        raise VolumeError(f"{path} is empty (0 bytes). Copy or export the file again.")
    reader = _reader_for(path)
    with _damage_reported(path):
        return reader(path, max_voxels)


def _reader_for(path: Path) -> Reader:
    name = path.name.lower()
    for suffixes, reader in _READERS.items():
        if name.endswith(suffixes):
            return reader
    if is_dicom(path):
        return _read_dicom_file
    known = ", ".join(IMAGE_SUFFIXES + DICOM_SUFFIXES)
    raise VolumeError(
        f"{path} is of an unknown type; expected one of {known} or a folder with one DICOM series. "
        "Convert it, for example with dcm2niix."
    )


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Turn the many errors of the libraries for a damaged file into one."""
    try:
        yield
    except VolumeError:
        raise
    except MemoryError as error:
        raise VolumeError(
            f"{path} does not fit into memory. Check that its header is right, or use a machine "
            "with more memory."
        ) from error
    except Exception as error:  # of libraries, for which a damaged file is anything
        raise VolumeError(
            f"{path} could not be read; it is damaged, cut short, or not what its name says "
            f"({type(error).__name__}: {error}). Copy or export the file again."
        ) from error


def _read_nibabel(path: Path, max_voxels: int) -> Image:
    """NIfTI, Analyze and FreeSurfer MGH; scaling by slope and intercept is nibabel's."""
    if path.suffix.lower() in PACKED:
        check_packed_header(path, max_voxels)
    stored: Any = nib.load(path)
    return nibabel_image(stored, path, lambda: _values(stored, path), max_voxels)


def nibabel_image(
    stored: Any, path: Path, read: Callable[[], NDArray[Any]], max_voxels: int = MAX_VOXELS
) -> Image:
    """An image of nibabel; its voxels are read only once its header has been checked."""
    shape = spatial_shape(stored.shape, path)
    check_size(shape, path, max_voxels)
    check_dtype(stored.get_data_dtype(), path)
    affine = np.diag([*[millimetres(stored.header)] * 3, 1.0]) @ stored.affine
    check_affine(affine, path)
    intent = int(stored.header["intent_code"]) if "intent_code" in stored.header else 0
    return Image(
        read().reshape(shape),
        affine,
        is_label=intent in NIFTI_LABEL_INTENTS,
        dicom_modality=sidecar_modality(path),
        nifti_header=_nifti_header(stored.header),
    )


def millimetres(header: Any) -> float:
    """Millimetres in the unit of length of a nibabel header; one that has none means them."""
    unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
    return {"micron": 1e-3, "meter": 1e3}.get(unit, 1.0)


def _nifti_header(header: Any) -> NDArray[np.uint8] | None:
    """Bytes of a NIfTI header, that of NIfTI-2 as one of NIfTI-1; None of others."""
    if not isinstance(header, nib.Nifti1Header):
        return None
    copied = nib.Nifti1Header()
    for name in set(copied.keys()) & set(header.keys()) - UNCOPIED:
        copied[name] = header[name]
    return np.frombuffer(copied.binaryblock, np.uint8).copy()


def _values(stored: Any, path: Path) -> NDArray[Any]:
    """Scaled values; what gzip packed is unpacked by ISA-L, several times as fast as by zlib."""
    if path.suffix.lower() not in PACKED:
        return np.asanyarray(stored.dataobj)
    with igzip.open(path, "rb") as file:
        packed = type(stored).from_file_map({"image": nib.FileHolder(str(path), file)})
        return np.asanyarray(packed.dataobj)


def sidecar_modality(path: Path) -> str | None:
    """``Modality`` of the JSON that dcm2niix writes beside a NIfTI file (BIDS), if there is one."""
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    sidecar = path.with_name(f"{name}.json")
    if name == path.name or not sidecar.is_file():
        return None
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # some other JSON of this name; nothing rests on it
    modality = content.get("Modality") if isinstance(content, dict) else None
    return modality if isinstance(modality, str) else None


def _read_itk(path: Path, max_voxels: int) -> Image:
    """NRRD and MetaImage through SimpleITK."""
    import SimpleITK as sitk  # noqa: N813 (the name in its manual)

    check_data_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    shape = spatial_shape(reader.GetSize(), path)
    check_size(shape, path, max_voxels)
    if reader.GetNumberOfComponents() > 1:
        raise VolumeError(
            f"{path} has {reader.GetNumberOfComponents()} numbers per voxel; one is needed. Export "
            "one channel, or the series from which a colour map was made."
        )
    affine = itk_affine(reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    check_affine(affine, path)
    stored = sitk.GetArrayFromImage(reader.Execute())  # reversed axes: (Z, Y, X)
    check_dtype(stored.dtype, path)
    return Image(stored.T.reshape(shape), affine)


def itk_affine(
    spacing: tuple[float, ...], origin: tuple[float, ...], direction: tuple[float, ...]
) -> NDArray[np.float64]:
    """Affine (4, 4) in RAS from the geometry of an ITK image of 2, 3 or more dimensions."""
    rank, axes = len(spacing), min(len(spacing), 3)
    affine = np.eye(4)
    cosines = np.asarray(direction, dtype=np.float64).reshape(rank, rank)
    affine[:axes, :axes] = (cosines * np.asarray(spacing))[:axes, :axes]
    affine[:axes, 3] = origin[:axes]
    return LPS_TO_RAS @ affine


def _read_picture(path: Path, max_voxels: int) -> Image:
    """One 2-D image: x to the right, y down; its values are the luminance of its colours.

    It is turned upright as its EXIF orientation says and every viewer shows it.
    """
    from PIL.ImageOps import exif_transpose

    # not by its name: Pillow maps such a TIFF, and takes the width of a turned one for its height
    with path.open("rb") as file, _picture_opened(file, path) as stored:
        check_size(stored.size, path, max_voxels)
        if (pages := getattr(stored, "n_frames", 1)) > 1:
            return _read_pages(stored, path, pages, max_voxels)
        picture = exif_transpose(stored)
        colours = None
        if picture.mode in GREY_MODES:
            grey = np.asarray(picture)  # (H, W)
        else:
            rgb = picture.convert("RGB")
            grey = np.asarray(rgb.convert("L"))  # (H, W), ITU-R 601 luma
            colours = np.asarray(rgb).T[..., None]  # (3, W, H, 1)
    # a picture is shown with x to the patient's left and y to the back, in pixels of 1 mm
    return Image(grey.T[:, :, None], LPS_TO_RAS.copy(), is_picture=True, colours=colours)


def _read_pages(picture: Any, path: Path, pages: int, max_voxels: int) -> Image:
    """The pages of a TIFF as slices of a volume, such as the B-scans of an OCT."""
    from PIL.ImageOps import exif_transpose

    size, grey = picture.size, []
    check_size((*size, pages), path, max_voxels)
    for k in range(pages):
        picture.seek(k)
        if picture.format != "TIFF" or picture.size != size:
            raise VolumeError(
                f"{path} is a {picture.format} of {pages} pages, of {size} and {picture.size}; one "
                "2-D image, or a TIFF with pages of one size, is needed. Save each page as a file "
                "of its own."
            )
        page = exif_transpose(picture)
        grey.append(np.asarray(page if page.mode in GREY_MODES else page.convert("L")).T)
    return Image(np.stack(grey, axis=-1), LPS_TO_RAS.copy(), is_picture=True)


def _picture_opened(file: IO[bytes], path: Path) -> Any:
    """A picture whose header was read; Pillow has a limit of its own."""
    from PIL import Image as Pillow

    try:
        return Pillow.open(file)
    except Pillow.DecompressionBombError as error:
        raise VolumeError(
            f"{path} is too large by its header: {error} Export it smaller, or as NIfTI."
        ) from error


def _read_dicom_file(path: Path, max_voxels: int) -> Image:
    from mcmiad_monai.transforms.dicom import read_dicom_files

    check_deflated(path, max_voxels)
    return read_dicom_files([path], source=path, max_voxels=max_voxels)


def _read_dicom_folder(path: Path, max_voxels: int) -> Image:
    from mcmiad_monai.transforms.dicom import read_dicom_folder

    with _damage_reported(path):
        return read_dicom_folder(path, max_voxels)


#: Reads a file of at most so many voxels.
Reader = Callable[[Path, int], Image]
_READERS: dict[tuple[str, ...], Reader] = {
    NIBABEL_SUFFIXES: _read_nibabel,
    ITK_SUFFIXES: _read_itk,
    PICTURE_SUFFIXES: _read_picture,
}
