"""The presets: that of the paper, number by number, and the table of the documentation."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from mcmiad_monai.cli import options
from mcmiad_monai.networks.decoder import DecoderConfig
from mcmiad_monai.networks.head import HeadConfig
from mcmiad_monai.training.method import HEAD_OPTIONS, PRESETS, Method, preset
from mcmiad_monai.training.schedule_choice import better

#: Every option of the method as the paper has it, with the section that says so.
PAPER: dict[str, tuple[Any, str]] = {
    "encoder_name": ("auto", "§4.2: EfficientNet-B4, where weights are not packaged"),
    "weights": ("pretrained", "§4.2: ImageNet"),
    "pool": ("bilinear", "§3.2"),
    "layers": (None, "§3.2: an EfficientNet has stages"),
    "merge": ("concatenate", "§3.2"),
    "keep_colours": (True, "§4.2: images are resized and normalised by ImageNet statistics"),
    "normalize_images": (False, "§4.2: … and by nothing else"),
    "mask_background": (False, "§3.6: all pixels have a score"),
    "field_of_view": ("whole", "§4.2: the image, resized"),
    "context": (1, "§3.1: slice by slice"),
    "align_corners": (True, "§3.2, §3.6: as in UniAD and MoEAD"),
    "text_prior": ("open_clip", "§3.2: CLIP"),
    "parts": ("head", "§3: a reconstruction; retrieval is future work"),
    "score": ("head", "§3.6"),
    "coreset": (5_000, "not in the paper, where nothing reads it"),
    "symmetry": (0.0, "§3.6: none"),
    "image_score": ("eq7", "§3.6, Eq. 7"),
    "stage_weights": (None, "§3.5: all channels alike"),
    "balance_weight": (0.01, "§3.5, MoEAD"),
    "cosine_weight": (0.0, "§3.5: MSE alone"),
    "score_terms": ("both", "§3.6, Eq. 6"),
    "mse_weight": (None, "§3.6, Eq. 6: a plain sum"),
    "mse_reduction": ("sum", "§3.6, Eq. 4"),
    "smooth_sigma": (0.0, "§3.6: none"),
    "top_k": (5, "§3.6, Eq. 7"),
    "max_epochs": (100, "§4.2"),
    "batch_size": (16, "§4.2"),
    "learning_rate": (2e-4, "§4.2"),
    "weight_decay": (1e-4, "§4.2"),
    "clip_norm": (0.1, "§4.2"),
    "schedule": ("auto", "§4.2: cosine or step, selected via validation"),
    "min_steps_per_epoch": (1, "§4.2: epochs are passes over the images"),
    "copies": (0, "§4.2: the images, and no augmentation"),
    "patience": (None, "§4.2: all epochs"),
    "standardize_features": (False, "§3.2: features as they are"),
    "jitter_scale": (20.0, "§3.4"),
    "jitter_probability": (1.0, "§3.4"),
    "jitter_position": ("fused", "§3.4: after the fusion"),
    "fusion_mode": ("mean", "§3.3: one embedding"),
    "use_text_fusion": (True, "§3.3"),
    "alpha": (1.0, "§3.3"),
    "dim": (256, "§3.3"),
    "heads": (8, "§3.5"),
    "rounds": (4, "§3.5"),
    "neighbourhood": (7, "§3.5"),
    "ffn_per_round": (1, "§3.5, Fig. 2"),
    "experts": (4, "§3.5"),
}
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "method.md"


def value_of(method: Method, option: str) -> Any:
    """Value of an option of the method or of its head."""
    if option not in HEAD_OPTIONS:
        return getattr(method, option)
    head = HeadConfig.from_options(method.head)
    return getattr(head if hasattr(head, option) else head.decoder, option)


@pytest.mark.parametrize("option", PAPER)
def test_paper_preset_is_the_paper(option: str) -> None:
    expected, section = PAPER[option]
    assert value_of(preset("paper"), option) == expected, section


def test_every_option_of_training_and_score_is_among_them() -> None:
    own = {f.name for f in fields(Method)} - {"head"}
    assert own <= set(PAPER)
    assert set(PAPER) <= own | HEAD_OPTIONS


def test_table_of_the_documentation_has_what_the_presets_differ_in() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S.*?) \| (\S.*?) \| (.*?) \|$", PAGE.read_text(), re.M)
    paper, default = preset("paper"), preset("default")
    table = {option: (of_paper, of_default) for option, of_paper, of_default, _ in rows}
    assert all(why for *_, why in rows)
    for option, shown in table.items():
        assert shown == tuple(f"{value_of(m, option)}" for m in (paper, default)), option
    names = {f.name for f in fields(Method)} - {"head"} | HEAD_OPTIONS
    assert {n for n in names if value_of(paper, n) != value_of(default, n)} == set(table)


@pytest.mark.parametrize("name", PRESETS)
def test_optimiser_of_a_preset_has_its_numbers(name: str) -> None:
    method = preset(name, max_epochs=10)
    optimizer = method.build_optimizer([torch.nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    assert group["lr"] == method.learning_rate
    assert group["weight_decay"] == method.weight_decay == 1e-4
    schedule = method.build_schedule(optimizer, steps_per_epoch=2)
    assert schedule.get_last_lr() == [method.learning_rate]


def test_commands_name_the_presets_that_there_are() -> None:
    assert set(options.PRESETS) == set(PRESETS)


def test_defaults_of_the_decoder_are_those_of_a_method_without_options() -> None:
    assert HeadConfig.from_options(preset("paper").head).decoder == DecoderConfig()


def test_k_of_the_score_is_set_by_its_name_and_leaves_the_experts_alone() -> None:
    method = preset("default", top_k=0.05)
    assert method.score_options()["top_k"] == 0.05
    assert HeadConfig.from_options(method.head).decoder.top_k == DecoderConfig().top_k


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"cosine": 0.7, "step": 0.8}, "step"),
        ({"cosine": 0.8, "step": 0.7}, "cosine"),
        ({"cosine": 0.8, "step": 0.8}, "cosine"),
        ({}, "cosine"),
    ],
)
def test_schedule_that_validates_better_is_chosen(figures: dict[str, float], expected: str) -> None:
    assert better(figures) == expected


@pytest.mark.parametrize("name", PRESETS)
def test_corners_are_aligned_in_stages_and_map_by_one_option(name: str) -> None:
    method = preset(name, encoder_name="test_efficientnet.r160_in1k", weights="random")
    with pytest.warns(UserWarning, match="RANDOM"):
        encoder = method.build_encoder()
    assert encoder.align_corners == (name != "default")
    assert method.build_score(encoder).align_corners == (name != "default")
