from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from small_clips import Paths, small_clips
from torch import Tensor

from mcmiad_monai.data.studies import iterate_slices
from mcmiad_monai.networks.clip import load_clip
from mcmiad_monai.networks.head import build_head
from mcmiad_monai.networks.text_prior import TextPrior, encode_open_clip
from mcmiad_monai.networks.weights import WeightsError
from mcmiad_monai.research import clip_adaptation
from mcmiad_monai.research.bmad.phantom import write_bmad_phantom
from mcmiad_monai.research.bmad.sets import find_bmad
from mcmiad_monai.research.clip_adaptation import adapt_text_prior, embed_images, embed_prompts
from mcmiad_monai.research.clip_projections import AdaptationError, Embedded, Projections
from mcmiad_monai.research.prompts import Prompts, flat

PROMPTS: Prompts = {
    "brain_mri": ("A normal brain.", "A head without tumour."),
    "liver_ct": ("A normal liver.", "A healthy abdomen on CT.", "No lesions in the liver."),
}
Cases = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    with small_clips(tmp_path_factory.mktemp("clip")) as paths:
        yield paths


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """Normal images of two modalities, six patients of two images each."""
    root = write_bmad_phantom(tmp_path_factory.mktemp("bmad"), sets=["brain", "liver"], size=64)
    return {found.modality: found.cases("train") for found in find_bmad(root).values()}


def adapt(checkpoints: Paths, cases: Cases, model: str = "tiny-clip", **options: Any):
    given = {"learning_rate": 1e-2, "max_epochs": 8, "batch_size": 8, **options}
    return adapt_text_prior(
        cases,
        model=model,
        pretrained=str(checkpoints[model]),
        prompts=PROMPTS,
        progress=False,
        **given,
    )


@pytest.mark.parametrize("model", ["tiny-clip", "tiny-custom"])
def test_features_before_the_projection_give_clips_own_embeddings(
    checkpoints: Paths, cases: Cases, model: str
) -> None:
    clip, _ = load_clip(model, str(checkpoints[model]))
    text = getattr(clip, "text", clip).text_projection
    matrix = text.weight.T if isinstance(text, torch.nn.Linear) else text
    samples = list(iterate_slices(cases["liver_ct"][:3], "liver_ct"))
    with torch.no_grad():
        tokens = open_clip.get_tokenizer(model)(list(flat(PROMPTS)))
        expected = clip.encode_text(tokens)  # type: ignore[operator]
        prompts = embed_prompts(clip, model, PROMPTS)
        assert torch.allclose(prompts.features @ matrix, expected, atol=1e-5)
        assert prompts.modality.tolist() == [0, 0, 1, 1, 1]
        images = embed_images(clip, samples)
        seen = []
        clip.visual.register_forward_pre_hook(  # type: ignore[union-attr, operator]
            lambda _module, inputs: seen.append(inputs[0])
        )
        again = embed_images(clip, samples)
        expected = clip.encode_image(seen[0])  # type: ignore[operator]
    assert torch.equal(images, again)
    assert seen[0].shape == (3, 3, 64, 64)
    found = images @ clip.visual.proj  # type: ignore[union-attr, operator]
    assert torch.allclose(found, expected, atol=1e-5)


def test_images_are_prepared_as_clip_prepares_pictures(checkpoints: Paths, cases: Cases) -> None:
    clip, _ = load_clip("tiny-clip", str(checkpoints["tiny-clip"]))
    samples = list(iterate_slices(cases["brain_mri"][:2], "brain_mri"))
    seen = []
    clip.visual.register_forward_pre_hook(  # type: ignore[union-attr, operator]
        lambda _module, inputs: seen.append(inputs[0])
    )
    embed_images(clip, samples)
    config = open_clip.get_model_preprocess_cfg(clip)
    prepare = open_clip.image_transform(
        config["size"], is_train=False, mean=config["mean"], std=config["std"]
    )
    pixels = [(np.asarray(sample.image)[0] * 255).round().astype(np.uint8) for sample in samples]
    expected = torch.stack([prepare(Image.fromarray(picture)) for picture in pixels])
    assert expected.std() > 0.5
    one_grey_level = 1 / 255 / min(config["std"])
    assert (seen[0] - expected).abs().max() < 2 * one_grey_level


@pytest.mark.parametrize("model", ["tiny-clip", "tiny-custom"])
def test_adaptation_brings_images_to_the_prompts_of_their_modality(
    checkpoints: Paths, cases: Cases, model: str
) -> None:
    found = adapt(checkpoints, cases, model, max_epochs=30)
    before, after = found.report["before"], found.report["after"]
    assert after["held_out_loss"] < 0.5 * before["held_out_loss"]
    assert after["held_out_retrieval"] == 1
    assert found.report["training_slices"] == {"brain_mri": 10, "liver_ct": 10}
    assert found.report["held_out_slices"] == {"brain_mri": 2, "liver_ct": 2}
    base = encode_open_clip(flat(PROMPTS), model=model, pretrained=str(checkpoints[model]))
    assert found.prior.prompts == base.prompts
    assert not torch.allclose(found.prior.embeddings, base.embeddings, atol=1e-3)


def test_adaptation_changes_nothing_in_clip_and_the_projections_come_back(
    checkpoints: Paths, cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, source = load_clip("tiny-clip", str(checkpoints["tiny-clip"]))
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    monkeypatch.setattr(clip_adaptation, "load_clip", lambda *_, **__: (clip, source))
    base = encode_open_clip(
        flat(PROMPTS), model="tiny-clip", pretrained=str(checkpoints["tiny-clip"])
    )
    assert not torch.allclose(
        adapt(checkpoints, cases).prior.embeddings, base.embeddings, atol=1e-3
    )
    with pytest.raises(KeyError), clip_adaptation.without_projections(clip):
        raise KeyError
    after = clip.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_without_training_the_prior_is_clips_own(checkpoints: Paths, cases: Cases) -> None:
    found = adapt(checkpoints, cases, learning_rate=0.0, weight_decay=0.0, max_epochs=2)
    base = encode_open_clip(
        flat(PROMPTS), model="tiny-clip", pretrained=str(checkpoints["tiny-clip"])
    )
    assert torch.allclose(found.prior.embeddings, base.embeddings, atol=1e-5)
    assert found.report["before"] == found.report["after"]
    assert found.report["best_epoch"] == 0
    assert "unchanged" in found.prior.encoder
    assert "adapted" not in found.prior.encoder


def test_same_seed_same_prior(checkpoints: Paths, cases: Cases) -> None:
    first, second, other = (adapt(checkpoints, cases, max_epochs=3, seed=k) for k in (0, 0, 1))
    assert torch.equal(first.prior.embeddings, second.prior.embeddings)
    assert not torch.equal(first.prior.embeddings, other.prior.embeddings)
    assert first.report["before"] == second.report["before"]
    assert first.report["before"] != other.report["before"]  # other patients are held out


def test_training_ends_when_the_held_out_loss_rises_and_the_best_is_kept(
    checkpoints: Paths, cases: Cases
) -> None:
    found = adapt(checkpoints, cases, learning_rate=3.0, max_epochs=50, patience=2)
    history = found.report["held_out_loss_by_epoch"]
    assert len(history) < 51
    best = min(range(len(history)), key=history.__getitem__)
    assert len(history) - 1 - best == 2
    assert found.report["after"]["held_out_loss"] == pytest.approx(history[best], rel=1e-5)


def test_prior_file_tells_where_it_came_from_and_serves_a_head(
    checkpoints: Paths, cases: Cases, tmp_path: Path
) -> None:
    found = adapt(checkpoints, cases, max_epochs=1)
    found.prior.save(tmp_path / "prior.safetensors")
    loaded = TextPrior.load(tmp_path / "prior.safetensors")
    assert "adapted" in loaded.encoder
    assert "fitted to 20 normal slices (brain_mri 10, liver_ct 10)" in loaded.weights
    assert "best after epoch 1 of 1, seed 0" in loaded.weights
    before, after = (found.report[when]["held_out_loss"] for when in ("before", "after"))
    assert f"held-out loss {before:.4f} → {after:.4f}" in loaded.weights
    assert found.report["base"].split("sha256 ")[1] in loaded.weights
    json.dumps(found.report)
    head = build_head(
        prior=loaded,
        in_channels=8,
        stage_channels=(8,),
        dim=16,
        heads=2,
        hidden=16,
        neighbourhood=0,
        grid=7,
    )
    assert head.options.prior_shape == (5, 24)


def test_one_modality_is_refused(checkpoints: Paths, cases: Cases) -> None:
    with pytest.raises(AdaptationError, match=r"\['brain_mri'\].*at least two modalities"):
        adapt(checkpoints, {"brain_mri": cases["brain_mri"], "liver_ct": []})


def test_images_without_prompts_are_refused(checkpoints: Paths, cases: Cases) -> None:
    with pytest.raises(AdaptationError, match=r"\['retina_oct'\] but no prompts"):
        adapt(checkpoints, {**cases, "retina_oct": cases["brain_mri"]})


def test_model_without_a_projection_matrix_is_refused(checkpoints: Paths, cases: Cases) -> None:
    with pytest.raises(AdaptationError, match=r"tiny-resnet has no matrix 'proj'"):
        adapt(checkpoints, cases, "tiny-resnet")


def test_damaged_checkpoint_is_refused(checkpoints: Paths, cases: Cases, tmp_path: Path) -> None:
    (tmp_path / "cut.pt").write_bytes(checkpoints["tiny-clip"].read_bytes()[:1000])
    (tmp_path / "text.pt").write_bytes(b"no weights at all")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.safetensors").write_bytes(b"no weights at all")
    torch.save([1], tmp_path / "list.pt")
    torch.save({}, tmp_path / "none.pt")
    for bad in sorted(tmp_path.iterdir()):
        with pytest.raises(WeightsError, match=re.escape(bad.name)):
            adapt({"tiny-clip": bad}, cases)


def test_random_weights_are_refused(cases: Cases, checkpoints: Paths) -> None:
    with pytest.raises(WeightsError, match="random weights"):
        adapt({**checkpoints, "tiny-clip": Path("random")}, cases)
    with pytest.raises(WeightsError, match="random weights"):
        encode_open_clip(["A brain."], model="tiny-clip", pretrained="random")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(name, 0) for name in ("max_epochs", "batch_size", "patience", "max_slices")],
        ("temperature", 0),
        ("learning_rate", -1e-4),
        ("learning_rate", float("nan")),
        ("weight_decay", float("inf")),
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
    ],
)
def test_options_out_of_range_are_refused(
    checkpoints: Paths, cases: Cases, option: str, value: float
) -> None:
    with pytest.raises(AdaptationError, match=f"{option} is {value}"):
        adapt(checkpoints, cases, **{option: value})


def test_report_tells_every_option(checkpoints: Paths, cases: Cases) -> None:
    given = {"max_epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 1e-2}
    given |= {"patience": 1, "seed": 3, "max_slices": 3}
    given |= {"validation_fraction": 0.4, "temperature": 0.5}
    assert adapt(checkpoints, cases, **given).report["options"] == given


@pytest.mark.parametrize(("max_slices", "training", "held_out"), [(500, 6, 6), (4, 4, 1)])
def test_a_share_of_patients_is_held_out(
    checkpoints: Paths, cases: Cases, max_slices: int, training: int, held_out: int
) -> None:
    found = adapt(
        checkpoints, cases, validation_fraction=0.5, max_slices=max_slices, max_epochs=1
    ).report
    assert found["training_slices"] == dict.fromkeys(cases, training)
    assert found["held_out_slices"] == dict.fromkeys(cases, held_out)


class Spied(Projections):
    """Remembers the modalities of the batches it is trained on."""

    batches: ClassVar[list[Tensor]] = []

    def loss(self, images: Embedded, prompts: Embedded) -> Tensor:
        if torch.is_grad_enabled():
            self.batches.append(images.modality)
        return super().loss(images, prompts)


def fit_spied(seed: int) -> list[Tensor]:
    """Batches of one epoch over 900 images of a modality and 100 of another."""
    Spied.batches.clear()
    images = Embedded(torch.ones(1000, 4), torch.arange(1000) // 900)
    texts = Embedded(torch.eye(2), torch.arange(2))
    start = Spied(torch.ones(4, 2), torch.eye(2), 1.0)
    rates = {"learning_rate": 1e-3, "weight_decay": 0.0}
    counts = {"max_epochs": 1, "batch_size": 250, "patience": 1}
    clip_adaptation._fit(start, images, images, texts, **rates, **counts, seed=seed, progress=False)
    return list(Spied.batches)


def test_a_rare_modality_has_its_share_of_every_batch() -> None:
    drawn = fit_spied(0)
    assert [len(batch) for batch in drawn] == [250] * 4
    for batch in drawn:  # a share of 0.5 ± 0.03 by chance; 0.1 of the images
        assert batch.double().mean().item() == pytest.approx(0.5, abs=0.12)


def test_seed_gives_the_order_of_images() -> None:
    first, second, other = (torch.cat(fit_spied(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_temperature_is_the_models_own_or_the_one_given(checkpoints: Paths, cases: Cases) -> None:
    own = adapt(checkpoints, cases, max_epochs=1)
    assert own.report["options"]["temperature"] == pytest.approx(0.07)  # OpenCLIP's first
    given = adapt(checkpoints, cases, max_epochs=1, temperature=0.07)
    assert torch.allclose(given.prior.embeddings, own.prior.embeddings, atol=1e-5)
    other = adapt(checkpoints, cases, max_epochs=1, temperature=1.0)
    assert not torch.allclose(other.prior.embeddings, own.prior.embeddings, atol=1e-3)


def test_loss_is_the_share_that_falls_on_the_right_modality() -> None:
    generator = torch.Generator().manual_seed(0)
    images, prompts, image, text = (
        torch.randn(shape, generator=generator) for shape in ((5, 6), (4, 3), (6, 2), (3, 2))
    )
    of_image, of_prompt = np.array([0, 2, 0, 2, 2]), np.array([0, 0, 1, 2])  # no image of 1
    found = Projections(image, text, scale=3.0).loss(
        Embedded(images, torch.tensor(of_image)), Embedded(prompts, torch.tensor(of_prompt))
    )
    a, b = (x.double().numpy() @ m.double().numpy() for x, m in ((images, image), (prompts, text)))
    cosine = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    odds = np.exp(3.0 * cosine)  # (5, 4)
    by_image = [
        -np.log(odds[i, of_prompt == k].sum() / odds[i].sum()) for i, k in enumerate(of_image)
    ]
    by_prompt = [
        -np.log(odds[of_image == k, j].sum() / odds[:, j].sum())
        for j, k in enumerate(of_prompt)
        if k != 1
    ]
    assert found.item() == pytest.approx((np.mean(by_image) + np.mean(by_prompt)) / 2, rel=1e-5)


def test_retrieval_counts_modalities_alike() -> None:
    """Nine images of one modality do not hide the one of another that is wrong."""
    axes, kinds = torch.eye(2), torch.tensor([0] * 9 + [1])
    images = Embedded(axes[torch.zeros(10, dtype=torch.long)], kinds)
    prompts = Embedded(axes, torch.tensor([0, 1]))
    assert Projections(axes, axes, 1.0).retrieval(images, prompts) == 0.5


@pytest.mark.parametrize(("count", "patients"), [(6, 6), (3, 3), (12, 6)])
def test_slices_come_from_as_many_patients_as_can_be(
    cases: Cases, count: int, patients: int
) -> None:
    chosen = clip_adaptation._spread(cases["brain_mri"], "brain_mri", count, {})
    assert len(chosen) == count
    assert len({sample.patient for sample in chosen}) == patients


def test_slices_of_a_study_are_even_over_it() -> None:
    assert clip_adaptation._evenly(range(9), 3) == [1, 4, 7]
    assert clip_adaptation._evenly(range(9), 5) == [0, 2, 4, 6, 8]
    assert clip_adaptation._evenly(range(3), 5) == [0, 1, 2]
    assert clip_adaptation._evenly([], 5) == []


def test_unreadable_images_are_reported_by_modality(checkpoints: Paths, cases: Cases) -> None:
    """Cases of two modalities may have the same name."""
    gone = {"case": "gone", "image": "gone.png", "label": None, "anomalous": None}
    some = {k: [*v, {**gone, "patient": v[0]["patient"]}] for k, v in cases.items()}
    found = adapt(checkpoints, some, max_epochs=1).report["unreadable"]
    assert {k: list(v) for k, v in found.items()} == {"brain_mri": ["gone"], "liver_ct": ["gone"]}
    ill = [{**case, "anomalous": True} for case in cases["liver_ct"]]
    missing = [{**case, "image": "gone.png"} for case in cases["liver_ct"]]
    for bad, told in ((ill, r"\(0 unreadable\)"), (missing, r"10 unreadable; VolumeError: .*gone")):
        with pytest.raises(AdaptationError, match=f"liver_ct has no normal slice.*{told}"):
            adapt(checkpoints, {**some, "liver_ct": bad})


def test_modality_of_one_patient_is_refused_by_name(checkpoints: Paths, cases: Cases) -> None:
    with pytest.raises(AdaptationError, match=r"liver_ct: .*at least 2 patients"):
        adapt(checkpoints, {**cases, "liver_ct": cases["liver_ct"][:1]})
