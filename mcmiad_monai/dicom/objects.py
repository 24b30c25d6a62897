"""DICOM objects of a prediction: segmentation, parametric map, report and picture, as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mcmiad_monai.dicom.source import Source
from mcmiad_monai.files.writing import replace_together
from mcmiad_monai.inference.prediction import Prediction

#: Kinds of objects, in the order in which they are written.
KINDS = ("seg", "pmap", "sr", "sc")


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
    compact : bool
        Smaller files that not every tool reads; see `object_writes`.
    bands : bool
        Severity bands as segments instead of the mask.

    Returns
    -------
    list of Path
        The files. Of an empty mask there is no segmentation: DICOM has none without a segment.

    Raises
    ------
    SourceError
        If an object cannot be right for the series.
    """
    raise NotImplementedError
