"""Malformed models, weights, priors and bundles at the command line: one line, exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_errors import refused
from safetensors.torch import save_file

from mcmiad_monai.bundle import copy_bundle, write_checksums
from mcmiad_monai.cli.parser import main
from mcmiad_monai.errors import BundleError
from mcmiad_monai.files.reading import YAML_BYTES, read_yaml
from mcmiad_monai.networks.text_prior import TextPrior, encode_hashing
from mcmiad_monai.networks.weights import WeightsError, read_state_dict
from mcmiad_monai.predictor import load


class Runs:
    """A pickle that runs a command when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def write_bad(path: Path, kind: str) -> Path:
    """A file that is no model, no weights and no prior."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "code":
        torch.save({"model": Runs(path.with_name("ran"))}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes(
            {"empty": b"", "text": b"no model", "archive": b"PK\3\4" + bytes(99)}[kind]
        )
    return path


@pytest.mark.parametrize("kind", ["empty", "text", "archive", "code", "list"])
@pytest.mark.parametrize(
    "command",
    [
        "infer {studies} --bundle {model} --out {out}",
        "infer {studies} --bundle {bundle} --out {out}",
        "evaluate {studies} --bundle {bundle}",
        "export {model} {out}.onnx",
        "info --model {model}",
        "stress {studies} --bundle {bundle} --out {out}",
    ],
)
def test_broken_model_is_one_line_from_every_command(
    tmp_path: Path, cohort: Path, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    bundle = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    model = write_bad(bundle / "models" / "model.pt", kind)
    places = {"studies": cohort, "bundle": bundle, "model": model, "out": tmp_path / "out"}
    assert str(model) in refused(capsys, *command.format(**places).split(" "))
    assert not model.with_name("ran").exists()


@pytest.mark.parametrize("kind", ["empty", "text", "archive", "code", "list"])
def test_broken_weights_and_priors_are_one_message(tmp_path: Path, kind: str) -> None:
    for name in ("weights.pth", "weights.safetensors"):
        path = write_bad(tmp_path / name, kind)
        with pytest.raises(WeightsError, match=name):
            read_state_dict(path)
        with pytest.raises(WeightsError, match=name):
            TextPrior.load(path)
    assert not (tmp_path / "ran").exists()


def lying(path: Path, header: dict[str, Any], data: bytes = bytes(64)) -> Path:
    """A safetensors file with a header of one's own."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        {"embeddings": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 64]}},
        {"embeddings": {"dtype": "F32", "shape": [16], "data_offsets": [0, 10**15]}},
        {"embeddings": {"dtype": "F32", "shape": [2, 8], "data_offsets": [64, 0]}},
        {"embeddings": {"dtype": "X9", "shape": [16], "data_offsets": [0, 64]}},
        {"embeddings": {"dtype": "F32", "shape": [-2, -8], "data_offsets": [0, 64]}},
        {"embeddings": 5},
    ],
)
def test_safetensors_whose_header_lies_is_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    path = lying(tmp_path / "file.safetensors", header)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state_dict(path)
    with pytest.raises(WeightsError, match="is not a text prior"):
        TextPrior.load(path)
    path.write_bytes(struct.pack("<Q", 10**18) + bytes(64))  # a header of 10^18 bytes
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "change",
    [
        {"embeddings": torch.full((1, 8), float("nan"))},
        {"embeddings": torch.ones(1, 8, dtype=torch.int64)},
        {"embeddings": torch.ones(3, 8)},
        {"prompts": "5"},
        {"prompts": "[5]"},
        {"prompts": '{"a": "b"}'},
        {"prompts": "[" * 10**5},
        {"prompts": "no JSON"},
        {"encoder": None},
    ],
)
def test_prior_with_other_content_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path, prior = tmp_path / "prior.safetensors", encode_hashing(["healthy"], dim=8)
    content: dict[str, Any] = {"embeddings": prior.embeddings, "prompts": '["healthy"]'}
    content |= {"encoder": "hashing", "weights": "none", **change}
    tensors = {"embeddings": content.pop("embeddings")}
    save_file(tensors, path, {key: text for key, text in content.items() if text is not None})
    with pytest.raises(WeightsError, match=r"prior\.safetensors"):
        TextPrior.load(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([1.0, float("inf")])}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="'a' has values that are not finite"):
        read_state_dict(tmp_path / "w.pth")


def laughs(depth: int) -> str:
    """YAML of a few lines that stands for 10^depth values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    return "\n".join(lines)


HOSTILE = {
    "object": "modality: !!python/object/apply:os.system ['touch ran']",
    "name": "modality: !!python/name:os.system",
    "module": "modality: !!python/module:os",
    "laughs": laughs(12),
    "merges": "\n".join(
        ["a0: &a0 {k: v}"] + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60)]
    ),
    "itself": "a: &a [*a]",
    "nested": "a: " + "[" * 1500,
    "list": "[1, 2]",
    "empty": "",
    "binary": "\x00\x01",
    "no YAML": "a: [",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_yaml_of_other_than_plain_values_is_refused_in_words(
    tmp_path: Path,
    cohort: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    write_bad(bundle / "models" / "model.pt", "text")
    for name in ("inference", "train"):
        (bundle / "configs" / f"{name}.yaml").write_text(HOSTILE[kind])
    out = str(tmp_path / "out")
    for command in (
        ["infer", str(cohort), "--bundle", str(bundle), "--out", out],
        ["train", str(cohort), "--out", str(bundle), "--resume"],
    ):
        message = refused(capsys, *command)
        assert ".yaml" in message
        assert "bug" not in message
    assert not (tmp_path / "ran").exists()


def test_yaml_with_some_aliases_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert read_yaml(path) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}
    monkeypatch.setattr("mcmiad_monai.files.reading.YAML_VALUES", 10)
    with pytest.raises(ValueError, match="more than 10 values"):
        read_yaml(path)
    path.write_text("a: " + "x" * YAML_BYTES)
    with pytest.raises(ValueError, match="at most"):
        read_yaml(path)


@pytest.mark.parametrize(
    "line",
    [
        "batch_size: many",
        "batch_size: 0",
        "batch_size: .nan",
        "mask_threshold: .nan",
        "mask_threshold: [1]",
        "slice_range: [0.5, 0.2]",
        "slice_range: text",
        "region: {a: b}",
        "max_voxels: -5",
        "check_modality: perhaps",
        "engine: [torch]",
        "engine: other",
        "precision: float8",
        "modality: abdomen",
        "modality: [brain_mri]",
    ],
)
def test_settings_of_another_kind_are_named(tmp_path: Path, line: str) -> None:
    """In a bundle's own file; the model is not reached where the setting is wrong by itself."""
    bundle = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    write_bad(bundle / "models" / "model.pt", "text")
    settings = bundle / "configs" / "inference.yaml"
    name = line.partition(":")[0]
    kept = [row for row in settings.read_text().splitlines() if not row.startswith(f"{name}:")]
    settings.write_text("\n".join([*kept, line]))
    with pytest.raises((ValueError, RuntimeError, BundleError)) as caught:
        load(bundle, device="cpu")
    assert name in str(caught.value) or "model.pt" in str(caught.value)


def test_verify_names_links_and_escapes_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    write_checksums(bundle)
    (bundle / "configs" / "more").symlink_to(tmp_path)
    (bundle / "gone").symlink_to("nowhere")
    (bundle / "new\x1b[2Jname").touch()
    assert main(["verify", str(bundle)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert sorted(told) == ["new\tconfigs/more", "new\tgone", "new\tnew\\x1b[2Jname"]
    shutil.rmtree(bundle / "configs")
    (bundle / "SHA256SUMS").write_bytes(b"\xff\xfe no digests \n\n")
    assert main(["verify", str(bundle), "--json"]) == 1
