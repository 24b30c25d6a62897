"""Time of a training step of the head, by form, beside the plain form and an end-to-end loop.

    python benchmarks/training.py [--batch 16 256] [--repeats 7] [--compile] [--device cuda]

Plain is the head without savings, with PyTorch's default AdamW, in float32, on cached features. End
to end is the same with the images through timm's `features_only` in every step, as methods without
a feature cache train. The default is what bundles train with; on a GPU its steps are CUDA graphs,
and "without graphs" launches each kernel. All forms start from the same weights and take turns. The
error is the norm of the difference of all gradients from plain's, relative to plain's, without
dropout and jitter, which draw other numbers in each form. TFLOP/s counts the products that the
method needs, as `limits.py` does. `--compile` adds forms through `torch.compile`, which needs a
compiler, reports how long that took, and leaves out their error: a test compares the gradients of
the compiled head.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from engines import Untruncated, default_detector, place, wait
from limits import operations
from torch import Tensor, nn

from mcmiad_monai.networks.head import MCMIADHead, head_from_config
from mcmiad_monai.networks.loss import ReconstructionLoss
from mcmiad_monai.runtime.precision import slowdown
from mcmiad_monai.training.distributed import replicate

CLIP_NORM = 0.1
IMAGES_AT_ONCE = 128
"""Through the encoder."""
SLOW = 5.0
"""Seconds of a step of which the compiler took most."""
WARM_UP = 3
"""Steps of each form that are not counted, in which graphs are captured."""


@dataclass
class Form:
    """A way to train: its head, how a batch becomes features, and the type of products."""

    head: MCMIADHead
    features: Callable[[], Tensor]
    half: bool = False
    fused: bool = False
    shipped: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        device = self.head.channel_mean.device
        self.network: nn.Module = self.head
        if self.shipped:
            self.network = replicate(
                self.head, device, compiled=self.compiled and device.type == "cuda"
            )
        elif self.compiled:
            self.head.compile()
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=1e-3, fused=self.fused)

    def loss(self) -> Tensor:
        """Of one batch."""
        features = self.features()
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.half):
            output = self.network(features)
        return ReconstructionLoss(cosine_weight=5.0)(output)

    def step(self) -> None:
        """One step, clipped as the trainer does."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.head.parameters(), CLIP_NORM)
        self.optimizer.step()


def plain_head(head: MCMIADHead) -> MCMIADHead:
    """The head without savings."""
    plain = head_from_config({**head.config, "savings": False})
    plain.load_state_dict(head.state_dict())
    return plain.to(head.channel_mean.device).train()


def forms(batch: int, device: str, *, compiled: bool = False) -> dict[str, Form]:
    """Every form, with a head of its own."""
    detector = default_detector().to(device)
    untruncated = Untruncated(detector).to(device)
    images = torch.rand(batch, 1, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        kept = torch.cat([detector.encoder(part) for part in images.split(IMAGES_AT_ONCE)])
        detector.head.set_feature_statistics(kept.mean((0, 2, 3)), kept.std((0, 2, 3)))

    @torch.no_grad()
    def encoded() -> Tensor:
        return torch.cat([untruncated(part) for part in images.split(IMAGES_AT_ONCE)])

    def cached() -> Tensor:
        return kept

    def head() -> MCMIADHead:
        return copy.deepcopy(detector.head).train()

    known = {
        "plain": Form(plain_head(detector.head), cached),
        "end to end, encoder in each step": Form(plain_head(detector.head), encoded),
    }
    cpu = device == "cpu"
    for name, half in (("float32 (default)", False), ("bfloat16", True)):
        if half and cpu and slowdown("bfloat16") > 1:
            print("bfloat16: this processor has no instructions for it")
            continue
        if not cpu:
            without = f"{name.split()[0]}, without graphs"
            known[without] = Form(head(), cached, half=half, fused=True)
        known[name] = Form(head(), cached, half=half, fused=True, shipped=True)
        if compiled and half:
            known[f"{name.split()[0]}, compiled"] = Form(
                head(), cached, half=half, fused=True, shipped=not cpu, compiled=True
            )
    return known


def gradient(form: Form) -> Tensor:
    """Of one batch without noise, all parameters in one row; the form is left as it was."""
    head = copy.deepcopy(form.head)
    head.jitter.scale = 0.0
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    replace(form, head=head).loss().backward()
    return torch.cat([p.grad.flatten() for p in head.parameters() if p.grad is not None])


def main() -> None:
    """Print one table for each size of batch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="a form by torch.compile as well")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    products = operations()[1]
    for batch in options.batch:
        known = forms(batch, options.device, compiled=options.compile)
        expected = gradient(known["plain"])
        errors = {
            name: float((gradient(form) - expected).norm() / expected.norm())
            for name, form in known.items()
            if not form.compiled  # which would be compiled twice
        }
        seconds = times(known, options.repeats, options.device)
        print(f"{place(options.device)}, step of {batch}")
        show(seconds, errors, products * batch / 1e12)
        del known


def times(known: dict[str, Form], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of the steps of each form, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in known}
    for repeat in range(-WARM_UP, repeats):
        for name, form in known.items():
            start = time.perf_counter()
            form.step()
            wait(device)
            elapsed = time.perf_counter() - start
            if repeat >= 0:
                seconds[name].append(elapsed)
            elif elapsed > SLOW:
                print(f"a first step of {name}: {elapsed:.0f} s")
    return seconds


def show(seconds: dict[str, list[float]], errors: dict[str, float], products: float) -> None:
    """Print the table; products are the 10¹² operations of a step."""
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    plain, whole = middle["plain"], middle["end to end, encoder in each step"]
    heads = ("ms a step", "least", "most", "x plain", "x end to end", "TFLOP/s", "error")
    print(f"{'form':<34}" + "".join(f"{head:>14}" for head in heads))
    for name, taken in seconds.items():
        spread = "".join(f"{1000 * s:>14.2f}" for s in (middle[name], min(taken), max(taken)))
        ratios = f"{plain / middle[name]:>14.2f}{whole / middle[name]:>14.2f}"
        error = f"{errors[name]:.1e}" if name in errors else "-"
        print(f"{name:<34}{spread}{ratios}{products / middle[name]:>14.2f}{error:>14}")


if __name__ == "__main__":
    main()
