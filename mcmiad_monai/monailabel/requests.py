"""What a client may ask for, and answers that say what is wrong with a request."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast
from urllib.parse import unquote

import numpy as np
from fastapi import HTTPException

OutputKind = Literal["mask", "bands", "heatmap"]

#: Kinds of volume an answer can hold; the first is the default, which viewers show.
OUTPUT_KINDS: tuple[OutputKind, ...] = ("mask", "bands", "heatmap")
#: File types of an answer: what 3D Slicer, OHIF and scripts read.
EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
#: Label tag of what users submit.
FINAL = "final"
#: Most bytes of a name; file systems take no more.
LONGEST_NAME = 255
#: Module that runs batch inference, scoring and training in a process of its own.
WORKER = "monailabel.interfaces.utils.app"

Method = TypeVar("Method", bound=Callable[..., Any])


class RequestError(HTTPException):
    """A request that cannot be served; the client gets the status and the message.

    Parameters
    ----------
    status : int
        400 for what the client can correct, 404 for what is not there, 409 for what is not there
        yet or is there already, 413 for what is too large, 429 where too many wait, 500 where the
        server's own files are wrong, 502 where another server does not answer.
    message : str
        What was found, what was expected, what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status_code=status, detail=message)


def check_name(what: str, name: str) -> None:
    """Refuse names that a path could be made of; an empty one says that there is none.

    `RequestError` 400, also if the name becomes a path when it is decoded once more.
    """
    for text in (name, unquote(name)):
        parts = any(c in "/\\\x7f" or c < " " for c in text) or (text and not text.strip(". "))
        if parts or len(text.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
            raise RequestError(
                400,
                f"{what} is {name[:80]!r}; a name is needed: at most {LONGEST_NAME} bytes, no "
                "slash, backslash or control character, not of dots alone.",
            )


def given(request: Mapping[str, Any], name: str) -> Any:
    """A value of a request; None where it is left out or empty.

    Viewers send all choices where the user chose none: the first is the default.
    """
    value = request.get(name)
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return None if value in (None, "") else value


def output_kind(request: Mapping[str, Any]) -> OutputKind:
    """The kind of volume to answer with: as asked for, but bands for a heatmap in whole numbers.

    3D Slicer and OHIF ask for uint8 and take each value for a label; a heatmap would be cut off.
    `RequestError` 400 if there is no such kind or number type.
    """
    kind = choice(request, "output_kind", OUTPUT_KINDS, OUTPUT_KINDS[0])
    dtype = _result_dtype(request)
    whole = dtype is not None and dtype.kind in "iu"
    return cast(OutputKind, "bands" if kind == "heatmap" and whole else kind)


def extension(request: Mapping[str, Any], path: str) -> str:
    """File type of the answer: as asked for, or that of the image, or NIfTI.

    `RequestError` 400 if a type is asked for that cannot be written.
    """
    same = next((e for e in EXTENSIONS if path.lower().endswith(e)), EXTENSIONS[0])
    return cast(str, choice(request, "result_extension", EXTENSIONS, same))


def label_tag(request: Mapping[str, Any], default: str) -> str:
    """Tag under which the datastore keeps what a model made.

    `RequestError` 400 if it is no name of a folder, or that of the users' final labels, which tell
    training what is healthy.
    """
    tag = given(request, "label_tag") or default
    name = str(getattr(tag, "value", tag))
    check_name("label_tag", name)
    if name == FINAL:
        raise RequestError(
            400,
            f"label_tag is {FINAL!r}, which is for the labels that people submit: training takes "
            "an empty one for a healthy study. Choose another tag, for example 'original'.",
        )
    return name


def label_dtype(request: Mapping[str, Any]) -> np.dtype[Any]:
    """Integer type of a label map: as asked for, uint8 where that is no integer type.

    `RequestError` 400 if the type is not known.
    """
    dtype = _result_dtype(request)
    return dtype if dtype is not None and dtype.kind in "iu" else np.dtype(np.uint8)


def number(
    request: Mapping[str, Any], name: str, kind: type[int] | type[float], *, above: float
) -> Any:
    """A number of a request, which may come as text; None where it is left out.

    `RequestError` 400 if it is no number of this kind, or not above the limit.
    """
    value = given(request, name)
    if value is None:
        return None
    try:
        found = kind(value)
    except (TypeError, ValueError):
        found = None
    if found is None or isinstance(value, bool) or not above < found < float("inf"):
        raise RequestError(
            400, f"{name} is {value!r}; a {kind.__name__} above {above:g} is needed."
        )
    return found


def plain_text(request: Mapping[str, Any], name: str) -> str | None:
    """A text of a request that goes into a configuration; None where it is left out.

    `RequestError` 400 if it is no text, or one that a configuration would execute or follow.
    """
    value = given(request, name)
    if value is not None and (not isinstance(value, str) or any(c in value for c in "$@%")):
        raise RequestError(400, f"{name} is {value!r}; a name or a path without $, @, % is needed.")
    return value


def choice(
    request: Mapping[str, Any], name: str, choices: Sequence[str], default: str | None = None
) -> str | None:
    """One of several words of a request, or the default; `RequestError` 400 if it is another."""
    value = given(request, name)
    if value is not None and value not in choices:
        raise RequestError(400, f"{name} is {value!r}; choose one of {', '.join(choices)}.")
    return default if value is None else str(value)


def _result_dtype(request: Mapping[str, Any]) -> np.dtype[Any] | None:
    asked = request.get("result_dtype")
    try:
        return np.dtype(asked) if asked else None
    except TypeError as error:
        raise RequestError(
            400, f"result_dtype {asked!r} is no number type; give uint8 or uint16, for example."
        ) from error


def one_line_in_worker(method: Method) -> Method:
    """Make a worker end with the message of a `RequestError` instead of a traceback.

    A worker runs one task in a process of its own, and the server shows clients what it prints.
    """

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except RequestError as error:
            spec = getattr(sys.modules.get("__main__"), "__spec__", None)
            if getattr(spec, "name", None) != WORKER:
                raise
            raise SystemExit(str(error.detail)) from None

    return cast(Method, run)
