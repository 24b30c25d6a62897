"""Errors of MONAI Label's own endpoints as answers that say what is wrong.

Its FastAPI application has no handler for its exceptions, so that an unknown image in
``PUT /datastore/label``, say, is an empty "Internal Server Error". The handlers below are added to
it when the app starts.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)

logger = logging.getLogger(__name__)

#: Module of the application that ``monailabel start_server`` runs.
SERVER = "monailabel.app"
#: Details that the endpoints send with status 500 although the request is wrong.
REQUEST_IS_WRONG = ("Neither Image", "DICOM SEG format is not supported")
#: What starlette says when an endpoint has no file to answer with.
NO_FILE = "File at path"
EMPTY_SEGMENTATION = (
    "there is no file to answer with: nothing exceeds the threshold, and a DICOM SEG has at least "
    "one segment. Ask for output=json, which has the scores."
)


def install_error_answers() -> bool:
    """Add the handlers to the server of this process; False where there is none."""
    server = getattr(sys.modules.get(SERVER), "app", None)
    if server is None:
        return False
    server.add_exception_handler(MONAILabelException, _monailabel)
    server.add_exception_handler(json.JSONDecodeError, _json)
    server.add_exception_handler(HTTPException, _http)
    server.add_exception_handler(RuntimeError, _runtime)
    server.add_exception_handler(Exception, _any)
    # it is built at the first event, the start-up; built anew, it has the handlers
    server.middleware_stack = None
    return True


async def _monailabel(_request: Request, error: Any) -> JSONResponse:
    missing = isinstance(error, ImageNotFoundException | LabelNotFoundException)
    wrong = error.error is MONAILabelError.INVALID_INPUT
    return _answer(404 if missing else 400 if wrong else 500, error.msg)


async def _json(_request: Request, error: Any) -> JSONResponse:
    return _answer(400, f"params is no JSON: {error}")


async def _http(_request: Request, error: Any) -> JSONResponse:
    wrong = error.status_code == 500 and str(error.detail).startswith(REQUEST_IS_WRONG)
    return JSONResponse(
        {"detail": error.detail}, 400 if wrong else error.status_code, headers=error.headers
    )


async def _runtime(_request: Request, error: Any) -> JSONResponse:
    if str(error).startswith(NO_FILE):
        return _answer(404, EMPTY_SEGMENTATION)
    raise error


async def _any(_request: Request, error: Any) -> JSONResponse:
    """The last one; starlette raises the error once more, so that the log has it."""
    return _answer(500, f"{type(error).__name__}: the server's log tells more.")


def _answer(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)
