"""A checkpoint is of one run: what may change when it is resumed, and what may not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mcmiad_monai.networks.text_prior import encode_hashing
from mcmiad_monai.training.identity import CheckpointError, RunIdentity, run_identity
from mcmiad_monai.training.method import preset

PROMPTS = ("a healthy brain",)


def write_studies(folder: Path, count: int = 4) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    cases: list[dict[str, Any]] = []
    for number in range(count):
        image = folder / f"study{number}.nii"
        image.write_bytes(bytes([number]) * 100)
        cases.append({"case": image.stem, "image": str(image), "label": None, "anomalous": False})
    return cases


def identity(cases: list[dict[str, Any]], **changed: Any) -> RunIdentity:
    given: dict[str, Any] = {"tensors": "a" * 64, "prompts": PROMPTS, "seed": 0, "method": {}}
    given |= {"precision": "float32", **changed}
    encoder: Any = SimpleNamespace(
        provenance={"name": "resnet18", "tensors_sha256": given.pop("tensors")}
    )
    return run_identity(
        preset("default", **given.pop("method")),
        encoder=encoder,
        prior=encode_hashing(given.pop("prompts")),
        training=cases[:3],
        validation=cases[3:],
        **given,
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"tensors": "b" * 64}, f"encoder: resnet18 {'a' * 16} -> resnet18 {'b' * 16}"),
        ({"precision": "bfloat16"}, "precision: float32 -> bfloat16"),
        ({"method": {"context": 3}}, "context: 1 -> 3"),
        ({"method": {"field_of_view": "foreground"}}, "field_of_view: whole -> foreground"),
        ({"method": {"layers": (4, 8)}}, "layers: None -> [4, 8]"),
        ({"method": {"merge": "average"}}, "merge: concatenate -> average"),
        ({"method": {"copies": 2}}, "copies: 0 -> 2"),
        ({"method": {"batch_size": 4}}, "batch_size: 16 -> 4"),
        ({"method": {"dim": 64}}, "dim: not given -> 64"),
        ({"method": {"jitter_scale": 20.0}}, "jitter_scale: 5.0 -> 20.0"),
    ],
)
def test_each_difference_is_named_old_and_new(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    cases = write_studies(tmp_path / "data")
    first = identity(cases)
    assert identity(cases, **changed).differences(first.text) == [told]


def test_all_differences_are_told_in_one_message(tmp_path: Path) -> None:
    cases = write_studies(tmp_path / "data")
    checkpoint(tmp_path / "last.pt", identity(cases))
    other = identity(cases, seed=3, prompts=("an eye",), method={"context": 3})
    with pytest.raises(CheckpointError, match="belongs to another run") as caught:
        other.read(tmp_path / "last.pt")
    for part in ("seed: 0 -> 3", "context: 1 -> 3", "text prior: ", "--overwrite"):
        assert part in str(caught.value)


@pytest.mark.parametrize("options", [{"max_epochs": 7}, {"patience": 3}, {"weights": "moved.pth"}])
def test_what_may_change_may(tmp_path: Path, options: dict[str, Any]) -> None:
    cases = write_studies(tmp_path / "data")
    checkpoint(tmp_path / "last.pt", identity(cases))
    identity(cases, method=options).read(tmp_path / "last.pt")


def test_studies_may_move_and_be_renamed_and_none_may_change(tmp_path: Path) -> None:
    cases = write_studies(tmp_path / "data")
    first = identity(cases)
    assert "study" not in first.text.replace("studies", "")  # no name of a study is kept
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    moved = [{**c, "image": str(tmp_path / "elsewhere" / Path(c["image"]).name)} for c in cases]
    assert identity(moved).differences(first.text) == []

    Path(moved[1]["image"]).write_bytes(bytes([9]) * 100)  # as large as it was
    (told,) = identity(moved).differences(first.text)
    assert told.startswith("training studies: 3 -> 3, 1 no longer there as they were, 1 new or ch")
    assert "(study1)" in told
    (told,) = identity([moved[2], moved[0], *moved[2:]]).differences(first.text)[:1]
    assert "1 no longer there" in told
    masked = [*moved[:3], {**moved[3], "label": moved[0]["image"]}]
    assert any(t.startswith("validation") for t in identity(masked).differences(first.text))


def test_order_of_the_studies_counts(tmp_path: Path) -> None:
    cases = write_studies(tmp_path / "data")
    first = identity(cases)
    (told,) = identity([cases[1], cases[0], *cases[2:]]).differences(first.text)
    assert told == "training studies: 3 -> 3, in another order"


def test_checkpoint_without_an_identity_is_refused(tmp_path: Path) -> None:
    cases = write_studies(tmp_path / "data")
    old = RunIdentity({"encoder": "a" * 64, "seed": 0})  # as older versions wrote it
    checkpoint(tmp_path / "last.pt", old)
    with pytest.raises(CheckpointError, match=r"older version.*--overwrite"):
        identity(cases).read(tmp_path / "last.pt")


def test_resume_needs_the_best_epoch_so_far(tmp_path: Path) -> None:
    mine = identity(write_studies(tmp_path / "data"))
    checkpoint(tmp_path / "last.pt", mine)
    with pytest.raises(CheckpointError, match=r"Copy the best\.pt"):
        mine.check(tmp_path / "last.pt", tmp_path)
    checkpoint(tmp_path / "best.pt", RunIdentity({**mine, "seed": 1}))
    with pytest.raises(CheckpointError, match=r"best\.pt belongs to another run"):
        mine.check(tmp_path / "last.pt", tmp_path)
    checkpoint(tmp_path / "best.pt", mine)
    mine.check(tmp_path / "last.pt", tmp_path)
    mine.check(None, tmp_path)


def checkpoint(path: Path, mine: RunIdentity) -> None:
    parts: dict[str, Any] = {"network": {}, "optimizer": {}, "lr_scheduler": {}}
    parts |= {"epoch": 1, "iteration": 3, "best_epoch": 1, "fingerprint": mine.text}
    assert json.loads(mine.text)
    torch.save(parts, path)
