"""Errors of MONAI Label's endpoints become answers with a reason."""

from __future__ import annotations

import json
import sys
import types
from typing import Any

import pytest

pytest.importorskip("monailabel", reason="MONAI Label comes with the extra `label`")

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from starlette.testclient import TestClient

from mcmiad_monai.monailabel.answers import install_error_answers
from mcmiad_monai.monailabel.requests import RequestError

ERRORS: dict[str, Exception] = {
    "image": ImageNotFoundException("Image x not found"),
    "label": LabelNotFoundException("Label x not found"),
    "input": MONAILabelException(MONAILabelError.INVALID_INPUT, "no such model"),
    "server": MONAILabelException(MONAILabelError.APP_ERROR, "broken"),
    "neither": HTTPException(500, "Neither Image nor File not Session ID input is provided"),
    "other": HTTPException(500, "Failed to execute infer"),
    "ours": RequestError(409, "no model yet"),
    "json": json.JSONDecodeError("Expecting value", "{", 1),
    "runtime": RuntimeError("secret"),
    "bug": KeyError("secret"),
}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A server whose middleware is built before the handlers come, as in the real one."""
    app = FastAPI()

    @app.get("/fail/{name}")
    def fail(name: str) -> None:
        raise ERRORS[name]

    @app.get("/file")
    def file() -> Any:
        return FileResponse("")

    app.middleware_stack = app.build_middleware_stack()
    monkeypatch.setitem(sys.modules, "monailabel.app", types.SimpleNamespace(app=app))
    assert install_error_answers()
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        ("image", 404, "Image x not found"),
        ("label", 404, "Label x not found"),
        ("input", 400, "no such model"),
        ("server", 500, "broken"),
        ("neither", 400, "Neither Image"),
        ("other", 500, "Failed to execute infer"),
        ("ours", 409, "no model yet"),
        ("json", 400, "params is no JSON"),
        ("runtime", 500, "RuntimeError: the server's log"),
        ("bug", 500, "KeyError: the server's log"),
    ],
)
def test_status_and_reason(client: TestClient, name: str, status: int, detail: str) -> None:
    answer = client.get(f"/fail/{name}")
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(detail)
    assert "secret" not in answer.text


def test_missing_file_is_an_empty_segmentation(client: TestClient) -> None:
    answer = client.get("/file")
    assert answer.status_code == 404
    assert "at least one segment" in answer.json()["detail"]


def test_without_a_server_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "monailabel.app", raising=False)
    assert not install_error_answers()
