"""DICOM objects of a prediction: segmentation, parametric map, report and picture, as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydicom.uid import DeflatedExplicitVRLittleEndian

from mcmiad_monai.data.cases.names import CaseError, plain_name
from mcmiad_monai.dicom.identity import Identity
from mcmiad_monai.dicom.source import Source, SourceError, is_series, no_names_told, read_source
from mcmiad_monai.files.formats import is_address
from mcmiad_monai.files.writing import replace_together
from mcmiad_monai.inference.prediction import Prediction

KINDS = ("seg", "pmap", "sr", "sc")
"""Kinds of objects: segmentation, parametric map, structured report, secondary capture."""

VOXEL_BYTES = {"seg": 1 / 8, "pmap": 4.0, "sr": 0.0, "sc": 0.0}
"""Bytes of a kind of object a voxel, at most."""

EXTRA = "pip install 'mcmiad-monai[dicom]'"
"""How what writes objects is installed."""

ON_SLICES = ("seg", "pmap")
"""Kinds that readers lay out as an upright volume."""

DRIFT = 0.5
"""Pixels that the last slice may lie beside the first one's normal: beyond, the grid is sheared."""

#: Writes a file of which it is given the path.
Write = Callable[[Path], Any]


@dataclass(frozen=True)
class Objects:
    """Adds DICOM objects to the predictions of a cohort; see `infer_cohort`.

    Called with a case, it reads the headers of its series, and returns what adds the objects to
    the prediction.

    Attributes
    ----------
    kinds : sequence of {"seg", "pmap", "sr", "sc"}
    out : Path
        Folder of the cohort, which must not be that of the series.
    compact, bands : bool
        See `object_writes`.
    """

    kinds: Sequence[str]
    out: Path
    compact: bool = False
    bands: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What is written, for `finished_studies`."""
        return {"kinds": list(self.kinds), **self.form}

    @property
    def form(self) -> dict[str, bool]:
        """Options of the objects."""
        return {"compact": self.compact, "bands": self.bands}

    @property
    def voxel_bytes(self) -> float:
        """Bytes of the objects of a study, a voxel."""
        return sum(VOXEL_BYTES[kind] for kind in self.kinds)

    def check(self, cases: Sequence[Mapping[str, Any]]) -> None:
        """Refuse to start where no case can have objects.

        Raises
        ------
        SourceError
            If none is DICOM.
        """
        images = [case["image"] for case in cases]
        if images and not any(is_address(image) or is_series(image) for image in images):
            raise SourceError(
                f"none of {len(cases)} studies is DICOM, as {images[0]} is none, and DICOM "
                "objects refer to a series. Leave seg, pmap, sr and sc out of --output, or analyse "
                "the series that the studies were converted from."
            )

    def __call__(self, case: Mapping[str, Any]) -> Callable[[Prediction], Prediction]:
        """Read the headers of a case's series.

        Raises
        ------
        SourceError
            If the objects cannot be made of it.
        """
        if case.get("refused"):
            raise CaseError(case["refused"])
        source = read_source(case["image"])
        check_source(source, self.kinds)
        folder = self.out / plain_name(str(case["case"]))
        if folder.resolve() == source.path.resolve():
            raise SourceError(
                f"the results of {source.path} would lie among its own slices, and DICOM objects "
                "would be read as some of them. Name another output folder (--out)."
            )
        return partial(self._add, source)

    def _add(self, source: Source, prediction: Prediction) -> Prediction:
        writes = object_writes(prediction, source, self.kinds, **self.form)
        return prediction.with_objects(writes, self.form)


def check_installed() -> None:
    """Refuse to start where objects could not be written in the end.

    Raises
    ------
    SourceError
        If highdicom is not installed.
    """
    if find_spec("highdicom") is None:
        raise SourceError(
            f"DICOM objects are written by highdicom, which is not installed. Install it with "
            f"{EXTRA}, or leave seg, pmap, sr and sc out of --output."
        )


def write_objects(
    prediction: Prediction,
    source: Source,
    kinds: Sequence[str],
    out: str | Path,
    *,
    compact: bool = False,
    bands: bool = False,
) -> list[Path]:
    """Write DICOM objects of a prediction as ``out/<case>/<case>_<kind>.dcm``, all or none.

    Parameters
    ----------
    prediction : Prediction
    source : Source
        Of the series that was analysed: ``read_source(case["image"])``.
    kinds : sequence of {"seg", "pmap", "sr", "sc"}
        Segmentation of the mask, parametric map of the heatmap, report, picture.
    out : path
        Folder of the cohort.
    compact, bands : bool
        See `object_writes`.

    Returns
    -------
    list of Path
        The files. Of an empty mask there is no segmentation: DICOM has none without a segment.

    Raises
    ------
    SourceError
        If an object cannot be right for the series.
    """
    writes = object_writes(prediction, source, kinds, compact=compact, bands=bands)
    stem = Path(out) / prediction.name / prediction.name
    files = {Path(f"{stem}_{kind}.dcm"): write for kind, write in writes.items() if write}
    replace_together(files)
    return list(files)


def object_writes(
    prediction: Prediction,
    source: Source,
    kinds: Sequence[str],
    *,
    compact: bool = False,
    bands: bool = False,
) -> dict[str, Write | None]:
    """Kind → what writes its file; None where there is nothing to segment.

    Each object is made when it is written, so that there is one in memory at a time.

    Parameters
    ----------
    compact : bool
        Smaller files, which not every tool reads: the map as 16-bit numbers, by JPEG-LS; the
        picture by JPEG-LS; the segmentation deflated.
    bands : bool
        Up to three segments, of heat above 1, 2 and 4 times the threshold of the mask, instead of
        the mask.

    Raises
    ------
    SourceError
        If an object cannot be right for the series.
    """
    from mcmiad_monai.dicom.pmap import parametric_map
    from mcmiad_monai.dicom.sc import secondary_capture
    from mcmiad_monai.dicom.seg import segmentation, segments_of
    from mcmiad_monai.dicom.sr import report

    check_source(source, kinds)
    source.check_grid(prediction.heatmap)
    identity = Identity(source, prediction, compact=compact, bands=bands)
    segments = segments_of(prediction, bands=bands) if "seg" in kinds else None
    of = (source, prediction, identity)
    makers: dict[str, Callable[[], Any]] = {
        "pmap": partial(parametric_map, *of, compact=compact),
        "sr": partial(report, *of, segments),
        "sc": partial(secondary_capture, *of, compact=compact),
    }
    if segments:
        makers["seg"] = partial(segmentation, segments, *of)
    deflated = {"seg"} if compact else set()
    return {
        kind: partial(_write, makers[kind], identity, kind in deflated) if kind in makers else None
        for kind in KINDS
        if kind in kinds
    }


def check_source(source: Source, kinds: Sequence[str]) -> None:
    """Refuse kinds that cannot be right for a series.

    Raises
    ------
    SourceError
        If the grid is sheared, or the series has no frame of reference.
    """
    placed = [kind for kind in kinds if kind in ON_SLICES]
    if placed and source.drift > DRIFT:
        raise SourceError(
            f"{source.path} has a sheared grid, as of a tilted gantry: its last slice lies "
            f"{source.drift:.1f} pixels beside the first one's normal. Readers of {_and(placed)} "
            f"stack slices along the normal, and would show heat at another place. Leave "
            f"{_and(placed)} out of --output for this study (nifti is right), or straighten the "
            "series first."
        )
    if set(kinds) - {"sc"} and not source.headers[0].get("FrameOfReferenceUID"):
        raise SourceError(
            f"{source.path} has no frame of reference (FrameOfReferenceUID), so that nothing can "
            "be placed in its patient. Leave seg, pmap and sr out of --output for this study."
        )


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)


def _write(make: Callable[[], Any], identity: Identity, deflated: bool, path: Path) -> None:
    with no_names_told():
        made = make()
        if "DimensionOrganizationSequence" in made:
            uid = identity.uid(str(made.Modality), "dimensions")
            for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
                item.DimensionOrganizationUID = uid
        if deflated:
            made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        made.save_as(path, enforce_file_format=True)
