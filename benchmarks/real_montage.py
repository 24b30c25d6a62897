"""Heatmaps of real studies with their lesions, to be looked at."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from real_choice import Row
from real_methods import features_of, grid_maps, method_of, slices_of
from real_sets import Fold, RealSet
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.studies import iterate_slices
from mcmiad_monai.inference.montage import MontageRow, montage

STUDIES = 12


def picked(data: FeatureDataset, count: int) -> list[int]:
    """Of patients spread evenly over the list, the slice with the largest lesion."""
    sizes: dict[str, tuple[int, int]] = {}
    for row, record in enumerate(data.records):
        size = int(data.lesion([row]).sum())
        if record.anomalous and size > sizes.get(record.patient, (0, 0))[0]:
            sizes[record.patient] = size, row
    patients = sorted(sizes)
    places = np.linspace(0, len(patients) - 1, min(count, len(patients))).round().astype(int)
    return [sizes[patients[place]][1] for place in places]


def montage_rows(
    options: argparse.Namespace, kind: RealSet, row: Row, count: int
) -> list[MontageRow]:
    """The heat of a measured row on test studies of a set, from all of its folds in turn."""
    shares = np.bincount(np.arange(count) % len(kind.folds), minlength=len(kind.folds))
    return [
        line
        for fold, share in zip(kind.folds, shares, strict=True)
        if share
        for line in fold_rows(options, kind, row, fold, int(share))
    ]


def fold_rows(
    options: argparse.Namespace, kind: RealSet, row: Row, fold: Fold, count: int
) -> list[MontageRow]:
    """The heat of a row, fitted again, on test studies of a fold."""
    method = method_of(options, row.inputs)
    data = features_of(options, kind, row.inputs, fold, method.build_encoder())
    seed = (options.seeds or [0])[0]
    test, fit = data["test"], row.source.fit(data, seed)
    if fit is None:
        raise ValueError(f"{row.name} has no model to draw the heat of; name another --default")
    maps = grid_maps(fit, test)
    slices = images_of(fold.test, slices_of(options, kind, row.inputs))
    found = []
    for position in picked(test, count):
        record = test.records[position]
        heat = row.steps.place(maps[[position]], test.foreground([position]))
        found.append(
            MontageRow(
                image=upright(slices[record.case, record.index]),
                heatmap=upright(heat[0]),
                mask=upright(test.lesion([position])[0].float()),
                index=0,
                title=f"{kind.name} {record.case[:18]}",
                threshold=row.threshold,
                oriented=kind.volumes,
            )
        )
    return found


def images_of(
    cases: list[dict[str, Any]], options: dict[str, Any]
) -> dict[tuple[str, int], Tensor]:
    """Images (1, S, S) of the network by case and index."""
    samples = iterate_slices(cases, **options)
    # the middle channel is the slice itself
    return {(s.case, s.index): s.image[len(s.image) // 2, None] for s in samples}


def upright(plane: Tensor) -> np.ndarray:
    """A plane (1, rows, columns) as a volume (X, Y, 1)."""
    return plane[0].T[..., None].numpy()


def draw(
    options: argparse.Namespace, path: Path, chosen: list[tuple[RealSet, Row]], studies: int
) -> None:
    """One picture of studies of all sets with masks."""
    masked = [one for one in chosen if one[0].pixel_labels]
    shares = [studies // len(masked) + (n < studies % len(masked)) for n in range(len(masked))]
    rows = [
        row
        for (kind, method), count in zip(masked, shares, strict=True)
        for row in montage_rows(options, kind, method, count)
    ]
    montage(rows, path, title="; ".join(f"{kind.name}: {row.name}" for kind, row in masked))
