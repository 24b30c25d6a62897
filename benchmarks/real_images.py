"""Quality and costs on real images: our candidates beside every peer, one table a set.

    python benchmarks/real_images.py DATA --sets flair oct cxr ms liver \
        --encoder tf_efficientnetv2_b0 \
        --weights tf_efficientnetv2_b0.imagenet.stride16.safetensors --cache FEATURES

DATA is described in `real_sets.py`. All rows share the cached features. Every method has its map on
the grid, and all get the same inputs (crop to the foreground, neighbouring slices) and the same
steps (subtraction of the mirrored map, smoothing). Pixels are those of the 224 × 224 network grid,
which with a crop shows the crop alone. Thresholds come from validation normals, and rows are
chosen on the validation part; of each source the table shows the row as it comes and the one that
validation ranks first, and ``--out`` has all. Heads are trained where ``--seeds`` are given.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peers import GridMap
from real_auto import Pick, automatic
from real_choice import Figures, Row, default_of, judged_on
from real_costs import SLICES, fitted, seconds_a_slice, slices_a_second
from real_measures import (
    Measured,
    Part,
    drawn_figures,
    joined,
    measure,
    part_of,
    pixel_threshold,
)
from real_methods import (
    BRIGHTNESS,
    GROUPS,
    INPUTS,
    Inputs,
    Mixed,
    Source,
    Steps,
    features_of,
    grid_maps,
    inputs_of,
    method_of,
    slices_of,
    sources_of,
    steps_of,
)
from real_montage import STUDIES, draw
from real_sets import SETS, RealSet
from real_tables import as_text, report, write_markdown
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.studies import iterate_slices
from mcmiad_monai.files.writing import save_torch
from mcmiad_monai.networks.score import SOURCES, AnomalyScore
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.training.method import PRESETS

#: Of one source: by seed and fold, the maps of both parts, and what they cost.
FoldMaps = dict[str, Tensor]
PARTS = ("validation", "test")


def main() -> None:
    """Measure the sets that were asked for; print and write as each is done."""
    options = parser().parse_args()
    if not options.seeds:
        options.groups = [group for group in options.groups if group != "head"]
    found: dict[str, dict[str, Any]] = {}
    defaults: list[tuple[RealSet, Row]] = []
    for name in options.sets:
        kind = SETS[name](options.data)
        rows, picks = measure_set(options, kind)
        found[name] = report(rows, kind, options.default, picks)
        defaults.append((kind, default_of(rows, kind, options.default)))
        print(as_text(found[name], everything=options.all), flush=True)
        if options.out:
            write(options, found)
        if options.markdown:
            write_markdown(options.markdown, found)
    if options.montage:
        draw(options, options.montage, defaults, STUDIES)


def parser() -> argparse.ArgumentParser:
    """Options of data, method and run."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("data", type=Path)
    made.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    made.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    made.add_argument("--inputs", nargs="+", default=list(INPUTS), choices=list(INPUTS))
    made.add_argument("--encoder", default="tf_efficientnet_b4.aa_in1k")
    made.add_argument("--weights", default="pretrained")
    made.add_argument("--text-prior", default="hashing")
    made.add_argument("--preset", default="default", choices=sorted(PRESETS))
    more = {"dest": "overrides", "type": setting, "action": "append", "default": []}
    help_set = "an option of the method; may be repeated"
    made.add_argument("--set", metavar="NAME=VALUE", help=help_set, **more)
    made.add_argument("--epochs", type=int, default=80)
    seeds = "of what has chance in it; without any, no head is trained and the others have seed 0"
    made.add_argument("--seeds", type=int, nargs="*", default=[], help=seeds)
    made.add_argument("--default", help="row with which others are compared; else by validation")
    made.add_argument("--cache", type=Path, help="keep features here, and maps of slow peers")
    made.add_argument("--checkpoints", type=Path, help="keep heads here, and go on from them")
    made.add_argument(
        "--costs", action="store_true", help="also time slices; needs a quiet machine"
    )
    made.add_argument("--all", action="store_true", help="print every row")
    made.add_argument("--out", type=Path, help="also write everything as JSON")
    made.add_argument("--montage", type=Path, help="also draw the heat of the default on studies")
    made.add_argument("--markdown", type=Path, help="also write the tables as Markdown")
    return made


def setting(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` with a YAML value."""
    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def measure_set(options: argparse.Namespace, kind: RealSet) -> tuple[list[Row], list[list[Pick]]]:
    """All rows of a set, and what ``score: auto`` picks on each of its inputs."""
    rows: list[Row] = []
    picks: list[list[Pick]] = []
    for inputs in inputs_of(kind, options.inputs):
        encoder = method_of(options, inputs).build_encoder()
        folds = [features_of(options, kind, inputs, fold, encoder) for fold in kind.folds]
        parts = [
            {name: part_of(kind, data[name], getattr(fold, name)) for name in PARTS}
            for fold, data in zip(kind.folds, folds, strict=True)
        ]
        images = torch.rand(SLICES, 3 if inputs.context == 3 else 1, 224, 224)
        encoding = seconds_a_slice(lambda e=encoder, i=images: e(i)) if options.costs else {}
        placing: dict[Steps, dict[str, float]] = {}
        ours: dict[str, list[GridMap]] = {}
        for source, maps, costs in maps_of(options, kind, inputs, folds, ours):
            for steps in steps_of(kind, source):
                row = measure_row(kind, Row(source, inputs, steps, {}, {}, [], [], 0), maps, parts)
                row.costs = {
                    n: v for n, v in costs.items() if n in ("fit_seconds", "fit_megabytes")
                }
                if "asking" in costs:
                    if steps not in placing:
                        placing[steps] = placing_seconds(steps, parts[0]["test"])
                    row.costs |= slices_a_second(encoding, costs["asking"], placing[steps])
                rows.append(row)
                figures = (f"{name} {values[0]:.3f}" for name, values in row.drawn.items())
                print(f"{kind.name}: {row.name}: {', '.join(figures)}", flush=True)
        if {"memory-cosine", "memory-l2"} <= set(ours):
            picks.append(automatic(options, kind, inputs, encoder, ours))
    return rows, picks


def maps_of(
    options: argparse.Namespace,
    kind: RealSet,
    inputs: Inputs,
    folds: list[Any],
    fitted_ones: dict[str, list[GridMap]],
) -> Iterator[tuple[Source, list[list[FoldMaps]], dict[str, Any]]]:
    """Of every source the maps by seed and fold, and what fitting and asking it cost.

    Our own are put into `fitted_ones`, for every fold, with the first seed.
    """
    yield intensity(kind, slices_of(options, kind, inputs))
    ours: dict[str, tuple[Source, list[list[FoldMaps]]]] = {}
    for source in sources_of(options, inputs):
        maps, costs = [], {}
        for seed in (options.seeds or [0]) if source.drawn else [0]:
            maps.append([])
            for number, data in enumerate(folds):
                place = kept_at(options, source, kind.name, inputs, seed, number)
                if place is not None and place.is_file():
                    kept = torch.load(place, weights_only=True)
                    maps[-1].append(kept["maps"])
                    costs = costs or kept["costs"]
                    continue
                fit, spent = fitted(lambda s=source, d=data, n=seed: s.fit(d, n))
                maps[-1].append({name: grid_maps(fit, data[name]) for name in PARTS})
                if source.ours and source.name != BRIGHTNESS and len(maps) == 1:
                    fitted_ones.setdefault(source.name, []).append(fit)
                if options.costs and not costs and source.name != BRIGHTNESS:
                    spent |= asking(fit, data["test"])
                costs = costs or spent
                if place is not None:
                    save_torch({"maps": maps[-1][-1], "costs": spent}, place)
        yield source, maps, costs
        if source.ours:
            ours[source.name] = source, maps
    alone = [name for name in SOURCES if name in ours]
    for first, second in itertools.combinations(alone, 2):
        if not (first.startswith("memory") and second.startswith("memory")):
            yield (*summed((ours[first], ours[second]), kind, folds), {})


def kept_at(options: argparse.Namespace, source: Source, *what: object) -> Path | None:
    """File of the maps of a peer, which are not made again; None for what is quick or ours."""
    if options.cache is None or source.ours or not source.drawn:
        return None
    made_of = [options.encoder, Path(options.weights).name, options.costs, source.name, *what]
    return options.cache / f"maps-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.pt"


def summed(
    pair: tuple[tuple[Source, list[list[FoldMaps]]], ...], kind: RealSet, folds: list[Any]
) -> tuple[Source, list[list[FoldMaps]]]:
    """Two sources added, each over the pixel threshold that it has alone."""
    parts = [
        part_of(kind, data["validation"], fold.validation)
        for data, fold in zip(folds, kind.folds, strict=True)
    ]
    names = [source.name for source, _ in pair]
    used: list[dict[str, float]] = []  # the first are of the first seed and fold

    def both(one: FoldMaps, other: FoldMaps, part: Part) -> FoldMaps:
        maps = dict(zip(names, (one, other), strict=True))
        units = {
            name: pixel_threshold(measure(m["validation"], Steps(), part, kind))
            for name, m in maps.items()
        }
        used.append(units)
        total = AnomalyScore(sources=units).total
        return {name: total({n: m[name] for n, m in maps.items()}) for name in PARTS}

    seeds = max(len(maps) for _, maps in pair)  # what has no chance in it was fitted once
    each = [maps if len(maps) == seeds else maps * seeds for _, maps in pair]
    total = [
        [both(*maps, part) for *maps, part in zip(*by_seed, parts, strict=True)]
        for by_seed in zip(*each, strict=True)
    ]

    def fit(data: FeatureDataset, seed: int) -> Mixed:
        fits = {s.name: None if s.name == BRIGHTNESS else s.fit(data, seed) for s, _ in pair}
        return Mixed(fits, used[0])

    return Source("+".join(names), fit, drawn=True, ours=True), total


def intensity(
    kind: RealSet, options: dict[str, Any]
) -> tuple[Source, list[list[FoldMaps]], dict[str, Any]]:
    """The baseline without a model: bright, or dark, is anomalous."""

    def read(cases: list[dict[str, Any]]) -> Tensor:
        slices = iterate_slices(cases, **options)
        # the middle channel is the slice itself; resizing can leave 1 by a rounding
        every = torch.stack([s.image[len(s.image) // 2, None] for s in slices]).clamp(0, 1)
        return 1 - every if kind.dark else every

    name = "raw intensity, dark" if kind.dark else "raw intensity"
    maps = [{part: read(getattr(fold, part)) for part in PARTS} for fold in kind.folds]
    return Source(name, lambda *_: None), [maps], {}


def measure_row(
    kind: RealSet, row: Row, maps: list[list[FoldMaps]], parts: list[dict[str, Part]]
) -> Row:
    """Fill a row: the mean of its figures over seeds."""
    each = [
        figures_of(
            kind,
            [
                {name: measure(m[name], row.steps, part[name], kind) for name in PARTS}
                for m, part in zip(by_fold, parts, strict=True)
            ],
        )
        for by_fold in maps
    ]
    names = each[0][0]
    drawn = {name: np.mean([one[0][name] for one in each], axis=0) for name in names}
    spread = {}
    if len(each) > 1:
        spread = {name: float(np.std([o[0][name][0] for o in each], ddof=1)) for name in names}
    folds = range(len(parts))
    validation, test = (
        [mean_of([one[which][fold] for one in each]) for fold in folds] for which in (1, 2)
    )
    threshold = float(np.mean([one[3] for one in each]))
    return replace(
        row, drawn=drawn, spread=spread, validation=validation, test=test, threshold=threshold
    )


def mean_of(figures: list[Figures]) -> Figures:
    """Mean of every figure."""
    return {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}


def figures_of(
    kind: RealSet, measured: list[dict[str, Measured]]
) -> tuple[dict[str, np.ndarray], list[Figures], list[Figures], float]:
    """Figures of the test part in all draws, of validation and test by fold, mean threshold."""
    judged = judged_on(kind)
    thresholds: dict[str, float] = {}
    validation, reported, limits = [], [], []
    for number, fold in enumerate(measured):
        others = measured[:number] + measured[number + 1 :]
        normals = joined([o["validation"] for o in others]) if kind.crossed else fold["validation"]
        known = joined([other["test"] for other in others]) if kind.crossed else normals
        limits.append(pixel_threshold(normals))
        own = dict.fromkeys(known.pixels, limits[-1])
        validation.append(first_values(drawn_figures(known, judged, own, draws=0)))
        report_on = joined([fold["validation"], fold["test"]]) if kind.crossed else fold["test"]
        thresholds.update(dict.fromkeys(report_on.pixels, limits[-1]))
        reported.append(report_on)
    test = [first_values(drawn_figures(one, kind, thresholds, draws=0)) for one in reported]
    drawn = drawn_figures(joined(reported), kind, thresholds)
    return drawn, validation, test, float(np.mean(limits))


def first_values(figures: dict[str, np.ndarray]) -> Figures:
    """Figures over all patients."""
    return {name: float(values[0]) for name, values in figures.items()}


def asking(fit: GridMap, data: FeatureDataset) -> dict[str, dict[str, float]]:
    """Seconds of a slice, from its features to the map on the grid."""
    some = data.batch(list(range(min(SLICES, len(data)))))
    return {"asking": seconds_a_slice(lambda: fit(some), len(some))}


def placing_seconds(steps: Steps, part: Part) -> dict[str, float]:
    """Seconds of a slice, from the map on the grid to the heatmap."""
    inside, grid = part.data.foreground(part.rows[:SLICES]), part.data.encoder.grid
    maps = torch.rand(len(inside), 1, grid, grid)
    return seconds_a_slice(lambda: steps.place(maps, inside), len(inside))


def write(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """Everything that the tables rest on, as JSON."""
    places = ("data", "out", "cache", "checkpoints", "markdown", "montage")
    kept = {name: value for name, value in vars(options).items() if name not in places}
    kept["weights"] = Path(options.weights).name
    content = {"options": kept, "sets": found, **produced_with()}
    options.out.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
