"""What MONAI Label's server takes from a client: names, sizes, and how many inferences at once.

MONAI Label joins names of a request with paths, reads bodies of any size, and runs an inference on
the thread that answers everything else. The same endpoints are added again in front of its own,
with checks before them; `install_guard` does so when the server starts.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    model,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.interfaces.utils.app import app_instance
from starlette.datastructures import UploadFile
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcmiad_monai.monailabel.answers import SERVER
from mcmiad_monai.monailabel.requests import RequestError, check_name, number

#: Parameters, in the address or in ``params``, that MONAI Label joins with a path.
NAMES = ("image", "id", "label", "label_id", "tag", "label_tag", "session_id")
#: Endpoints whose ``params`` become a request of the app, and which can run for minutes.
TASKS = (infer, wsi_infer, batch_infer, scoring, train, activelearning)
GUARDED = (*TASKS, datastore, model, session)


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Attributes
    ----------
    upload_mb : int
        Most megabytes (10⁶ bytes) of the body of a request.
    waiting : int
        Most inferences that wait while one runs.
    """

    upload_mb: int = 2000
    waiting: int = 8

    @classmethod
    def of(cls, conf: Mapping[str, Any]) -> Limits:
        """From ``--conf max_upload_mb`` and ``--conf max_waiting``; `RequestError` if unusable."""
        upload = number(conf, "max_upload_mb", int, above=0)
        waiting = number(conf, "max_waiting", int, above=0)
        return cls(upload or cls.upload_mb, waiting or cls.waiting)


def is_guarded() -> bool:
    """Whether this process is a server with a guard."""
    server = getattr(sys.modules.get(SERVER), "app", None)
    return bool(server is not None and getattr(server.state, "mcmiad_guard", False))


def install_guard(limits: Limits) -> bool:
    """Put the checks before the endpoints of this process' server; False where there is none."""
    server = getattr(sys.modules.get(SERVER), "app", None)
    if server is None or is_guarded():
        return False
    slots = threading.BoundedSemaphore(1 + limits.waiting)
    router = APIRouter()
    for module in GUARDED:
        for route in module.router.routes:
            endpoint = _checked(route.endpoint, module, slots)
            methods = sorted(route.methods)
            router.add_api_route(route.path, endpoint, methods=methods, include_in_schema=False)
    routes = server.router.routes
    before = len(routes)
    server.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    routes[:] = [*routes[before:], *routes[:before]]  # the first that matches answers
    server.user_middleware.append(Middleware(BodyLimit, most=limits.upload_mb * 10**6))
    server.middleware_stack = None  # built anew with the limit
    server.state.mcmiad_guard = True
    return True


def check_request(values: Mapping[str, Any], module: Any) -> None:
    """Refuse arguments of an endpoint that MONAI Label must not see.

    Parameters
    ----------
    values : mapping
        Decoded arguments. Of the names of uploaded files only the last part is kept: MONAI Label's
        client sends the whole path.
    module : module
        Of the endpoint.

    Raises
    ------
    RequestError
        400.
    """
    params = values.get("params") if module in TASKS else None
    if isinstance(params, str):
        try:
            params = json.loads(params or "{}")
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"params is no JSON ({error}); send {{...}}.") from error
    if params is not None and not isinstance(params, dict):
        raise RequestError(400, "params is no JSON object; send {...}.")
    if values.get("uncompress"):  # MONAI Label writes members where their names say
        raise RequestError(400, "archives are not unpacked here; send the files themselves.")
    asked = params or {}
    if "bundle_path" in asked:  # a worker would import Python from there
        raise RequestError(400, "bundle_path is not for clients; leave it out.")
    for given in (values, asked):
        for name in NAMES:
            if isinstance(given.get(name), str):
                check_name(name, given[name])
    images = asked.get("images")
    for image in images if isinstance(images, list) else ():
        check_name("images", str(image))
    files = [file for value in values.values() for file in _files(value)]
    for file in files:
        if file.filename:
            file.filename = file.filename.replace("\\", "/").rpartition("/")[2]
            check_name("the name of the file", file.filename)


def _files(value: Any) -> list[UploadFile]:
    found = value if isinstance(value, list) else [value]
    return [file for file in found if isinstance(file, UploadFile)]


def _checked(
    endpoint: Callable[..., Any], module: Any, slots: threading.BoundedSemaphore
) -> Callable[..., Any]:
    """An endpoint with checks before it; one that runs tasks is moved to a thread."""

    async def answer(values: dict[str, Any]) -> Any:
        try:
            check_request(values, module)
            if endpoint is datastore.api_add_image:
                _check_can_upload()
            return await endpoint(**values)
        except BaseException:
            # after an error nobody runs these; they remove temporary files
            for task in getattr(values.get("background_tasks"), "tasks", ()):
                task.func(*task.args, **task.kwargs)
            raise

    async def here(**values: Any) -> Any:
        return await answer(values)

    def in_thread(**values: Any) -> Any:
        if module not in (infer, wsi_infer) and not values.get("run_sync"):
            return asyncio.run(answer(values))
        if not slots.acquire(blocking=False):
            error = RequestError(429, "too many inferences are waiting; try again later.")
            error.headers = {"Retry-After": "10"}
            raise error
        try:
            return asyncio.run(answer(values))  # MONAI Label's own code there never waits
        finally:
            slots.release()

    chosen: Any = in_thread if module in TASKS else here
    # not functools.wraps: FastAPI would look through it and take the thread's for a coroutine
    chosen.__signature__ = inspect.signature(endpoint)
    chosen.__name__ = endpoint.__name__
    return chosen


def _check_can_upload() -> None:
    if isinstance(app_instance().datastore(), DICOMWebDatastore):
        raise RequestError(
            400, "the studies are on a DICOMweb server; send the study there, by STOW-RS."
        )


class BodyLimit:
    """Answer 413 to bodies that are too large, said so beforehand or not.

    Parameters
    ----------
    app : ASGI application
        What answers the others.
    most : int
        Bytes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        error = RequestError(
            413,
            f"the body of a request has at most {self.most // 10**6} MB here; "
            "--conf max_upload_mb of the server says how many.",
        )
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self.most:
            answer = JSONResponse({"detail": error.detail}, error.status_code)
            return await answer(scope, receive, send)
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise error
            return message

        return await self.app(scope, counted, send)
