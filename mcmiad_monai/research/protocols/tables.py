"""Tables 1 to 4 in the paper's form, from the figures of finished experiments."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from mcmiad_monai.research.protocols.plans import BASE
from mcmiad_monai.research.protocols.published import (
    BEST_ONE_SHOT,
    BEST_PER_SET,
    BEST_UNIFIED_MEAN,
    OTHER_SETS,
    TABLE_1_PAPER,
    TABLE_1_UNIFIED,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_SETS,
    Pair,
)
from mcmiad_monai.research.protocols.scores import MEMORY_SCORES, NAMES, SCORES
from mcmiad_monai.research.tables import MISSING, markdown_table

METRICS = {"image_auroc": "Image-AUROC", "pixel_auroc": "Pixel-AUROC"}
#: Columns of the detailed table.
DETAILS = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "image_by_mask_auroc",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "aupro",
    "pixel_dice_at_threshold",
)
Report = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of strings under a title, with notes below."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """As GitHub shows it."""
        lines = [f"## {self.title}", "", *markdown_table(self.header, self.rows), ""]
        return "\n".join(lines + [f"- {note}" for note in self.notes]).rstrip() + "\n"

    def csv(self) -> str:
        """With the header as its first line."""
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([self.header, *self.rows])
        return stream.getvalue()


class Results:
    """Figures of finished experiments, over seeds.

    Parameters
    ----------
    reports : iterable of dict
        Of :func:`~mcmiad_monai.research.protocols.experiment.run_experiment`.
    """

    def __init__(self, reports: Iterable[Report]) -> None:
        self.reports = list(reports)

    @property
    def sets(self) -> list[str]:
        """Sets that were measured, those of the paper first."""
        found = {name for report in self.reports for name in report["results"]}
        ordered = [name for name in (*TABLE_SETS, *OTHER_SETS) if name in found]
        return ordered + sorted(found - set(ordered))

    def of(self, experiment: str) -> list[Report]:
        """Reports of an experiment, one a seed and set."""
        return [r for r in self.reports if r["experiment"]["name"] == experiment]

    def values(
        self, experiment: str, name: str, metric: str, score: str | None = None
    ) -> list[float]:
        """A figure in per cent of each seed; seeds on which it is undefined are left out."""
        found = []
        for report in self.of(experiment):
            if name in report["results"]:
                chosen = score or report["experiment"]["score"]
                found.append(report["results"][name]["scores"].get(chosen, {}).get(metric))
        return [100 * value for value in found if value is not None]

    def mean_values(
        self, experiment: str, names: Collection[str], metric: str, score: str | None = None
    ) -> list[float]:
        """Mean over sets, seed by seed; none if a set is missing."""
        each = [self.values(experiment, name, metric, score) for name in names]
        if not each or len({len(values) for values in each}) > 1:
            return []
        return [statistics.fmean(values) for values in zip(*each, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, one decimal; one seed has no deviation."""
    if not values:
        return MISSING
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def title_of(name: str) -> str:
    """Name of a set in the tables."""
    return {**TABLE_SETS, **OTHER_SETS}.get(name, name)


def published(source: Mapping[str, Pair], names: Collection[str], which: int) -> str:
    """Mean over sets of a published figure; a dash if one of them is not published."""
    if not set(names) <= set(source):
        return MISSING
    return f"{statistics.fmean(source[name][which] for name in names):.1f}"


def table_1(results: Results) -> Table:
    """AUROCs on BMAD, one model for each set and one for all, beside those published."""
    header = (
        "Category",
        *(f"{peer} (multi-class)" for peer in TABLE_1_UNIFIED),
        "ours, unified",
        "MCMIAD, paper (per set)",
        "best published (per set)",
        "ours (per set)",
    )
    groups = {title_of(name): [name] for name in results.sets} | {"Average": list(TABLE_SETS)}
    rows: list[tuple[str, ...]] = []
    for which, (metric, label) in enumerate(METRICS.items()):
        rows.append((f"**{label} (%)**", *[""] * (len(header) - 1)))
        rows += [
            (
                title,
                *(published(peer, names, which) for peer in TABLE_1_UNIFIED.values()),
                spread(results.mean_values("unified", names, metric)),
                published(TABLE_1_PAPER, names, which),
                published(BEST_PER_SET, names, which),
                spread(results.mean_values(BASE, names, metric)),
            )
            for title, names in groups.items()
        ]
    notes = (
        "multi-class and unified columns are one model for all sets; the others one for each",
        f"best published unified mean: {BEST_UNIFIED_MEAN[0]} / {BEST_UNIFIED_MEAN[1]}",
        "the paper's Retina is one row; here RESC stands in it, and OCT2017, which has no "
        "masks, below; the average is over liver, brain and RESC",
        "images are labelled by their folder; by mask: see the details",
    )
    return Table("table1", "Table 1: image and pixel AUROC (%) on BMAD", header, rows, notes)


def table_2(results: Results) -> Table:
    """Size of the trained head against the mean of image and pixel AUROC."""
    names = [name for name in results.sets if name in TABLE_SETS]
    both = [results.mean_values(BASE, names, metric) for metric in METRICS]
    mean = [statistics.fmean(pair) for pair in zip(*both, strict=True)] if all(both) else []
    sizes = {report["parameters"] for report in results.of(BASE)}
    counted = ", ".join(f"{size / 1e6:.2f}" for size in sorted(sizes)) or MISSING
    rows = [(f"{model}, published", f"{m:g}", f"{a}") for model, (m, a) in TABLE_2.items()]
    rows.append(("ours", counted, spread(mean)))
    note = f"ours: mean over {', '.join(title_of(n) for n in names)}; parameters are counted"
    header = ("Model", "Trainable parameters (millions)", "Avg. image/pixel AUROC (%)")
    return Table("table2", "Table 2: model size and AUROC", header, rows, (note,))


def table_3(results: Results) -> Table:
    """A few normal images: AUROCs beside those published for one."""
    shots = sorted({r["experiment"]["shots"] for r in results.reports if r["experiment"]["shots"]})
    header = ["Dataset"]
    for label in METRICS.values():
        header += [f"{label}: UniAD, 1", "MCMIAD, 1", "best published, 1"]
        header += [f"ours, {k}" for k in shots]
    rows = []
    for name in results.sets:
        row = [title_of(name)]
        for which, metric in enumerate(METRICS):
            for source in (TABLE_3["UniAD"], TABLE_3["MCMIAD"], BEST_ONE_SHOT):
                row.append(published(source, [name], which))
            row += [spread(results.values(f"{k}-shot", name, metric)) for k in shots]
        rows.append(row)
    notes = ("support images of every run are listed in its result.json",)
    return Table("table3", "Table 3: one-shot and few-shot AUROC (%)", header, rows, notes)


def table_4(results: Results) -> Table:
    """Ablations, as means over the sets: of fusion as in the paper, and of all other options."""
    names = [name for name in results.sets if name not in OTHER_SETS]
    found = dict.fromkeys(
        r["experiment"]["name"]
        for r in results.reports
        if r["experiment"]["shots"] is None and r["experiment"]["name"] != "unified"
    )

    def ours(variant: str, score: str | None = None) -> list[str]:
        return [spread(results.mean_values(variant, names, metric, score)) for metric in METRICS]

    rows = [
        (variant, *map(str, TABLE_4.get(variant, (MISSING, MISSING))), *ours(variant))
        for variant in found
    ]
    measured = {
        name
        for r in results.of(BASE)
        for found in r["results"].values()
        for name in found["scores"]
    }
    rows += [
        (f"score {score}", MISSING, MISSING, *ours(BASE, score))
        for score in (*SCORES, *MEMORY_SCORES)
        if score in measured
    ]
    header = ("Method", "Image-AUROC, paper", "Pixel-AUROC, paper", "Image-AUROC", "Pixel-AUROC")
    note = f"means over {', '.join(title_of(n) for n in names)}; one change each"
    return Table("table4", "Table 4: ablations (AUROC %)", header, rows, (note,))


def details(results: Results) -> Table:
    """Every figure of every experiment, set and scoring option."""
    rows = []
    names = dict.fromkeys(report["experiment"]["name"] for report in results.reports)
    for experiment, name, score in product(names, results.sets, NAMES):
        values = [results.values(experiment, name, metric, score) for metric in DETAILS]
        if any(values):
            rows.append((experiment, title_of(name), score, *map(spread, values)))
    title = "Details: all figures (%), mean ± standard deviation over seeds"
    return Table("details", title, ("Experiment", "Set", "Score", *DETAILS), rows)


MAKERS: dict[int, Callable[[Results], Table]] = {1: table_1, 2: table_2, 3: table_3, 4: table_4}
