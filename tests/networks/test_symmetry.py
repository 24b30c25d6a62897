"""The mirrored map: about the foreground's own midline, wherever and however it lies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.symmetry import mirrored

SIZE = 96


def head(tilt: float = 0.0, centre: tuple[float, float] = (48.0, 48.0), wide: float = 26) -> Tensor:
    """Foreground (1, 1, S, S): an ellipse, longer along its midline, turned by degrees."""
    across, along = own_axes(tilt, centre)
    return ((across / wide).square() + (along / 34).square() < 1)[None, None]


def own_axes(tilt: float, centre: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Pixels' coordinates (S, S) across and along the midline."""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    x, y, angle = x - centre[0], y - centre[1], math.radians(tilt)
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def spot(across: float, along: float, tilt: float, centre: tuple[float, float]) -> Tensor:
    """A smooth spot (1, 1, S, S) at a place in the axes of the head."""
    u, v = own_axes(tilt, centre)
    return torch.exp(-((u - across).square() + (v - along).square()) / 50)[None, None]


@pytest.mark.parametrize("tilt", [-15.0, -6.0, 0.0, 6.0, 15.0])
@pytest.mark.parametrize("centre", [(48.0, 48.0), (40.0, 52.0)])
def test_a_spot_is_mirrored_to_the_other_side_of_a_tilted_head(
    tilt: float, centre: tuple[float, float]
) -> None:
    found = mirrored(spot(14, -8, tilt, centre), head(tilt, centre))
    expected = spot(-14, -8, tilt, centre)
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.9


def test_a_head_that_is_wider_than_long_is_not_mirrored_from_front_to_back() -> None:
    found = mirrored(spot(14, -8, 0, (48, 48)), head(wide=40))
    expected = spot(-14, -8, 0, (48, 48))
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.99


def test_a_round_foreground_is_mirrored_about_an_upright_line() -> None:
    found = mirrored(spot(14, -8, 0, (48, 48)), head(wide=34))
    assert torch.allclose(found, spot(-14, -8, 0, (48, 48)), atol=2e-2)


@pytest.mark.parametrize("tilt", [0.0, 10.0])
def test_what_both_sides_have_is_subtracted_and_one_side_stays(tilt: float) -> None:
    inside, centre = head(tilt), (48.0, 48.0)
    both = spot(14, -8, tilt, centre) + spot(-14, -8, tilt, centre)
    one = spot(14, 14, tilt, centre)
    score = AnomalyScore(symmetry=1.0)
    heat = score.place(both + one, inside)
    assert heat.min() >= 0
    assert float((heat * spot(14, 14, tilt, centre)).max()) > 0.7
    assert float((heat * spot(14, -8, tilt, centre)).max()) < 0.3


def test_an_empty_foreground_gives_finite_heat() -> None:
    heat = torch.rand(2, 1, SIZE, SIZE)
    found = AnomalyScore(symmetry=0.4).place(heat, torch.zeros_like(heat, dtype=torch.bool))
    assert torch.isfinite(found).all()
    assert found.min() >= 0


def test_slices_of_a_batch_have_midlines_of_their_own() -> None:
    maps = torch.cat([spot(14, -8, 0, (48, 48)), spot(14, -8, 12, (40, 52))])
    inside = torch.cat([head(), head(12, (40, 52))])
    together = mirrored(maps, inside)
    alone = [mirrored(maps[i, None], inside[i, None]) for i in range(2)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)
