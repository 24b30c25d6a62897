"""What the results of a cohort depend on, so that one folder never holds two kinds of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mcmiad_monai.cohort.ledger import PLAN, RECORDS, RUN
from mcmiad_monai.errors import BundleError
from mcmiad_monai.files.leftovers import partial_path
from mcmiad_monai.files.reading import file_sha256
from mcmiad_monai.files.room import room_for
from mcmiad_monai.files.writing import only_writer
from mcmiad_monai.version import __version__

#: Written by the first worker that has opened the model: ``made_with``, ``modality`` and
#: ``calibration``, which has the scores of the held-out healthy studies.
MODEL = "model.json"
#: Settings that change the speed alone.
SPEED = ("engine", "compile", "batch_size")
#: Not compared: where the same model lies may differ from machine to machine.
PLACES = ("bundle",)


class OtherRunError(ValueError):
    """The folder has results of another model, of other options or of other studies."""


def run_identity(
    bundle: Path,
    sources: Sequence[str | Path],
    *,
    settings: Mapping[str, Any],
    **choices: Any,
) -> dict[str, Any]:
    """What ``run.json`` holds.

    Parameters
    ----------
    bundle : path
        Folder of a trained bundle, or a model file.
    sources : sequence of str or path
        Where the studies are, as given.
    settings : mapping
        Settings of the bundle's ``inference.yaml`` that were given.
    **choices
        What else the results and the plan depend on, fit for JSON.

    Raises
    ------
    BundleError
        If there is no model.
    """
    model = bundle / "models" / "model.pt" if bundle.is_dir() else bundle
    if not model.is_file():
        raise BundleError(
            f"{bundle} has no trained model: {model} does not exist. Train one with mcmiad train, "
            "or name the folder of a trained bundle."
        )
    inference = bundle / "configs" / "inference.yaml"
    content = {
        "version": __version__,
        "bundle": str(bundle.absolute()),
        "model_file": file_sha256(model),
        "inference_yaml": file_sha256(inference) if inference.is_file() else None,
        "settings": {key: value for key, value in settings.items() if key not in SPEED},
        "sources": [absolute(source) for source in sources],
        **choices,
    }
    return dict(json.loads(json.dumps(content)))  # tuples as lists, as they are read again


def absolute(source: str | Path) -> str:
    """A path as it is named from everywhere; an address of the web as it is."""
    return str(source) if "://" in str(source) else str(Path(source).expanduser().absolute())


def check_run(out: Path, identity: Mapping[str, Any]) -> None:
    """Take a folder for a run, or go on with the same one.

    Until a study was begun, another run may still take the folder.

    Raises
    ------
    OtherRunError
        If it is that of another run, or of ``mcmiad infer``.
    """
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        found = read_json(out / RUN)
        if found is None and (out / "scores.json").exists():
            raise OtherRunError(
                f"{out} has results of mcmiad infer (scores.json). Name another folder (--out)."
            )
        if found is not None and (differences := _differences(found, identity)):
            if any((out / RECORDS).glob("*.jsonl")):
                raise OtherRunError(
                    f"{out} has results of another run: {'; '.join(differences)}. Name another "
                    "folder (--out), or give the same options to go on."
                )
            for name in (RUN, MODEL, PLAN):
                (out / name).unlink(missing_ok=True)
        write_once(out / RUN, [json.dumps(identity, indent=1)])


def check_model(out: Path, content: Mapping[str, Any]) -> None:
    """Say with which model a worker works, or see that it is that of the others.

    Parameters
    ----------
    out : path
        Of the cohort.
    content : mapping
        ``made_with``, which is compared, and what else is worth to be known.

    Raises
    ------
    OtherRunError
        If the others work with another one.
    """
    write_once(out / MODEL, [json.dumps(content, indent=1)])
    first = (read_json(out / MODEL) or {}).get("made_with", {})
    if differences := _differences(first, content["made_with"]):
        raise OtherRunError(
            f"the model of this worker is not that of the results in {out}: "
            f"{'; '.join(differences)}. Bring the same bundle and version to all machines."
        )


def write_once(path: Path, lines: Iterable[str]) -> bool:
    """Write a text file whole, unless it is there; whether this call wrote it."""
    if path.exists():
        return False
    partial = partial_path(path)
    try:
        with room_for(path), partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        return _linked(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _linked(partial: Path, path: Path) -> bool:
    """Give a file its name, unless another has it."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links, which no other machine shares
        if path.exists():
            return False
        partial.replace(path)
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, None where there is no file.

    Raises
    ------
    OtherRunError
        If it is something else.
    """
    content: Any = None
    with suppress(FileNotFoundError):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            content = ""
        if not isinstance(content, dict):
            raise OtherRunError(
                f"{path} is damaged; it is not known what the results beside it depend on. Name "
                "another folder (--out)."
            )
    return content


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = [key for key in (*now, *(k for k in then if k not in now)) if key not in PLACES]
    changed = [key for key in keys if then.get(key) != now.get(key)]
    return [f"{key} was {_short(then.get(key))} and is {_short(now.get(key))}" for key in changed]


def _short(value: Any) -> str:
    """A value for a message; of a digest its beginning."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}…" if len(text) == 64 else text
