from __future__ import annotations

import hashlib
import pickle

import pytest
import torch
from safetensors.torch import save_file

from mcmiad_monai.networks.weights import (
    WeightsError,
    file_sha256,
    read_state_dict,
    tensors_sha256,
)

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(2)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_torch_checkpoints_are_read_plain_or_wrapped(tmp_path, suffix, wrapper):
    path = tmp_path / f"weights{suffix}"
    torch.save(STATE if wrapper is None else {wrapper: STATE, "epoch": 3}, path)
    assert same(read_state_dict(path))


def test_names_of_a_parallel_model_are_accepted(tmp_path):
    torch.save({f"module.{k}": v for k, v in STATE.items()}, tmp_path / "w.pt")
    assert same(read_state_dict(tmp_path / "w.pt"))


def test_safetensors_are_read(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    assert same(read_state_dict(tmp_path / "w.safetensors"))


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (tmp_path.joinpath("sprung").write_text, ("x",))

    (tmp_path / "trap.pt").write_bytes(pickle.dumps({"a": Trap()}))
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state_dict(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_damaged_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}])
def test_a_checkpoint_without_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_state_dict(tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="there is no weights file"):
        read_state_dict(tmp_path / "nowhere.pt")


def test_file_digest_agrees_with_hashlib(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 10**6)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_tensor_digest_sees_names_types_shapes_and_values_but_not_order():
    digest = tensors_sha256(STATE)
    assert digest == tensors_sha256(dict(reversed(STATE.items())))
    changed = [
        {**STATE, "b": torch.tensor(3)},
        {**STATE, "b": torch.tensor(2, dtype=torch.int32)},
        {**STATE, "a.weight": STATE["a.weight"].view(3, 2)},
        {"a.weight": STATE["a.weight"], "c": STATE["b"]},
    ]
    assert digest not in {tensors_sha256(other) for other in changed}


def test_tensor_digest_takes_half_precision():
    assert len(tensors_sha256({"a": torch.ones(3, dtype=torch.bfloat16)})) == 64
