"""Malformed and malicious packages, weights, priors, configurations and datalists.

One clear message each; no code of a file is run, and nothing is fetched.
"""

from __future__ import annotations

import json
import pickle
import socket
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torture_base import Bench, Limits, scores_in
from torture_damage import copied
from torture_model import COMMON, HEAD, INFER, Model, model

KIND = "malformed packages"
GIGABYTE = 1 << 30


class Evil:
    """Pickled, it is a command that is run when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Touch the marker when loaded."""
        import os

        return os.system, (f"touch '{self.marker}'",)


class Listener:
    """A proxy that nobody should ask: counts connections."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.count = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.count += 1
            connection.close()

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that send every request here."""
        address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")
        return {**dict.fromkeys(names, address), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}


@dataclass
class Place:
    """Of one try: the bundle that is spoilt, a study, and a file that no code may make."""

    of: Model
    folder: Path
    marker: Path
    bundle: Path
    command: list[Any] = field(default_factory=list)

    def infer(self) -> None:
        """Run ``infer`` with the bundle."""
        self.of.good(self.folder / "in")
        self.command = ["infer", self.folder / "in", "--bundle", self.bundle]
        self.command += ["--out", self.folder / "out", *INFER]

    def train(self, *options: Any) -> None:
        """Run ``train`` with options."""
        out = self.folder / "trained"
        self.command = ["train", self.of.few, "--out", out, *HEAD, *options]

    @property
    def model(self) -> Path:
        """The model file."""
        return self.bundle / "models" / "model.pt"

    def restate(self, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
        """Write the model anew, with right digests: `change` gets its description and tensors."""
        import torch

        from mcmiad_monai.networks.extra_state import EXTRA_STATE, decode, encode

        state = torch.load(self.model, weights_only=True)
        content = decode(state.pop(EXTRA_STATE))
        change(content, state)
        told = {key: content[key] for key in ("config", "calibration", "provenance")}
        torch.save({**state, EXTRA_STATE: encode(told, state)}, self.model)
        self.infer()


def run_packages(bench: Bench) -> None:
    """All packages."""
    names = list(SPOILERS)
    bench.each(partial(_try, bench, model(bench)), names[:: 6 if bench.quick else 1])


def _try(bench: Bench, of: Model, name: str) -> None:
    listener = Listener()
    with bench.attempt(KIND, name, "infer, train, verify or cases") as (one, folder):
        place = Place(of, folder, folder / "marker", copied(of, folder))
        SPOILERS[name](place)
        done = bench.run(
            *place.command, environment=listener.environment, limits=Limits(memory=4 * GIGABYTE)
        )
        one.expect(not place.marker.exists(), "code of the file was run")
        one.expect(not listener.count, "a network call was made")
        scores = scores_in(folder / "out")
        verdicts = [s["anomalous"] for s in scores.values()]
        one.expect(not any(v is not None for v in verdicts), f"a verdict: {verdicts}")
        one.expect(done.code in (1, 2), f"{done.last}")
        own = "monai.bundle" not in place.command
        one.expect(done.clean or not own, f"no clear message: {done.last}")
        one.note(done.last)
    listener.socket.close()


def _content(content: bytes) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        place.model.write_bytes(content)
        place.infer()

    return spoil


def _truncated(share: float) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        content = place.model.read_bytes()
        place.model.write_bytes(content[: int(len(content) * share)])
        place.infer()

    return spoil


def _evil_model(place: Place) -> None:
    place.model.write_bytes(pickle.dumps(Evil(place.marker)))
    place.infer()


def _evil_zip(place: Place) -> None:
    import torch

    torch.save({"weights": Evil(place.marker)}, place.model)
    place.infer()


def _model_of(content: Any) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        import torch

        torch.save(content, place.model)
        place.infer()

    return spoil


def _zip_bomb(place: Place) -> None:
    with zipfile.ZipFile(place.model) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(place.model, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts.items():
            huge = name.endswith("/data/0")
            with new.open(name, "w", force_zip64=True) as file:
                for _ in range(6 * 1024 if huge else 0):
                    file.write(bytes(1 << 20))
                if not huge:
                    file.write(content)
    place.infer()


def _described(key: str, *path_and_value: Any) -> Callable[[Place], None]:
    """A value of the description, at a path; the digests are right."""
    *path, last, value = path_and_value

    def change(content: dict[str, Any], _: dict[str, Any]) -> None:
        at = content if not key else content[key]
        for name in path:
            at = at[name]
        at[last] = value

    return lambda place: place.restate(change)


def _huge_memory(place: Place) -> None:
    def change(content: dict[str, Any], _: dict[str, Any]) -> None:
        for memory in content["config"]["memories"].values():
            memory["size"] = 10**12

    place.restate(change)


def _weights(change: Callable[[Any], Any]) -> Callable[[Place], None]:
    """All floating tensors changed; the digests are right."""

    def all_of(_: dict[str, Any], state: dict[str, Any]) -> None:
        for name, tensor in state.items():
            if tensor.is_floating_point():
                state[name] = change(tensor)

    return lambda place: place.restate(all_of)


def _yaml(name: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        path = place.bundle / "configs" / name
        line = f"evil: !!python/object/apply:os.system [\"touch '{place.marker}'\"]\n"
        path.write_text(line + path.read_text())
        place.infer()
        if name == "inference.yaml":  # MONAI's own command, whose message is MONAI's
            place.command = ["-m", "monai.bundle", "run", "--config_file", path]
            place.command += ["--dataset_dir", place.folder / "in"]
            place.command += ["--output_dir", place.folder / "out"]
        if name == "train.yaml":
            place.command = ["train", place.of.few, "--out", place.bundle, *COMMON, "--resume"]

    return spoil


def _file(option: str, suffix: str, write: Callable[[Path, Path], Any]) -> Callable[[Place], None]:
    """A file for an option of training."""

    def spoil(place: Place) -> None:
        path = place.folder / f"given{suffix}"
        write(path, place.marker)
        place.train(option, path)

    return spoil


def _evil_file(path: Path, marker: Path) -> None:
    import torch

    torch.save({"a": Evil(marker)}, path)


def _evil_checkpoint(place: Place) -> None:
    place.model.unlink()
    _evil_file(place.bundle / "models" / "last.pt", place.marker)
    place.command = ["train", place.of.few, "--out", place.bundle, *COMMON, "--resume"]
    place.command += ["--epochs", "2"]


def _onnx(content: bytes) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        (place.bundle / "models" / "model.onnx").write_bytes(content)
        place.infer()
        place.command += ["--set", "engine=onnxruntime"]

    return spoil


def _datalist(text: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        path = place.folder / "list" / "datalist.json"
        path.parent.mkdir()
        path.write_text(text)
        place.infer()
        place.command[1] = path

    return spoil


def _sums(text: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        (place.bundle / "SHA256SUMS").write_text(text)
        place.command = ["verify", place.bundle]

    return spoil


LYING = (1 << 40).to_bytes(8, "little") + b"{}"
SPOILERS: dict[str, Callable[[Place], None]] = {
    "model is a text": _content(b"this is no model\n" * 99),
    "model is empty": _content(b""),
    "model cut at 10 %": _truncated(0.1),
    "model cut at 60 %": _truncated(0.6),
    "model cut at 99.9 %": _truncated(0.999),
    "model is a pickle that runs a command": _evil_model,
    "model is an archive whose pickle runs a command": _evil_zip,
    "model is a list": _model_of([1, 2]),
    "model of texts": _model_of({"_extra_state": "x", "a": "b"}),
    "model archive of 6 GB": _zip_bomb,
    "encoder of a hub": _described("config", "encoder", "trunk", "name", "hf-hub:someone/evil"),
    "encoder is a path": _described("config", "encoder", "trunk", "name", "../../../etc/passwd"),
    "encoder is unknown": _described("config", "encoder", "trunk", "name", "no_such_model"),
    "encoder is a number": _described("config", "encoder", 3),
    "encoder of OpenCLIP's hub": _described(
        "config", "encoder", "trunk", "name", "open_clip:hf-hub:someone/evil"
    ),
    "score is a list": _described("config", "score", []),
    "memory is missing": _described("config", "memories", {}),
    "memory of 10^12 tokens": _huge_memory,
    "threshold is a text": _described("calibration", "pixel_threshold", "0.3"),
    "threshold is negative": _described("calibration", "pixel_threshold", -1.0),
    "threshold is 0": _described("calibration", "pixel_threshold", 0.0),
    "threshold is null": _described("calibration", "pixel_threshold", None),
    "threshold is NaN": _described("calibration", "volume_threshold", float("nan")),
    "calibration is a list": _described("", "calibration", [1]),
    "provenance is a text": _described("", "provenance", "me"),
    "weights are NaN": _weights(lambda t: t * float("nan")),
    "weights are infinite": _weights(lambda t: t + float("inf")),
    "weights of another shape": _weights(lambda t: t.reshape(-1)[:1]),
    "inference.yaml runs a command": _yaml("inference.yaml"),
    "train.yaml runs a command": _yaml("train.yaml"),
    "weights file runs a command": _file("--weights", ".pth", _evil_file),
    "weights file is a text": _file("--weights", ".pth", lambda p, _: p.write_text("no")),
    "weights file lies about its size": _file(
        "--weights", ".safetensors", lambda p, _: p.write_bytes(LYING)
    ),
    "text prior runs a command": _file("--text-prior", ".safetensors", _evil_file),
    "text prior is empty": _file("--text-prior", ".safetensors", lambda p, _: p.touch()),
    "text prior is a folder": _file("--text-prior", ".safetensors", lambda p, _: p.mkdir()),
    "checkpoint runs a command": _evil_checkpoint,
    "ONNX file is a text": _onnx(b"this is no graph"),
    "ONNX file is empty": _onnx(b""),
    "datalist of 100,000 brackets": _datalist("[" * 100_000),
    "datalist is a number": _datalist("7"),
    "datalist of texts": _datalist(json.dumps({"test": "abc"})),
    "datalist of numbers": _datalist(json.dumps({"test": [1, None]})),
    "datalist whose image is a number": _datalist(json.dumps({"test": [{"image": 5}]})),
    "datalist whose image has a NUL": _datalist(json.dumps({"test": [{"image": "a\0.nii"}]})),
    "datalist of broken UTF-8": _datalist(
        '{"test": [{"image": "\udcff.nii"}]}'.encode("utf-8", "surrogatepass").decode("latin1")
    ),
    "SHA256SUMS names files elsewhere": _sums(f"{'0' * 64}  ../../../../etc/passwd\n"),
    "SHA256SUMS is binary": _sums("\x00\x01\x02" * 99),
}
