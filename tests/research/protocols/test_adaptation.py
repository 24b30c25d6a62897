"""CLIP is adapted before the experiments, once, and reports say what became of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_clips import Paths, small_clips

from mcmiad_monai.networks.text_prior import TextPrior, encode_open_clip
from mcmiad_monai.networks.weights import WeightsError
from mcmiad_monai.research.bmad.phantom import write_bmad_phantom
from mcmiad_monai.research.bmad.sets import ImageSet, find_bmad
from mcmiad_monai.research.clip_projections import AdaptationError
from mcmiad_monai.research.prompts import flat, prompts_of
from mcmiad_monai.research.protocols import adaptation as adaptation_room
from mcmiad_monai.research.protocols.adaptation import PRIOR, adapt_first
from mcmiad_monai.research.protocols.reproduce import reproduce
from mcmiad_monai.training.method import Method

SIZE = 64
pytestmark = pytest.mark.filterwarnings("ignore:the encoder .* has RANDOM weights")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    with small_clips(tmp_path_factory.mktemp("clip")) as paths:
        yield paths


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageSet]:
    """Brain and liver, to be read only."""
    root = tmp_path_factory.mktemp("bmad")
    return find_bmad(write_bmad_phantom(root, sets=["brain", "liver"], size=SIZE))


@pytest.fixture
def tiny(checkpoints: Paths) -> Method:
    return Method(
        encoder_name="test_efficientnet.r160_in1k",
        weights="random",
        text_prior=f"open_clip:tiny-clip/{checkpoints['tiny-clip']}",
        max_epochs=1,
        batch_size=4,
        min_steps_per_epoch=1,
        head={"dim": 16, "heads": 2, "hidden": 16, "experts": 2, "rounds": 1},
    )


def run(sets: dict[str, ImageSet], out: Path, method: Method, **options: Any) -> list[Any]:
    """Reproduce table 2, and return the reports of its runs."""
    reproduce(sets, out, method, tables=[2], seeds=[0], size=SIZE, progress=False, **options)
    return [json.loads(path.read_text()) for path in sorted(out.rglob("result.json"))]


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("CLIP was adapted again")


def test_all_experiments_use_the_adapted_prior_and_a_second_run_takes_the_stored_one(
    sets: dict[str, ImageSet], tmp_path: Path, tiny: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = run(sets, tmp_path, tiny)
    prior = TextPrior.load(tmp_path / PRIOR)
    assert [r["provenance"]["text_prior"] for r in reports] == [prior.provenance] * 2
    assert "fitted to 20 normal slices (brain_mri 10, liver_ct 10)" in prior.weights
    assert f"- text prior adapted (§3.2), {PRIOR}" in (tmp_path / "report.md").read_text()
    report = json.loads((tmp_path / PRIOR).with_suffix(".json").read_text())
    assert report["training_slices"] == {"brain_mri": 10, "liver_ct": 10}
    assert (tmp_path / PRIOR).with_suffix(".md").exists()
    before = (tmp_path / PRIOR).read_bytes()
    monkeypatch.setattr(adaptation_room, "adapt_text_prior", never)
    assert run(sets, tmp_path, tiny) == reports
    assert (tmp_path / PRIOR).read_bytes() == before


def test_without_adaptation_the_prior_is_clips_own_and_runs_are_kept_apart(
    sets: dict[str, ImageSet], tmp_path: Path, tiny: Method, checkpoints: Paths
) -> None:
    (one,) = run({"brain": sets["brain"], "liver": sets["liver"]}, tmp_path, tiny)[:1]
    again = run(sets, tmp_path, tiny, adaptation=False)
    assert len(again) == 4  # two sets, with and without
    own = encode_open_clip(
        flat(prompts_of()), model="tiny-clip", pretrained=str(checkpoints["tiny-clip"])
    ).provenance["embeddings_sha256"]
    found = [r["provenance"]["text_prior"]["embeddings_sha256"] for r in again]
    assert found.count(own) == 2
    assert found.count(TextPrior.load(tmp_path / PRIOR).provenance["embeddings_sha256"]) == 2
    assert one in again
    text = (tmp_path / "report.md").read_text()
    assert "text prior not adapted: it was turned off (--no-adaptation)" in text


@pytest.mark.parametrize(
    ("prior", "told"),
    [
        (None, "all images are brain_mri, and at least two modalities are needed"),
        ("hashing", "the text prior is hashing; only CLIP is adapted"),
        ("file", "the text prior is a file; only CLIP is adapted"),
    ],
)
def test_reports_say_why_nothing_was_adapted(
    sets: dict[str, ImageSet], tmp_path: Path, tiny: Method, prior: str | None, told: str
) -> None:
    if prior == "file":
        prior = str(tmp_path / "own.safetensors")
        torch.manual_seed(0)
        rows = torch.nn.functional.normalize(torch.randn(2, 24))
        TextPrior(rows, ("a", "b"), "test", "none").save(prior)
    out = tmp_path / "out"
    if prior is None:
        run({"brain": sets["brain"]}, out, tiny)
    else:
        run(sets, out, tiny.with_options(text_prior=prior))
    assert f"- text prior not adapted: {told}" in (out / "report.md").read_text()
    assert not (out / PRIOR).exists()


def test_prior_of_other_images_or_weights_is_not_taken_for_todays(
    sets: dict[str, ImageSet], tmp_path: Path, tiny: Method, checkpoints: Paths
) -> None:
    adapt_first(sets, tiny, tmp_path, progress=False)
    write_bmad_phantom(tmp_path / "more", sets=["resc"], size=SIZE)
    with pytest.raises(AdaptationError, match=r"images was .*retina_oct.*delete this file"):
        adapt_first({**sets, **find_bmad(tmp_path / "more")}, tiny, tmp_path, progress=False)
    other = tiny.with_options(text_prior=f"open_clip:tiny-clip/{checkpoints['tiny-custom']}")
    with pytest.raises(AdaptationError, match="pretrained was"):
        adapt_first(sets, other, tmp_path, progress=False)


def test_missing_clip_weights_show_before_anything_is_run(
    sets: dict[str, ImageSet], tmp_path: Path, tiny: Method
) -> None:
    missing = tiny.with_options(text_prior=f"open_clip:tiny-clip/{tmp_path / 'none.pt'}")
    with pytest.raises(WeightsError, match=r"none\.pt"):
        run(sets, tmp_path / "out", missing)
    assert not (tmp_path / "out").exists()


def test_too_few_patients_to_adapt_to_is_an_error_with_a_way_out(
    tmp_path: Path, tiny: Method
) -> None:
    patients = {"train": (1, 0), "test": (1, 1)}
    write_bmad_phantom(tmp_path / "d", sets=["brain", "liver"], size=SIZE, patients=patients)
    with pytest.raises(AdaptationError, match="--no-adaptation leaves CLIP as it is"):
        adapt_first(find_bmad(tmp_path / "d"), tiny, tmp_path, progress=False)
