"""Which of several scores a model gets: chosen at the end of its training, on held-out studies."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mcmiad_monai.calibration import FALSE_POSITIVE_RATE
from mcmiad_monai.data.feature_store import SliceRecord
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.studies import patient_of
from mcmiad_monai.modality import get_modality
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.training.method import AUTO_SCORE, Method
from mcmiad_monai.training.score_figures import MapFigures, SourceMaps, figures_of, source_units
from mcmiad_monai.training.synthetic import generator, synthetic_dataset

logger = logging.getLogger(__name__)

#: Values that are tried where the method leaves them open.
SYMMETRIES, SMOOTHINGS = (0.0, 0.4), (0.0, 6.0)
#: The first is taken where no real labels decide: synthetic anomalies are all small, and whether
#: real ones are cannot be known. It loses least between small and diffuse ones.
IMAGE_SCORES = ("hottest", "eq7", "maximum", "mean")
#: Candidates this close to the best are as good as it, and the simplest of them is taken. From one
#: seed of the anomalies to another, differences of close candidates change by less than half of it.
MARGIN = 0.01
#: Real labels decide from so many normal and so many anomalous images, of so many patients each.
LABELLED_IMAGES, LABELLED_PATIENTS = 10, 5
#: Of more labelled images of a kind, so many are looked at.
MOST_IMAGES = 200


@dataclass(frozen=True, kw_only=True)
class ScoreChoice:
    """A chosen score, and what it was chosen by.

    Attributes
    ----------
    options : dict
        ``sources``, ``symmetry``, ``smooth_sigma`` and ``image_score`` of the score.
    table : tuple of MapFigures
        All candidates, in the order in which they were tried.
    by_labels : bool
        Whether real labels decided; synthetic anomalies otherwise.
    images, patients : int
        What decided: images, with and without anomaly, and their patients.
    on_same_patients : bool
        Whether the patients set the thresholds, too.
    """

    options: dict[str, Any]
    table: tuple[MapFigures, ...]
    by_labels: bool
    images: int
    patients: int
    on_same_patients: bool

    def summary(self) -> str:
        """One sentence for people."""
        return f"{score_name(self.options)}, by {_basis(self)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the provenance."""
        plain = asdict(self)
        plain["chosen_on_same_patients"] = plain.pop("on_same_patients")
        return {**plain, "table": list(plain["table"])}


def candidates(method: Method, modality: str, *, by_labels: bool = True) -> list[dict[str, Any]]:
    """Score options that the method leaves open; those that it names are the same in all.

    The sums are of two sources, but never of both memories. The mirrored map is tried where the
    modality has it that both sides of healthy slices look alike. Brightness is tried by real
    labels; without them only where the modality has it that lesions are bright, as synthetic
    anomalies cannot tell, and never alone, as it sees no dark lesion.

    Returns
    -------
    list of dict
        ``sources``, in units of 1, ``symmetry``, ``smooth_sigma`` and ``image_score`` of each.
    """
    known = get_modality(modality)
    if method.score == AUTO_SCORE:
        possible = method.possible_sources
        memories = {name for name in possible if name.startswith("memory")}
        pairs = [p for p in itertools.combinations(possible, 2) if not set(p) <= memories]
        sources = [*((name,) for name in possible), *pairs]
        if not by_labels:
            sources = [s for s in sources if s != ("intensity",)]
            if not known.bright_lesions:
                sources = [s for s in sources if "intensity" not in s]
    else:
        sources = [tuple(method.score.split("+"))]
    sides = SYMMETRIES if known.symmetric else SYMMETRIES[:1]
    return [
        {
            "sources": dict.fromkeys(names, 1.0),
            "symmetry": share,
            "smooth_sigma": sigma,
            "image_score": image_score,
        }
        for names, share, sigma, image_score in itertools.product(
            sources,
            sides if method.symmetry is None else [method.symmetry],
            SMOOTHINGS if method.smooth_sigma is None else [method.smooth_sigma],
            IMAGE_SCORES if method.image_score is None else [method.image_score],
        )
    ]


@torch.inference_mode()
def choose_score(
    detector: MCMIADDetector,
    data: FeatureDataset,
    options: Sequence[Mapping[str, Any]],
    *,
    rows: Sequence[int] | None = None,
    by_labels: bool = False,
    on_same_patients: bool = True,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
) -> ScoreChoice:
    """Choose among score options by images that are labelled.

    The map is chosen by `MapFigures.criterion`, of those within `MARGIN` of the best the simplest.
    Real labels then choose the image score, by its AUROC on that map.

    Parameters
    ----------
    detector : MCMIADDetector
        Has the parts that the options need; its own score stays as it is.
    data : FeatureDataset
        Normal and anomalous images of held-out patients.
    options : sequence of mapping
        As of `candidates`; sources of sums are divided by what the normal images have.
    rows : sequence of int, optional
        Images of the dataset to use; all by default.
    by_labels : bool
        Whether the labels are real ones; otherwise the image score is the first of the options.
    on_same_patients : bool
        To be said in the choice.

    Raises
    ------
    ValueError
        If there is nothing to choose among.
    """
    if not options:
        raise ValueError("there is no score to choose among; give at least one candidate.")
    used = list(range(len(data)) if rows is None else rows)
    names = sorted({name for option in options for name in option["sources"]})
    read = SourceMaps(detector.to(device).eval(), data, names, device, batch_size)
    sums = any(len(option["sources"]) > 1 for option in options)
    units = source_units(read, used) if sums else {}
    image_scores = list(dict.fromkeys(option["image_score"] for option in options))
    table = figures_of(read, used, _maps_of(options, units), image_scores)
    best = simplest(table, lambda row: row.criterion, lambda row: row.effort)
    chosen = {
        "sources": best.sources,
        "symmetry": best.symmetry,
        "smooth_sigma": best.smooth_sigma,
        "image_score": image_scores[0],
    }
    if by_labels:
        by_auroc = best.image_auroc.__getitem__
        chosen["image_score"] = simplest(image_scores, by_auroc, image_scores.index)
    choice = ScoreChoice(
        options=chosen,
        table=tuple(table),
        by_labels=by_labels,
        images=len(used),
        patients=len({data.records[i].patient for i in used}),
        on_same_patients=on_same_patients,
    )
    logger.info("chosen score: %s", choice.summary())
    return choice


def simplest(
    items: Sequence[Any], figure: Callable[[Any], float], effort: Callable[[Any], Any]
) -> Any:
    """Of the items whose figure is within `MARGIN` of the best, the simplest, then the best."""
    figures = [-math.inf if math.isnan(value := figure(item)) else value for item in items]
    good = max(figures) - MARGIN
    near = [n for n, value in enumerate(figures) if value >= good]
    return items[min(near, key=lambda n: (effort(items[n]), -figures[n]))]


def _maps_of(
    options: Sequence[Mapping[str, Any]], units: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Options of the map alone, each once, with units where there are several sources."""
    found: list[dict[str, Any]] = []
    for option in options:
        several = len(option["sources"]) > 1
        sources = {name: units[name] if several else 1.0 for name in option["sources"]}
        way = {key: option[key] for key in ("symmetry", "smooth_sigma")}
        if (way := {"sources": sources, **way}) not in found:
            found.append(way)
    return found


class ScoreChooser:
    """The choice of a bundle's score where its method says ``score: auto``.

    Real labels decide if the held-out part has enough of them, and synthetic anomalies on its
    normal slices otherwise. Patients who decide do not set the thresholds if there are enough for
    both.

    Parameters
    ----------
    method : Method
    cases : sequence of dict
        The held-out cases.
    validation : FeatureDataset
        Their slices.
    modality, transform, context
        As of `validation`.
    false_positive_rate : float
        Of the thresholds, which says how many normal patients they need.
    slices
        Further options of :func:`~mcmiad_monai.data.studies.iterate_slices`.

    Attributes
    ----------
    choice : ScoreChoice or None
        For the model card; None where nothing was to choose.
    chosen : dict
        The choice as plain values, for the provenance; empty where nothing was to choose.
    deciding, threshold_patients : frozenset of str or None
        Those who decide, and those who set the thresholds; None for all.
    """

    def __init__(
        self,
        *,
        method: Method,
        cases: Sequence[Mapping[str, Any]],
        validation: FeatureDataset,
        modality: str,
        transform: Callable[..., Any] | None = None,
        context: int = 1,
        seed: int = 0,
        false_positive_rate: float = FALSE_POSITIVE_RATE,
        device: str | torch.device = "cpu",
        **slices: Any,
    ) -> None:
        self.method, self.cases, self.validation = method, list(cases), validation
        self.modality, self.seed, self.device = modality, seed, device
        self._images: dict[str, Any] = {"transform": transform, "context": context, **slices}
        apart = split_patients(validation.records, false_positive_rate, seed)
        self.deciding, self.threshold_patients = apart if method.chooses_score else (None, None)
        self.choice: ScoreChoice | None = None

    @property
    def chosen(self) -> dict[str, Any]:
        """See the attributes."""
        return {} if self.choice is None else self.choice.to_dict()

    def run(self, detector: MCMIADDetector) -> None:
        """Give the detector its score; does nothing where the method names one."""
        if not self.method.chooses_score:
            return
        rows = labelled_rows(self.validation.records, self.deciding)
        options = candidates(self.method, self.modality, by_labels=bool(rows))
        self.choice = choose_score(
            detector,
            self.validation if rows else self.synthetic(detector),
            options,
            rows=rows or None,
            by_labels=bool(rows),
            on_same_patients=self.threshold_patients is None,
            device=self.device,
        )
        score = self.method.build_score(detector.encoder, **self.choice.options)
        detector.score = score.to(self.device)

    def synthetic(self, detector: MCMIADDetector) -> FeatureDataset:
        """Held-out normal slices of those who decide, with and without synthetic anomalies."""
        deciding = self.deciding
        return synthetic_dataset(
            [c for c in self.cases if deciding is None or patient_of(c) in deciding],
            detector.encoder,
            modality=self.modality,
            seed=self.seed,
            device=self.device,
            **self._images,
        )


def split_patients(
    records: Sequence[SliceRecord], false_positive_rate: float = FALSE_POSITIVE_RATE, seed: int = 0
) -> tuple[frozenset[str] | None, frozenset[str] | None]:
    """Patients for the choice and those for the thresholds; None and None for all in both.

    They are apart where each half has the normal patients that the thresholds need: 19 at 5 %.
    Patients without normal slices are for the choice, as thresholds cannot use them.
    """
    normal = sorted({r.patient for r in records if not r.anomalous})
    needed = math.ceil(1 / false_positive_rate) - 1
    if len(normal) < 2 * needed:
        return None, None
    drawn = generator(seed, "thresholds").permutation(normal)[: len(normal) // 2]
    others = frozenset(map(str, drawn))
    return frozenset(r.patient for r in records) - others, others


def labelled_rows(
    records: Sequence[SliceRecord], patients: frozenset[str] | None = None
) -> list[int]:
    """Normal and anomalous images of patients by which a score can be chosen; none if too few.

    See `LABELLED_IMAGES`, `LABELLED_PATIENTS` and `MOST_IMAGES`.
    """
    chosen: list[int] = []
    for anomalous in (False, True):
        rows = [
            i
            for i, r in enumerate(records)
            if r.anomalous == anomalous and (patients is None or r.patient in patients)
        ]
        if len(rows) < LABELLED_IMAGES or (
            len({records[i].patient for i in rows}) < LABELLED_PATIENTS
        ):
            return []
        count = min(len(rows), MOST_IMAGES)
        chosen += [rows[(2 * k + 1) * len(rows) // (2 * count)] for k in range(count)]
    return sorted(chosen)


def score_name(options: Mapping[str, Any]) -> str:
    """A score in a few words."""
    words = [" + ".join(options["sources"])]
    if options["symmetry"]:
        words.append(f"less {options['symmetry']:g} of the mirrored map")
    if options["smooth_sigma"]:
        words.append(f"smoothed by {options['smooth_sigma']:g} pixels")
    if "image_score" in options:
        words.append(f"image score {options['image_score']}")
    return ", ".join(words)


def _basis(choice: ScoreChoice) -> str:
    kind = "labelled images" if choice.by_labels else "images with and without synthetic anomalies"
    return f"{choice.images} {kind} of {choice.patients} held-out patients"


def choice_table(choice: ScoreChoice) -> list[str]:
    """Markdown lines of a model card: the chosen score and the figures of all candidates."""
    columns = list(choice.table[0].image_auroc)
    head = ["heatmap", "pixel AP", "pixel AUROC", *(f"image AUROC, {name}" for name in columns)]
    lines = [
        f"Chosen: **{score_name(choice.options)}**, by {_basis(choice)}. Figures on synthetic "
        "anomalies compare heatmaps; they do not say how well lesions are found, nor which image "
        "score is best."
        if not choice.by_labels
        else f"Chosen: **{score_name(choice.options)}**, by {_basis(choice)}.",
        "",
    ]
    if choice.on_same_patients:
        lines += [
            "The same patients set the thresholds: there are too few to divide them. A new normal "
            "study may exceed its threshold a little more often than promised.",
            "",
        ]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in choice.table:
        figures = [row.pixel_ap, row.pixel_auroc, *(row.image_auroc[name] for name in columns)]
        cells = ["–" if math.isnan(value) else f"{value:.3f}" for value in figures]
        lines.append(f"| {score_name(asdict(row))} | {' | '.join(cells)} |")
    return [*lines, ""]
