"""Every figure of heatmaps against lesion masks: of slices, volumes, pixels and lesions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from mcmiad_monai.metrics.bootstrap import Interval, bootstrap_auroc
from mcmiad_monai.metrics.curves import auroc, average_precision, f1_max
from mcmiad_monai.metrics.histogram import BITS
from mcmiad_monai.metrics.pixels import PatientPixels, PixelMetrics
from mcmiad_monai.metrics.regions import AUPRO, FROC
from mcmiad_monai.metrics.slices import gather


class Scored(NamedTuple):
    """Score and label of a slice, an image or a volume, and its patient."""

    patient: str
    score: float
    label: bool


class StudyFigures:
    """Figures of studies or of single images; memory does not grow with the number of pixels.

    Slices that no model has looked at are no part of any figure: leave them out.

    Parameters
    ----------
    unit : {"slice", "image"}
        ``"slice"`` for whole studies: figures of slices, volumes, pixels and lesions (FROC).
        ``"image"`` for single images: figures of images and pixels.
    bits : int
        Resolution of the pixel histograms, see :class:`ScoreHistogram`.

    Attributes
    ----------
    slices, volumes : list of Scored
        Slices or images, and volumes, of this process.
    """

    def __init__(self, unit: Literal["slice", "image"] = "slice", *, bits: int = BITS) -> None:
        self.unit = unit
        self.slices: list[Scored] = []
        self.volumes: list[Scored] = []
        self.pixels, self._foreground = PixelMetrics(bits=bits), PixelMetrics(bits=bits)
        self._aupro, self._froc = AUPRO(bits=bits), FROC()
        self._patients = PatientPixels()

    def update(
        self,
        patient: str,
        heat: Tensor,
        lesion: Tensor,
        foreground: Tensor,
        *,
        scores: Tensor,
        labels: Tensor,
        volume_score: float | None,
    ) -> None:
        """Add a study.

        Parameters
        ----------
        heat, lesion, foreground : Tensor (1, X, Y, Z)
            Heatmap (≥ 0), lesion mask and foreground (> 0 is inside) of the slices that count.
        scores, labels : Tensor (n,)
            Of these slices.
        volume_score : float, optional
            Of the study; None if no slice counts.
        """
        self.add_scores(patient, scores, labels, volume_score)
        self._add_pixels([patient] if scores.numel() else [], heat[None], lesion[None])
        self._froc.update((heat[None], lesion[None]))
        inside = (foreground > 0) | (lesion > 0)
        self._foreground.update((heat[inside], lesion[inside]))

    def update_images(
        self,
        patients: Sequence[str],
        heat: Tensor,
        lesion: Tensor,
        *,
        scores: Tensor,
        labels: Sequence[bool] | np.ndarray,
    ) -> None:
        """Add a batch of images: heatmaps and masks (B, 1, H, W), scores and labels (B,)."""
        rows = zip(patients, scores.tolist(), labels, strict=True)
        self.slices += [Scored(patient, score, bool(label)) for patient, score, label in rows]
        self._add_pixels(patients, heat, lesion)

    def add_scores(
        self, patient: str, scores: Tensor, labels: Tensor, volume_score: float | None
    ) -> None:
        """Add the scores of a study alone, without its pixels."""
        pairs = zip(scores.tolist(), labels.tolist(), strict=True)
        self.slices += [Scored(patient, score, bool(label)) for score, label in pairs]
        if volume_score is not None:
            self.volumes.append(Scored(patient, volume_score, bool(labels.any())))

    def compute(self) -> dict[str, float]:
        """Figures over all processes; NaN where only one class is present."""
        parts = gather((self.slices, self.volumes))
        slices, volumes = ([row for part in parts for row in part[i]] for i in (0, 1))
        pixels, aupro = self.pixels.compute(), {"aupro": self._aupro.compute()}
        figures = score_figures(self.unit, slices)
        if self.unit == "image":
            return {**figures, **pixels, **aupro}
        inside = {"pixel_auroc_foreground": self._foreground.compute()["pixel_auroc"]}
        figures |= score_figures("volume", volumes)
        return {**figures, **pixels, **inside, **aupro, **self._froc.compute()}

    def intervals(self) -> dict[str, Interval]:
        """95 % intervals of the AUROCs over the patients of this process; none without a study."""
        if not self.slices:
            return {}
        rows = {f"{self.unit}_auroc": self.slices, "volume_auroc": self.volumes}
        found = {"pixel_auroc": self._patients.auroc_interval()}
        for name, scored in rows.items():
            if scored:
                patients, scores, labels = zip(*scored, strict=True)
                found[name] = bootstrap_auroc(np.array(scores), np.array(labels), patients)
        return found

    def _add_pixels(self, patients: Sequence[str], heat: Tensor, lesion: Tensor) -> None:
        """Add heatmaps and masks (B, 1, …), of which each is of one patient."""
        self.pixels.update((heat, lesion))
        self._aupro.update((heat, lesion))
        for patient, one, mask in zip(patients, heat, lesion, strict=False):
            self._patients.update(patient, one, mask)


def score_figures(name: str, scored: Sequence[Scored]) -> dict[str, float]:
    """AUROC, average precision and best F1 of scored slices, images or volumes."""
    scores = np.array([row.score for row in scored])
    labels = np.array([row.label for row in scored], dtype=bool)
    return {
        f"{name}_auroc": auroc(scores, labels),
        f"{name}_ap": average_precision(scores, labels),
        # the best of any threshold: an upper bound, since it is chosen by the labels
        f"{name}_f1_max": f1_max(scores, labels).f1,
    }
