"""The configuration of MoEAD (ECCV 2024), against its equations written out in float64."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mcmiad_monai.networks.attention import attend
from mcmiad_monai.networks.decoder import DecoderConfig, RecursiveMoEDecoder
from mcmiad_monai.networks.head import MCMIADHead, build_head, head_from_config
from mcmiad_monai.networks.moe import balance_loss
from mcmiad_monai.training.method import preset

GRID, DIM, HEADS, ROUNDS, EXPERTS, WINDOW = 5, 16, 4, 3, 4, 3
SMALL: dict[str, Any] = {
    "in_channels": 12,
    "stage_channels": (4, 8),
    **{"grid": GRID, "dim": DIM, "heads": HEADS, "rounds": ROUNDS, "hidden": 24},
    **{"experts": EXPERTS, "top_k": 2, "neighbourhood": WINDOW},
}
MOEAD: dict[str, Any] = dict(preset("moead").head)
QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0}


def moead_head(**options: Any) -> MCMIADHead:
    """A small head with the options of MoEAD and no parameter at 0 or 1, where mistakes hide."""
    head = build_head(seed=1, prior=torch.eye(3, 8), **{**MOEAD, **SMALL, **options})
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    return head


def moead_decoder(**options: Any) -> RecursiveMoEDecoder:
    return moead_head(**options).decoder


# MoEAD's equations with plain functions: tokens (N, D) of one image, weights by name.


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(w: dict[str, Tensor], name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    blocked = torch.tensor(
        [
            [
                max(abs(i // GRID - j // GRID), abs(i % GRID - j % GRID)) <= WINDOW // 2
                for j in range(GRID**2)
            ]
            for i in range(GRID**2)
        ]
    )
    q, k, v = (
        linear(w, f"{name}.{part}", x).split(DIM // HEADS, dim=-1)
        for part, x in (("query", query), ("key", key), ("value", value))
    )
    mixed = []
    for head in range(HEADS):
        scores = q[head] @ k[head].T / math.sqrt(DIM // HEADS)
        shares = scores.masked_fill(blocked, -math.inf).exp()
        mixed.append(shares / shares.sum(-1, keepdim=True) @ v[head])
    return linear(w, f"{name}.out", torch.cat(mixed, dim=-1))


def experts(w: dict[str, Tensor], name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output (N, D) and raw outputs of the gate (N, E)."""
    logits = linear(w, f"{name}.gate", x)
    rows = []
    for token, scores in zip(x, logits, strict=True):
        best = scores.argsort(descending=True)[:2]
        shares = scores[best].exp() / scores[best].exp().sum()
        row = torch.zeros(DIM, dtype=torch.float64)
        for expert, share in zip(best.tolist(), shares, strict=True):
            hidden = (w[f"{name}.up"][expert] @ token + w[f"{name}.up_bias"][expert]).clamp_min(0)
            row += share * (w[f"{name}.down"][expert] @ hidden + w[f"{name}.down_bias"][expert])
        rows.append(row)
    return torch.stack(rows), logits


def transcription(w: dict[str, Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction (B, C, grid, grid) and balance loss."""
    places = [(i // GRID, i % GRID) for i in range(GRID**2)]
    position = torch.stack(  # MoEAD has the column first
        [torch.cat([w["position.column"][col], w["position.row"][row]]) for row, col in places]
    )
    restored, gates = [], [[], []]
    for image in features:
        source = linear(w, "project", image.flatten(1).T)
        out = source
        for i in range(ROUNDS):
            x = w["query"][0]
            x = norm(
                w,
                f"norms.{i}.input",
                x + attention(w, "input_attention", x + position, source + position, source),
            )
            x = norm(
                w,
                f"norms.{i}.round",
                x + attention(w, "round_attention", x + position, out + position, out),
            )
            first, logits = experts(w, "ffns.0", x)
            if i == ROUNDS - 1:
                gates[0].append(logits)
            x = norm(w, f"norms.{i}.ffn", x + first)
            second, logits = experts(w, "ffns.1", x)
            if i == ROUNDS - 1:
                gates[1].append(logits)
            out = norm(w, f"norms.{i}.extra", x + second)
        restored.append(linear(w, "restore", out).T.reshape(-1, GRID, GRID))
    losses = []
    for kept in gates:
        importance = torch.cat(kept).sum(0)
        losses.append(importance.var() / (importance.mean() ** 2 + 1e-10))
    return torch.stack(restored), torch.stack(losses).mean()


def weights_of(head: MCMIADHead) -> dict[str, Tensor]:
    """Weights under MoEAD's order of channels: the halves of the D channels change places."""
    w = {name.removeprefix("decoder."): x.double() for name, x in head.state_dict().items()}
    for name in list(w):
        inward = name.endswith((".query.weight", ".key.weight", ".value.weight", ".gate.weight"))
        if inward or name == "restore.weight" or name.endswith(".up"):
            w[name] = w[name].roll(DIM // 2, dims=-1)
        elif name.startswith(("project.", "norms.")) or ".out." in name:
            w[name] = w[name].roll(DIM // 2, dims=0)
        elif name.endswith(".down"):
            w[name] = w[name].roll(DIM // 2, dims=1)
        elif name.endswith(".down_bias") or name == "query":
            w[name] = w[name].roll(DIM // 2, dims=-1)
    return w


@pytest.mark.parametrize("dispatch", ["grouped", "dense"])
@pytest.mark.parametrize("savings", [True, False])
def test_head_gives_the_numbers_of_moead(savings, dispatch):
    head = moead_head(savings=savings).double().eval()
    for ffn in head.decoder.ffns:
        ffn.dispatch = dispatch
    features = torch.randn(2, 12, GRID, GRID, dtype=torch.float64)
    expected, balance = transcription(weights_of(head), features)
    with torch.no_grad():
        output = head(features)
    torch.testing.assert_close(output.reconstruction, expected, rtol=0, atol=1e-5)
    # theirs is 0.01 of the mean of two, ours the sum of two with half the weight
    assert preset("moead").balance_weight * output.balance_loss.item() == pytest.approx(
        0.01 * balance.item(), rel=1e-5
    )


def test_training_without_noise_draws_nothing_and_gives_the_numbers_of_evaluation():
    decoder, tokens = moead_decoder(**QUIET), torch.randn(2, GRID**2, DIM)
    state = torch.random.get_rng_state()
    trained = decoder.train()(tokens)
    assert torch.equal(torch.random.get_rng_state(), state)
    for found, expected in zip(trained, decoder.eval()(tokens), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["attention_dropout", "residual_dropout", "ffn_dropout"])
def test_each_dropout_acts_in_training_only(name):
    decoder, tokens = moead_decoder(**{**QUIET, name: 0.5}), torch.randn(2, GRID**2, DIM)
    assert not torch.equal(decoder(tokens)[0], decoder(tokens)[0])
    decoder.eval()
    assert torch.equal(decoder(tokens)[0], moead_decoder(**QUIET).eval()(tokens)[0])


def test_attention_dropout_is_drawn_anew_in_each_round_and_not_at_all_in_evaluation():
    decoder, calls = moead_decoder(), []
    decoder.input_attention.register_forward_hook(lambda *_: calls.append(1))
    decoder(torch.randn(1, GRID**2, DIM))
    assert len(calls) == ROUNDS
    decoder.eval()(torch.randn(1, GRID**2, DIM))
    assert len(calls) == ROUNDS + 1


@pytest.mark.parametrize("written_out", [False, True])
def test_mean_over_attention_dropout_is_the_attention(monkeypatch, written_out):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 9, 4) for _ in range(3))
    expected = attend(query, key, value)[0]
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: written_out)
    many = (x.expand(4000, -1, -1, -1) for x in (query, key, value))
    dropped = attend(*many, dropout=0.3)
    assert torch.allclose(dropped.mean(0), expected, atol=0.06)
    assert dropped.std(dim=0).min() > 0.01


def test_initial_weights_have_the_statistics_of_moead():
    head = build_head(prior=torch.eye(3, 8), **MOEAD)
    decoder = head.decoder
    uniform = {  # a uniform distribution up to the bound
        decoder.input_attention.query.weight: (6 / (4 * 256)) ** 0.5,
        decoder.round_attention.value.weight: (6 / (4 * 256)) ** 0.5,
        decoder.round_attention.out.weight: (6 / (2 * 256)) ** 0.5,
        decoder.ffns[0].up: (1024 * 256) ** -0.5,
        decoder.ffns[1].down: (1024 * 256) ** -0.5,
        decoder.ffns[1].gate.weight: (6 / (256 + 4)) ** 0.5,
        head.restore.weight: (6 / (256 + 272)) ** 0.5,
    }
    for weight, bound in uniform.items():
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.98 * bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert decoder.query.std().item() == pytest.approx(1, rel=0.02)
    biases = [p for name, p in head.named_parameters() if name.endswith("bias")]
    norms = {id(p) for p in decoder.norms.parameters()}
    assert not any(p.any() for p in biases if id(p) not in norms)


def test_initial_projections_are_those_of_torch_multi_head_attention():
    theirs = torch.nn.MultiheadAttention(256, 8).in_proj_weight
    ours = RecursiveMoEDecoder(DecoderConfig(initialisation="moead")).input_attention.key.weight
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.02)


def test_a_compiled_decoder_gives_the_same_numbers():
    decoder, tokens = moead_decoder().eval(), torch.randn(2, GRID**2, DIM)
    compiled = torch.compile(decoder, backend="eager", fullgraph=True)
    for found, expected in zip(compiled(tokens), decoder(tokens), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_balance_of_logits_may_be_zero_in_the_mean():
    assert torch.isfinite(balance_loss(torch.tensor([1.0, -1.0])))


def test_config_through_json_rebuilds_the_head():
    head = moead_head()
    rebuilt = head_from_config(json.loads(json.dumps(head.config)))
    rebuilt.load_state_dict(head.state_dict())
    features = torch.randn(1, 12, GRID, GRID)
    assert rebuilt.options == head.options
    assert torch.equal(
        rebuilt.eval()(features).reconstruction, head.eval()(features).reconstruction
    )


@pytest.mark.parametrize("kind", ["export", "trace"])
def test_an_exported_head_gives_the_same_numbers_for_any_number_of_slices(kind):
    class Restored(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = moead_head().eval()

        def forward(self, features: Tensor) -> Tensor:
            return self.head(features).reconstruction

    model, example = Restored().eval(), torch.randn(2, 12, GRID, GRID)
    if kind == "trace":
        exported: Any = torch.jit.trace(model, example)  # type: ignore[no-untyped-call]
    else:
        slices = torch.export.Dim("slices", min=1)
        exported = torch.export.export(
            model, (example,), dynamic_shapes=({0: slices},), strict=False
        ).module()
    for count in (1, 5):
        features = torch.randn(count, 12, GRID, GRID)
        torch.testing.assert_close(exported(features), model(features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"second_ffn": "first"},
        {"initialisation": "normal"},
        {"balance": "probability"},
        {"attention_dropout": 1.0},
        {"ffn_dropout": -0.1},
        {"query_std": -1.0},
    ],
    ids=str,
)
def test_options_that_are_not_known_are_refused(options):
    with pytest.raises(ValueError, match="the decoder has"):
        DecoderConfig(**options)
