"""The choice of a row by validation alone, and what it costs on the test part."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from real_auto import Pick
from real_measures import IMAGE_SCORES
from real_methods import Inputs, Source, Steps
from real_sets import RealSet

Figures = dict[str, float]


@dataclass
class Row:
    """One method, measured.

    Attributes
    ----------
    drawn : dict of str to ndarray (1 + draws,)
        Figures of the test part, over all patients first; the mean over seeds.
    spread : dict of str to float
        Standard deviation over seeds, where there are several.
    validation, test : list of dict
        Figures of each fold.
    """

    source: Source
    inputs: Inputs
    steps: Steps
    drawn: dict[str, np.ndarray]
    spread: Figures
    validation: list[Figures]
    test: list[Figures]
    threshold: float
    costs: Figures = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Source, input where it is not the whole image, and steps."""
        own = "" if self.inputs.name == "whole" else self.inputs.name
        return ", ".join(part for part in (self.source.name, own, str(self.steps)) if part)

    @property
    def plain(self) -> bool:
        """Whether it is the source as it comes: whole image, no steps but its own."""
        own = self.source.extra or (Steps(),)
        return self.inputs.name == "whole" and self.steps in own


def worth(figures: Figures, image_score: str, kind: RealSet) -> float:
    """By what rows are ranked: image AUROC and pixel average precision, or the one there is."""
    parts = [figures[f"image_{image_score}"]] if kind.image_labels else []
    parts += [figures["pixel_ap"]] if kind.pixel_labels else []
    return float(np.mean(parts))


def validated(row: Row, kind: RealSet) -> tuple[float, str]:
    """Worth of a row on validation by its best image score, the mean over folds; and that score."""
    judged = judged_on(kind)
    each = {
        name: float(np.mean([worth(f, name, judged) for f in row.validation]))
        for name in IMAGE_SCORES
    }
    best = max(each, key=lambda name: each[name])
    return each[best], best


def judged_on(kind: RealSet) -> RealSet:
    """The set as its validation part is labelled: only crossed sets have no labels of images."""
    return replace(kind, image_labels=not kind.crossed)


def choose(rows: list[Row], kind: RealSet) -> dict[str, Any]:
    """What the labels of the validation part choose; every fold for itself. See `regret`."""
    judged = judged_on(kind)
    options = [(row, name) for row in rows for name in IMAGE_SCORES]
    picks = [
        max(options, key=lambda one: worth(one[0].validation[fold], one[1], judged))
        for fold in range(len(rows[0].test))
    ]
    return regret(picks, rows, kind)


def choose_automatically(picks: list[Pick], rows: list[Row], kind: RealSet) -> dict[str, Any]:
    """What ``score: auto`` chooses, against the best of our rows on the same inputs."""
    own = [row for row in rows if row.source.ours and row.inputs == picks[0].inputs]
    named = {(row.source.name, row.steps): row for row in own}
    return regret([(named[p.source, p.steps], p.image_score) for p in picks], own, kind)


def regret(picks: list[tuple[Row, str]], rows: list[Row], kind: RealSet) -> dict[str, Any]:
    """What was picked in each fold, what would have been best on the test part, and the regret.

    Figures of the test part are means over folds.
    """
    judged = judged_on(kind)
    options = [(row, name) for row in rows for name in IMAGE_SCORES]
    folds = range(len(picks))

    def tested(row: Row, name: str) -> float:
        return float(np.mean([worth(row.test[fold], name, kind) for fold in folds]))

    best = max(options, key=lambda one: tested(*one))
    chosen = float(np.mean([worth(picks[f][0].test[f], picks[f][1], kind) for f in folds]))
    names = [label(*pick, judged) for pick in picks]
    return {
        "chosen": names[0] if len(set(names)) == 1 else names,
        "best": label(*best, kind),
        "worth_of_chosen": chosen,
        "worth_of_best": tested(*best),
        "regret": tested(*best) - chosen,
    }


def label(row: Row, image_score: str, kind: RealSet) -> str:
    """Name of a row, with the image score where images are scored."""
    return f"{row.name}; image score {image_score}" if kind.image_labels else row.name


def candidates(rows: list[Row]) -> list[Row]:
    """Our rows; all where there are none of ours."""
    return [row for row in rows if row.source.ours] or rows


def default_of(rows: list[Row], kind: RealSet, name: str | None) -> Row:
    """The row of this name, or that which validation ranks first of our own.

    Raises
    ------
    ValueError
        If there is no row of the name.
    """
    if name is None:
        return max(candidates(rows), key=lambda row: validated(row, kind)[0])
    named = [row for row in rows if row.name == name]
    if not named:
        raise ValueError(f"no row is named {name!r}; there are: {[row.name for row in rows]}")
    return named[0]
