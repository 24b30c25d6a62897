from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mcmiad_monai.networks.head import MCMIADHead, build_head, head_from_config
from mcmiad_monai.networks.info import part_cost
from mcmiad_monai.networks.text_prior import encode_hashing

ATTENTION = ("query", "key", "value", "out")
TINY: dict[str, Any] = {
    "in_channels": 12,
    "stage_channels": (4, 8),
    "dim": 16,
    "heads": 4,
    "hidden": 24,
    "grid": 8,
    "rounds": 2,
}


def tiny_head(**options: Any) -> MCMIADHead:
    prior = options.pop("prior", encode_hashing(["healthy", "normal brain"], dim=32))
    return build_head(prior=prior, **{**TINY, **options})


def test_default_head_stays_within_the_parameters_and_operations_of_the_paper():
    head = build_head(prior=torch.eye(15, 512))
    cost = part_cost("head", head, torch.zeros(1, 272, 14, 14))
    assert cost.trainable <= 2.97e6
    assert cost.flops <= 3.26e9
    assert cost.flops > 2e9  # a counter that misses the experts would pass the limit too


def test_without_savings_the_head_costs_what_the_attention_products_add():
    features = torch.zeros(1, 272, 14, 14)
    saved, plain = (
        part_cost("head", build_head(prior=torch.eye(15, 512), savings=savings), features).flops
        for savings in (True, False)
    )
    # three more rounds of: four projections and two products, 2 operations per multiply-accumulate
    assert plain - saved == 3 * (4 * 2 * 196 * 256 * 256 + 2 * 2 * 196 * 196 * 256)
    assert plain <= 3.26e9


def test_two_networks_a_round_cost_a_second_set_of_experts():
    sizes = [
        sum(p.numel() for p in build_head(prior=torch.eye(15, 512), ffn_per_round=n).parameters())
        for n in (1, 2)
    ]
    assert sizes[1] == pytest.approx(4.94e6 + 512 * 256, rel=0.01)
    assert sizes[0] < 2.97e6


@pytest.mark.parametrize("training", [True, False])
def test_output_holds_the_clean_target_and_its_reconstruction(training):
    features = torch.randn(2, 12, 8, 8)
    output = tiny_head().train(training)(features)
    assert torch.equal(output.target, features)
    assert output.reconstruction.shape == features.shape
    assert output.balance_loss.shape == ()


@pytest.mark.parametrize("position", ["fused", "features"])
def test_jitter_changes_the_reconstruction_in_training_and_never_the_target(position):
    head, features = tiny_head(jitter_position=position, dropout=0.0), torch.randn(2, 12, 8, 8)
    first, second = head(features), head(features)
    assert torch.equal(first.target, second.target)
    assert not torch.equal(first.reconstruction, second.reconstruction)
    head.eval()
    assert torch.equal(head(features).reconstruction, head(features).reconstruction)


@pytest.mark.parametrize(("position", "width"), [("features", 12), ("fused", 16)])
def test_jitter_is_where_it_was_asked_for(position, width):
    head, widths = tiny_head(jitter_position=position), []
    head.jitter.register_forward_hook(lambda _m, x, _y: widths.append(x[0].shape[-1]))
    head(torch.randn(1, 12, 8, 8))
    assert widths == [width]


def test_tokens_and_map_are_row_major():
    head = tiny_head().eval()
    seen = []
    head.project.register_forward_hook(lambda _m, x, _y: seen.append(x[0]))
    features = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 12, 8, 8)
    head(features)
    assert torch.equal(seen[0][0, :, 0], torch.arange(64.0))


def test_reconstruction_has_the_layout_of_the_features():
    head = tiny_head().eval()
    marked = torch.randn(1, 64, 16)
    head.decoder.forward = lambda _: (marked, torch.ones(1, 4))  # type: ignore[method-assign]
    restored = head(torch.randn(1, 12, 8, 8)).reconstruction
    assert torch.allclose(restored[0, :, 2, 5], head.restore(marked[0, 2 * 8 + 5]), atol=1e-6)


def test_standardised_target_has_the_statistics_of_training():
    features = 3 * torch.randn(50, 12, 8, 8) + 7
    head = tiny_head(standardize_features=True).eval()
    head.set_feature_statistics(features.mean((0, 2, 3)), features.std((0, 2, 3)))
    target = head(features).target
    assert torch.allclose(target.mean((0, 2, 3)), torch.zeros(12), atol=1e-4)
    assert torch.allclose(target.std((0, 2, 3)), torch.ones(12), atol=1e-4)


def test_useless_feature_statistics_are_refused():
    head = tiny_head(standardize_features=True)
    with pytest.raises(ValueError, match="2 channels have a standard deviation of 0"):
        head.set_feature_statistics(torch.zeros(12), torch.tensor([0.0] * 2 + [1.0] * 10))
    with pytest.raises(ValueError, match="shape"):
        head.set_feature_statistics(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="finite"):
        head.set_feature_statistics(torch.full((12,), torch.nan), torch.ones(12))


def test_a_seed_gives_the_same_head_and_leaves_the_random_state_alone():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, second, other = tiny_head(seed=3), tiny_head(seed=3), tiny_head(seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.project.weight, other.project.weight)


@pytest.mark.parametrize("fusion_mode", ["mean", "prompts"])
def test_config_through_json_rebuilds_the_head(fusion_mode):
    head = tiny_head(fusion_mode=fusion_mode, jitter_position="features", alpha=0.5).eval()
    rebuilt = head_from_config(json.loads(json.dumps(head.config)))
    rebuilt.load_state_dict(head.state_dict())
    features = torch.randn(1, 12, 8, 8)
    assert torch.equal(rebuilt.eval()(features).reconstruction, head(features).reconstruction)
    assert rebuilt.options == head.options


def test_flat_config_of_earlier_packages_is_read():
    flat = {
        **{"in_channels": 12, "stage_channels": [4, 8], "prior_shape": [2, 32]},
        **{"fusion_mode": "prompts", "use_text_fusion": False, "alpha": 0.5},
        **{"jitter_scale": 5.0, "jitter_probability": 0.5, "jitter_position": "features"},
        **{"standardize_features": True, "grid": 8, "dim": 16, "heads": 4, "rounds": 2},
        **{"experts": 3, "top_k": 1, "hidden": 24, "dropout": 0.2, "neighbourhood": 5},
        **{"ffn_per_round": 2, "savings": False},
    }
    found = json.loads(json.dumps(head_from_config(flat).config))
    decoder = found.pop("decoder")
    later = {
        **{"second_ffn": "first_attention", "initialisation": "xavier", "balance": "softmax"},
        **{"attention_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0},
        **{"query_std": 0.02},
    }
    assert {**found, **decoder} == {**flat, **later}


@pytest.mark.parametrize(
    ("ffn_per_round", "weights", "trained", "balance", "evaluated"),
    [
        (1, 54.167737, 1292.8205, 0.03037445, 1438.1358),
        (2, 55.390496, 1530.7921, 0.8219722, 1239.2331),
    ],
)
def test_numbers_of_earlier_packages_do_not_change(
    ffn_per_round, weights, trained, balance, evaluated
):
    flat = {
        **{"in_channels": 12, "stage_channels": [4, 8], "prior_shape": [2, 32], "grid": 8},
        **{"dim": 16, "heads": 4, "rounds": 2, "hidden": 24, "neighbourhood": 5},
    }
    head = head_from_config({**flat, "ffn_per_round": ffn_per_round})
    torch.manual_seed(0)
    features = torch.randn(2, 12, 8, 8)
    output = head.train()(features)  # draws jitter and dropout

    def size(tensor):
        return tensor.detach().double().abs().sum().item()

    assert size(head.state_dict()["decoder.query"]) == pytest.approx(16.613273, rel=1e-5)
    assert size(head.state_dict()["decoder.round_attention.key.weight"]) == pytest.approx(
        weights, rel=1e-5
    )
    assert size(output.reconstruction) == pytest.approx(trained, rel=1e-4)
    assert output.balance_loss.item() == pytest.approx(balance, rel=1e-3)
    assert size(head.eval()(features).reconstruction) == pytest.approx(evaluated, rel=1e-4)


def test_names_of_weights_are_those_of_earlier_packages():
    names = set(tiny_head(fusion_mode="prompts", ffn_per_round=2, rounds=1).state_dict())
    linear = [
        *("project", "restore", "fusion.query", "fusion.out"),
        *(f"decoder.{a}_attention.{p}" for a in ("input", "round") for p in ATTENTION),
        *(f"decoder.norms.0.{norm}" for norm in ("input", "round", "ffn", "extra")),
        *(f"decoder.ffns.{n}.gate" for n in (0, 1)),
    ]
    own = [
        *("channel_mean", "channel_std", "fusion.embeddings", "fusion.project.weight"),
        *("fusion.null_key", "decoder.query", "decoder.position.row", "decoder.position.column"),
        *(f"decoder.ffns.{n}.{p}" for n in (0, 1) for p in ("up", "up_bias", "down", "down_bias")),
    ]
    assert names == {*own, *(f"{name}.{kind}" for name in linear for kind in ("weight", "bias"))}


def test_an_option_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(
        ValueError, match=r"\['depth', 'width'\] are no options of the head; they are"
    ):
        tiny_head(width=16, depth=3)


def test_linear_layers_start_from_xavier_uniform_and_zero_bias():
    head = build_head(prior=torch.eye(15, 512))
    bound = (6 / (272 + 256)) ** 0.5
    assert head.project.weight.abs().max() <= bound
    assert head.project.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not head.restore.bias.any()


def test_half_precision_features_of_a_cache_are_accepted():
    head = tiny_head().eval()
    assert head(torch.randn(1, 12, 8, 8).half()).reconstruction.dtype == torch.float32


def test_wrong_features_and_channels_are_refused_with_what_was_found():
    with pytest.raises(ValueError, match=r"\(1, 13, 8, 8\)"):
        tiny_head()(torch.zeros(1, 13, 8, 8))
    with pytest.raises(ValueError, match="add up to 9"):
        tiny_head(stage_channels=(4, 5))
    with pytest.raises(ValueError, match="jitter_position"):
        tiny_head(jitter_position="output")


def test_training_lowers_the_loss():
    head = tiny_head(jitter_scale=1.0, dropout=0.0)
    features = torch.randn(1, 12, 8, 8, generator=torch.Generator().manual_seed(0)).expand(
        2, -1, -1, -1
    )
    optimizer, losses = torch.optim.AdamW(head.parameters(), lr=3e-3), []
    for _ in range(25):
        output = head(features)
        loss = (output.reconstruction - output.target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
