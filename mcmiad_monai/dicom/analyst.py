"""One series after the other through a model that is opened once: DICOM results of each."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcmiad_monai.errors import root_message, unwrap
from mcmiad_monai.files.leftovers import partial_path
from mcmiad_monai.files.room import DiskFullError
from mcmiad_monai.runtime.interrupts import check

if TYPE_CHECKING:
    from mcmiad_monai.predictor import Predictor

logger = logging.getLogger(__name__)

DONE, REFUSED, FAILED = "done", "refused", "failed"
#: What of a study's scores an outcome has.
TOLD = (
    *("modality", "volume_score", "volume_threshold", "anomalous", "warnings"),
    *("anomaly_ml", "hottest", "hottest_mm"),
)


@dataclass
class Outcome:
    """What became of one series.

    Attributes
    ----------
    status : {"done", "refused", "failed"}
        Refused: the series itself is the reason. Failed: anything else.
    reason : str
        Why it is not done.
    scores : dict
        Those of `TOLD`.
    files : dict of str to Path
        Its results, by kind.
    seconds : float
        It took.
    """

    status: str
    reason: str = ""
    scores: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    seconds: float = 0.0


class Analyst:
    """Makes DICOM results of series.

    Parameters
    ----------
    predictor : Predictor
    kinds : sequence of str
        Of results; see `write_objects`.
    compact : bool
        Smaller files that not every tool reads; see `write_objects`.
    """

    def __init__(
        self, predictor: Predictor, kinds: Sequence[str], *, compact: bool = False
    ) -> None:
        self.predictor, self.kinds, self.compact = predictor, tuple(kinds), compact

    def __call__(self, folder: Path, out: Path) -> Outcome:
        """Analyse the one series of a folder, and write its results into `out`.

        An error of the series or of the program is the outcome's reason. Files are named
        ``<Series UID>#<SOP Instance UID>.dcm``, as mercure names those that belong together.

        Raises
        ------
        DiskFullError
            If there is no room for the results: it is not the series.
        """
        started = time.monotonic()
        try:
            outcome = self._analyse(folder, out)
        except DiskFullError:
            raise
        except Exception as error:
            check()  # a signal that the error has swallowed
            logger.debug("a series", exc_info=error)
            status = REFUSED if isinstance(unwrap(error), ValueError) else FAILED
            reason = root_message(error).replace(str(folder), "the series")
            outcome = Outcome(status, reason)
        outcome.seconds = round(time.monotonic() - started, 3)
        return outcome

    def _analyse(self, folder: Path, out: Path) -> Outcome:
        from mcmiad_monai.dicom.objects import write_objects
        from mcmiad_monai.dicom.source import read_source

        prediction = self.predictor(folder, name="series")
        work = partial_path(out / "objects")
        try:
            written = write_objects(
                prediction, read_source(folder), self.kinds, work, compact=self.compact
            )
            # they are named <case>_<kind>.dcm
            files = {file.stem.rpartition("_")[2]: _named(file, out) for file in written}
        finally:
            shutil.rmtree(work, ignore_errors=True)
        scores = {key: prediction.scores.get(key) for key in TOLD}
        return Outcome(DONE, scores=scores, files=files)


def _named(file: Path, out: Path) -> Path:
    """Move a file to its name of UIDs."""
    import pydicom

    header = pydicom.dcmread(file, stop_before_pixels=True)
    target = out / f"{header.SeriesInstanceUID}#{header.SOPInstanceUID}.dcm"
    return file.replace(target)
