"""Errors of MONAI Label's own endpoints as answers that say what is wrong.

Its FastAPI application has no handler for its exceptions: an unknown image in
``PUT /datastore/label``, say, gives an empty "Internal Server Error". The handlers below are added
when the app starts.
"""

from __future__ import annotations

import json
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

#: Module of the application that ``monailabel start_server`` runs.
SERVER = "monailabel.app"
#: Details that the endpoints send with status 500 although the request is wrong.
REQUEST_IS_WRONG = ("Neither Image", "DICOM SEG format is not supported")
#: Start of starlette's error where an endpoint has no file to answer with.
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
    for kind in (MONAILabelException, json.JSONDecodeError, HTTPException, RuntimeError):
        server.add_exception_handler(kind, _answer)
    server.add_exception_handler(Exception, _unexpected)
    # it was built at the start-up event; built anew, it has the handlers
    server.middleware_stack = None
    return True


async def _answer(_request: Request, error: Any) -> JSONResponse:
    """Answer with status and reason."""
    headers = None
    if isinstance(error, MONAILabelException):
        missing = isinstance(error, ImageNotFoundException | LabelNotFoundException)
        wrong = error.error is MONAILabelError.INVALID_INPUT
        status, detail = 404 if missing else 400 if wrong else 500, error.msg
    elif isinstance(error, json.JSONDecodeError):
        status, detail = 400, f"params is no JSON: {error}"
    elif isinstance(error, HTTPException):
        wrong = error.status_code == 500 and str(error.detail).startswith(REQUEST_IS_WRONG)
        status, detail = 400 if wrong else error.status_code, error.detail
        headers = error.headers
    elif str(error).startswith(NO_FILE):
        status, detail = 404, EMPTY_SEGMENTATION
    else:
        raise error
    return JSONResponse({"detail": detail}, status, headers=headers)


async def _unexpected(_request: Request, error: Exception) -> JSONResponse:
    """The last one; starlette raises the error again, so that the log has it."""
    return JSONResponse({"detail": f"{type(error).__name__}: the server's log tells more."}, 500)
