"""What a request may say."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label comes with the extra `label`")

from monailabel.utils.async_tasks import utils as async_tasks

from mcmiad_monai.monailabel import requests as asked
from mcmiad_monai.monailabel.requests import RequestError


def test_defaults_are_those_of_a_viewer() -> None:
    assert asked.output_kind({}) == "mask"
    assert asked.output_kind({"output_kind": ["mask", "bands", "heatmap"]}) == "mask"
    assert asked.output_kind({"output_kind": "heatmap"}) == "heatmap"
    in_bytes = {"output_kind": "heatmap", "result_dtype": "uint8"}  # as 3D Slicer and OHIF ask
    assert asked.output_kind(in_bytes) == "bands"
    assert asked.output_kind({**in_bytes, "result_dtype": "float32"}) == "heatmap"
    assert asked.extension({}, "/x/study.nii.gz") == ".nii.gz"
    assert asked.extension({}, "/x/study.NRRD") == ".nrrd"
    assert asked.extension({}, "/x/study.png") == ".nii.gz"
    assert asked.extension({"result_extension": ".nrrd"}, "/x/study.nii.gz") == ".nrrd"
    assert asked.label_dtype({}) == np.uint8
    assert asked.label_dtype({"result_dtype": "uint16"}) == np.uint16
    assert asked.label_dtype({"result_dtype": "float32"}) == np.uint8  # labels are whole numbers


@pytest.mark.parametrize(
    "ask",
    [
        lambda: asked.output_kind({"output_kind": "contour"}),
        lambda: asked.output_kind({"output_kind": {"a": 1}}),
        lambda: asked.extension({"result_extension": ".exe"}, "x.nii"),
        lambda: asked.label_dtype({"result_dtype": "pixels"}),
        lambda: asked.number({"n": "many"}, "n", int, above=0),
        lambda: asked.number({"n": 0}, "n", int, above=0),
        lambda: asked.number({"n": True}, "n", int, above=0),
        lambda: asked.number({"n": "nan"}, "n", float, above=0),
        lambda: asked.number({"n": "inf"}, "n", float, above=0),
        lambda: asked.number({"n": {}}, "n", float, above=0),
        lambda: asked.plain_text({"weights": "$__import__('os').system('true')"}, "weights"),
        lambda: asked.plain_text({"weights": "@network"}, "weights"),
        lambda: asked.plain_text({"weights": "%other.yaml"}, "weights"),
        lambda: asked.plain_text({"weights": 3}, "weights"),
    ],
)
def test_what_cannot_be_meant_is_a_client_error(ask: Callable[[], Any]) -> None:
    with pytest.raises(RequestError) as caught:
        ask()
    assert caught.value.status_code == 400
    assert " is " in caught.value.detail


def test_numbers_and_texts_may_be_left_out_or_come_as_text() -> None:
    assert asked.number({"n": "3"}, "n", int, above=0) == 3
    assert asked.number({"n": "1e-3"}, "n", float, above=0) == pytest.approx(0.001)
    assert asked.number({"n": [5, 6]}, "n", int, above=0) == 5
    assert asked.number({}, "n", int, above=0) is None
    assert asked.plain_text({"weights": ""}, "weights") is None
    assert asked.plain_text({"weights": "random"}, "weights") == "random"


def test_worker_ends_with_the_message_and_no_traceback() -> None:
    program = """
import sys, types
from mcmiad_monai.monailabel.requests import RequestError, one_line_in_worker

@one_line_in_worker
def task():
    raise RequestError(400, "too few studies")

try:
    task()
except RequestError:
    print("as it is elsewhere")
sys.modules["__main__"].__spec__ = types.SimpleNamespace(name="monailabel.interfaces.utils.app")
task()
"""
    # the module that the server starts in a process of its own
    assert f'"{asked.WORKER}"' in inspect.getsource(async_tasks)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == "as it is elsewhere\n"
    assert done.stderr.strip().splitlines()[-1] == "too few studies"
    assert "Traceback" not in done.stderr
