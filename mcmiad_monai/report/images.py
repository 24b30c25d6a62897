"""The image that a heatmap was made from: found again by name, and shown only if it is the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcmiad_monai.data.cases.names import MissingSplitError, plain_name
from mcmiad_monai.data.cases.splits import find_studies
from mcmiad_monai.data.studies import study_digest
from mcmiad_monai.errors import root_message
from mcmiad_monai.modality import UNIFIED, get_modality
from mcmiad_monai.report.rows import Row

logger = logging.getLogger(__name__)

#: Why a page has no image, for its reader.
NOT_NAMED = (
    "The results do not say where the image is. To have it here, name the source of the studies: "
    "mcmiad report FOLDER --source SOURCE."
)
NOT_FOUND = "The image is not where it was, or not in the source that was named."
CHANGED = "The image has changed since: it is not the one that this heat was made from."
NOT_READ = "The image cannot be read any more."


class Images:
    """Where the images of a cohort are.

    Parameters
    ----------
    sources : sequence of path
        In which studies are looked for by their names, as `mcmiad infer` does.
    rows : sequence of Row
        Of the cohort; an image path of its own is used where no source has the study.
    image_name : str, optional
        Word in the names of the images, where a study has several.
    organs : mapping, optional
        Case → mask of the organ that was looked at, where no source has the study.

    Raises
    ------
    CaseError
        If a source cannot be read.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        rows: Sequence[Row],
        *,
        image_name: str | None = None,
        organs: Mapping[str, str] | None = None,
    ) -> None:
        self.named, self._organs = bool(sources), organs or {}
        self._cases: dict[str, Mapping[str, Any]] = {}
        if sources:
            kinds = {row.modality for row in rows if row.modality}
            modality = get_modality(kinds.pop()) if len(kinds) == 1 else UNIFIED
            for split in ("test", "all"):
                try:
                    found = find_studies(
                        sources,
                        split,
                        modality=modality,
                        image_name=image_name,
                    )
                except MissingSplitError:
                    continue
                for case in found:
                    self._cases.setdefault(plain_name(str(case["case"])), case)

    def of(self, row: Row, scores: Mapping[str, Any]) -> tuple[Path | None, str]:
        """Path of a study's image, or None and the reason for the reader of its page.

        The files are read and compared with the digest that the result has of its input.
        """
        case = self._cases.get(row.case)
        if case is None and row.image and "://" not in row.image:
            case = {"image": row.image, "organ": self._organs.get(row.case)}
        if case is None:
            return None, NOT_FOUND if self.named else NOT_NAMED
        made = scores.get("made_with") or {}
        path = Path(case["image"]).expanduser()
        try:
            digest = study_digest(case, organ=made.get("region") == "organ")
        except FileNotFoundError:
            return None, NOT_FOUND
        except (OSError, ValueError) as error:
            logger.warning("study %s: its image is not shown: %s", row.case, root_message(error))
            return None, NOT_READ
        return (path, "") if digest == scores.get("input") else (None, CHANGED)
