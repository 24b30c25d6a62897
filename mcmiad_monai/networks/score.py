"""Feature distance → score map → slice score → volume score (§3.6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcmiad_monai.networks.symmetry import mirrored

MSEReduction = Literal["sum", "mean", "norm"]
Terms = Literal["both", "mse", "cos"]
ImageScore = Literal["eq7", "maximum", "hottest", "mean"]

SOURCES = ("head", "memory-cosine", "memory-l2", "intensity")
"""Maps that a heatmap can be made of: of the reconstruction, of the two memories, and the image's
own brightness, which by itself says much where lesions are bright, as on FLAIR."""

INTENSITY_CELL = 4
"""Pixels a side over which the brightness is averaged."""

HOTTEST = 0.05
"""Share of the foreground, its hottest pixels, whose mean is the image score ``"hottest"``."""

SLICE_WEIGHTS = (0.5, 0.3, 0.2)
"""Weights of maximum, mean and top-K mean in the score of a slice (§3.6, Eq. 7)."""

VOLUME_FRACTION = 0.05
"""Share of a volume's slices, those with the highest scores, whose mean is its score."""


class AnomalyScore(nn.Module):
    """How far features are from their reconstruction.

    Parameters
    ----------
    mse_reduction : {"sum", "mean", "norm"}
        The squared error is summed over channels (Eq. 4) or averaged; ``"norm"`` is the root of the
        sum, as UniAD and MoEAD have it.
    mse_weight : float, optional
        λ of λ · S_MSE + (1 − λ) · S_cos; §4.2 names 0.7. None is the plain sum of Eq. 6.
    terms : {"both", "mse", "cos"}
        Which of the two terms to use.
    stage_weights : sequence of float, optional
        One weight for each encoder stage, of its channels in both terms.
    stage_channels : sequence of int, optional
        Channels of the stages; needed with `stage_weights`.
    smooth_sigma : float
        Standard deviation, in pixels, of a Gaussian on the upsampled map; 0 for none.
    align_corners : bool
        Of the bilinear upsampling; see `FrozenEncoder`.
    top_k : float
        K of the slice score: a number of pixels (5 in Eq. 7), or, below 1, a fraction of them.
    sources : mapping of str to float, optional
        The maps of `SOURCES` that a heatmap is the sum of, and the unit by which each is divided;
        the reconstruction's alone by default. A unit is what held-out normals have.
    symmetry : float
        Share of the map, mirrored about the midline of the foreground, that is subtracted.
    image_score : {"eq7", "maximum", "hottest", "mean"}
        Score of a slice: Eq. 7, or the maximum, the mean of the hottest 5 %, or the mean of its
        pixels.

    Raises
    ------
    ValueError
        If an option is not known or out of range.
    """

    weights: Tensor | None

    def __init__(
        self,
        *,
        mse_reduction: MSEReduction = "sum",
        mse_weight: float | None = None,
        terms: Terms = "both",
        stage_weights: Sequence[float] | None = None,
        stage_channels: Sequence[int] | None = None,
        smooth_sigma: float = 0.0,
        align_corners: bool = False,
        top_k: float = 5,
        sources: Mapping[str, float] | None = None,
        symmetry: float = 0.0,
        image_score: ImageScore = "eq7",
    ) -> None:
        super().__init__()
        known = ("sum", "mean", "norm")
        _require(mse_reduction in known, "mse_reduction", mse_reduction, "sum, mean or norm")
        _require(terms in ("both", "mse", "cos"), "terms", terms, "both, mse or cos")
        _require(mse_weight is None or 0 <= mse_weight <= 1, "mse_weight", mse_weight, "in [0, 1]")
        _require(0 <= smooth_sigma < math.inf, "smooth_sigma", smooth_sigma, "at least 0 pixels")
        whole = float(top_k).is_integer()
        _require(top_k > 0 and (top_k < 1 or whole), "top_k", top_k, "a count or a fraction")
        _require(0 <= symmetry <= 1, "symmetry", symmetry, "in [0, 1]")
        image_scores = ("eq7", "maximum", "hottest", "mean")
        _require(
            image_score in image_scores,
            "image_score",
            image_score,
            "one of " + ", ".join(image_scores),
        )
        self.sources = {"head": 1.0} if sources is None else dict(sources)
        ok = self.sources and set(self.sources) <= set(SOURCES)
        ok = ok and all(0 < unit < math.inf for unit in self.sources.values())
        _require(bool(ok), "sources", sources, f"units above 0 of some of {', '.join(SOURCES)}")
        self.config: dict[str, Any] = {
            "mse_reduction": mse_reduction,
            "mse_weight": mse_weight,
            "terms": terms,
            "stage_weights": None if stage_weights is None else list(stage_weights),
            "stage_channels": None if stage_channels is None else list(stage_channels),
            "smooth_sigma": smooth_sigma,
            "top_k": top_k,
            "sources": self.sources,
            "symmetry": symmetry,
            "image_score": image_score,
        }
        self.mse_reduction, self.mse_weight, self.terms = mse_reduction, mse_weight, terms
        self.smooth_sigma, self.top_k = smooth_sigma, top_k
        self.symmetry, self.image_score = symmetry, image_score
        self.align_corners = align_corners
        if align_corners:
            self.config["align_corners"] = True
        weights = channel_weights(stage_weights, stage_channels)
        self.register_buffer("weights", weights, persistent=False)

    def score_map(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        """Score every place of the grid in float32: two times (B, C, h, w) → (B, 1, h, w)."""
        weights = self._weights(target)[:, None, None]  # (C, 1, 1)
        target, restored = target.float(), reconstruction.float()
        squared = (weights * (target - restored).square()).sum(dim=1, keepdim=True)
        if self.mse_reduction == "mean":
            squared = squared / weights.sum()
        elif self.mse_reduction == "norm":
            squared = squared.sqrt()
        if self.terms == "mse":
            return squared
        root = weights.sqrt()
        cosine = F.cosine_similarity(root * target, root * restored, dim=1)[:, None]
        distance = (1 - cosine).clamp_min(0)  # (B, 1, h, w); rounding can make it negative
        if self.terms == "cos":
            return distance
        if self.mse_weight is None:
            return squared + distance
        return self.mse_weight * squared + (1 - self.mse_weight) * distance

    def total(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Sum of the maps of its sources, each in its unit: by name (B, 1, h, w) → (B, 1, h, w).

        Maps on a coarser grid are brought to the finest.
        """
        each = [maps[name] / unit for name, unit in self.sources.items()]
        finest = max(each, key=lambda one: one.shape[-1]).shape[-2:]
        fine = [one if one.shape[-2:] == finest else self._resized(one, finest) for one in each]
        return torch.stack(fine).sum(0)

    def upsample(self, score_map: Tensor, size: Sequence[int]) -> Tensor:
        """Bilinear to `size` = (H, W), then smoothed by `smooth_sigma`: → (B, 1, H, W)."""
        upsampled = self._resized(score_map, size)
        if self.smooth_sigma == 0:
            return upsampled
        rows, columns = (_blur(n, self.smooth_sigma, upsampled) for n in upsampled.shape[-2:])
        return rows @ upsampled @ columns.T

    def _resized(self, score_map: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(
            score_map, tuple(size), mode="bilinear", align_corners=self.align_corners
        )

    def place(self, score_map: Tensor, foreground: Tensor) -> Tensor:
        """From the grid to the image: upsampled, smoothed, less the mirrored map, at least 0.

        Parameters
        ----------
        score_map : Tensor of shape (B, 1, h, w)
        foreground : Tensor of shape (B, 1, H, W), bool

        Returns
        -------
        Tensor of shape (B, 1, H, W)
        """
        heat = self.upsample(score_map, foreground.shape[-2:])
        if self.symmetry == 0:
            return heat
        return (heat - self.symmetry * mirrored(heat, foreground)).clamp_min(0)

    def forward(self, target: Tensor, reconstruction: Tensor, size: Sequence[int]) -> Tensor:
        """Score map, upsampled: two times (B, C, h, w) → (B, 1, H, W)."""
        return self.upsample(self.score_map(target, reconstruction), size)

    def slice_score(self, maps: Tensor, foreground: Tensor | None = None) -> Tensor:
        """Score each slice, by Eq. 7 unless another image score was chosen.

        Eq. 7 is 0.5 · max + 0.3 · mean + 0.2 · mean of the top K.

        Parameters
        ----------
        maps : Tensor of shape (B, 1, H, W)
            Heatmaps.
        foreground : Tensor of shape (B, 1, H, W), bool, optional
            Count these pixels only. A slice without any scores 0.

        Returns
        -------
        Tensor of shape (B,)
        """
        if foreground is None:
            return torch.stack([self._one_slice(one.flatten()) for one in maps])
        pairs = zip(maps, foreground.bool(), strict=True)
        return torch.stack([self._one_slice(one[mask]) for one, mask in pairs])

    def _one_slice(self, pixels: Tensor) -> Tensor:
        if pixels.numel() == 0:
            return pixels.new_zeros(())
        if self.image_score == "mean":
            return pixels.mean()
        if self.image_score == "maximum":
            return pixels.max()
        if self.image_score == "hottest":
            return pixels.topk(_count(HOTTEST, pixels.numel())).values.mean()
        top = pixels.topk(_count(self.top_k, pixels.numel())).values  # highest first
        parts = torch.stack([top[0], pixels.mean(), top.mean()])
        return torch.dot(parts, parts.new_tensor(SLICE_WEIGHTS))

    def _weights(self, target: Tensor) -> Tensor:
        if self.weights is None:
            return torch.ones(target.shape[1], device=target.device)
        return self.weights.float()


def foreground_of(images: Tensor) -> Tensor:
    """Foreground (B, 1, H, W), bool, of slices (B, 1 or 3, H, W): 0 is background.

    Of three channels it is the middle one's: the slice itself between its neighbours; of colours
    all three have the same foreground.
    """
    return images[:, images.shape[1] // 2, None] > 0


def intensity_of(images: Tensor) -> Tensor:
    """Brightness (B, 1, H / 4, W / 4) of slices (B, 1 or 3, H, W): the mean of 4 × 4 pixels.

    Of three channels it is the middle one's; see `foreground_of`.
    """
    return F.avg_pool2d(images[:, images.shape[1] // 2, None], INTENSITY_CELL)


def volume_score(slice_scores: Tensor) -> Tensor:
    """Mean of the top 5 % of a volume's slice scores (S,), rounded, at least one: a scalar.

    Raises
    ------
    ValueError
        If there is no slice.
    """
    if slice_scores.numel() == 0:
        raise ValueError("a volume without slices has no score; give at least one slice.")
    count = _count(VOLUME_FRACTION, slice_scores.numel())
    return slice_scores.flatten().topk(count).values.mean()


def channel_weights(
    stage_weights: Sequence[float] | None, stage_channels: Sequence[int] | None
) -> Tensor | None:
    """Spread one weight for each stage over its channels: (C,), or None without weights.

    Raises
    ------
    ValueError
        If the two do not have the same length, or the weights are negative or all zero.
    """
    if stage_weights is None:
        return None
    if stage_channels is None or len(stage_weights) != len(stage_channels):
        raise ValueError(
            f"stage_weights {list(stage_weights)} need stage_channels of the same length; found "
            f"{None if stage_channels is None else list(stage_channels)}. "
            "Take stage_channels from the encoder."
        )
    if min(stage_weights) < 0 or max(stage_weights) == 0:
        raise ValueError(
            f"stage_weights are {list(stage_weights)}; none may be negative and one must be "
            "positive."
        )
    weights = torch.tensor(list(stage_weights), dtype=torch.float32)
    return weights.repeat_interleave(torch.tensor(list(stage_channels)))


def _count(top: float, total: int) -> int:
    """Turn a count or a fraction into a number of elements from 1 to `total`."""
    count = int(top * total + 0.5) if top < 1 else int(top)
    return min(max(count, 1), total)


def _blur(count: int, sigma: float, like: Tensor) -> Tensor:
    """Gaussian smoothing along an axis as a matrix (count, count); the edge is a mirror."""
    reach = min(math.ceil(3 * sigma), count - 1)  # three standard deviations each way
    offsets = torch.arange(-reach, reach + 1, device=like.device)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (kernel / kernel.sum()).to(like.dtype)
    places = torch.arange(count, device=like.device)[:, None] + offsets  # (count, 2 · reach + 1)
    places = places.abs()
    places = torch.where(places >= count, 2 * (count - 1) - places, places)
    matrix = torch.zeros(count, count, dtype=like.dtype, device=like.device)
    return matrix.scatter_add(1, places, kernel.expand(count, -1))


def _require(ok: bool, name: str, found: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {found!r}; it must be {expected}.")
