"""mercure's convention for containers: folders by variables, settings by ``task.json``.

mercure takes the results of a container that ends with 0, and none of another one. Its rules can
notify people where ``result.json`` requests it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcmiad_monai.dicom.analyst import DONE, FAILED
from mcmiad_monai.dicom.job import JobError, summary

IN_DIR, OUT_DIR, TASK = "MERCURE_IN_DIR", "MERCURE_OUT_DIR", "task.json"
NOTIFICATION = "__mercure_notification"
#: Settings of a module or a rule, and the types that they have.
SETTINGS: dict[str, tuple[type, ...]] = {
    "bundle": (str,),
    "output": (str, list),
    "compact": (bool,),
    "modality": (str,),
    "notify": (bool,),
}


def mercure_folders() -> tuple[Path, Path] | None:
    """Folders in and out of the environment; None outside of mercure.

    Raises
    ------
    JobError
        If one of the variables is set and the other is not.
    """
    folders = [os.environ.get(name) for name in (IN_DIR, OUT_DIR)]
    if not any(folders):
        return None
    if not all(folders):
        missing = OUT_DIR if folders[0] else IN_DIR
        raise JobError(f"{missing} is not set, and mercure's other variable is.")
    return Path(str(folders[0])), Path(str(folders[1]))


def task_settings(folder: Path) -> dict[str, Any]:
    """Settings in ``process`` → ``settings`` of the ``task.json`` of a folder.

    Raises
    ------
    JobError
        If the file cannot be read, or a setting is not known or of another type.
    """
    path = folder / TASK
    if not path.is_file():
        return {}
    try:
        process = json.loads(path.read_text(encoding="utf-8")).get("process") or {}
        if isinstance(process, list):  # of one step; of several, mercure gives each its own
            (process,) = process
        settings = process.get("settings") or {}
        names = set(settings)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise JobError(f"{path} cannot be read as a task of mercure: {error}") from error
    if unknown := sorted(names - set(SETTINGS)):
        raise JobError(
            f"{path} has the settings {', '.join(unknown)}, which are not known; there are "
            f"{', '.join(SETTINGS)}."
        )
    for name, value in settings.items():
        if not isinstance(value, SETTINGS[name]):
            expected = " or ".join(kind.__name__ for kind in SETTINGS[name])
            raise JobError(f"{path}: {name} is {value!r}; it must be of type {expected}.")
    return dict(settings)


def notification(content: Mapping[str, Any], *, notify: bool = True) -> dict[str, Any]:
    """What ``result.json`` asks mercure to tell: counts, and whether a series is anomalous.

    No name, no UID and no score: it goes into mails.
    """
    anomalous = any(series.get("anomalous") for series in content["series"])
    return {NOTIFICATION: {"text": summary(content), "requested": bool(notify and anomalous)}}


def is_success(content: Mapping[str, Any]) -> bool:
    """Whether mercure should take the results: some are there, and nothing failed.

    Localisers and other kinds of series in a study are refused as a rule; with another exit code
    mercure would drop the results of the others.
    """
    counts = content["counts"]
    nothing_to_do = not content["series"] and content["passed_over"]
    return bool(not counts[FAILED] and (counts[DONE] or nothing_to_do))
