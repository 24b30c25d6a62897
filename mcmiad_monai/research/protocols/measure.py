"""Figures of a detector on the test images of a set, for every scoring option at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mcmiad_monai.data.cases.names import Case
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.studies import patient_of
from mcmiad_monai.inference.cohort import to_plain
from mcmiad_monai.metrics.studies import Scored, StudyFigures, score_figures
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.research.protocols.scores import score_name, scores_of
from mcmiad_monai.training.method import Method


@torch.inference_mode()
def measure(
    detector: MCMIADDetector,
    dataset: FeatureDataset,
    cases: Sequence[Case],
    method: Method,
    *,
    thresholds: bool,
    device: str | torch.device = "cpu",
    batch_size: int = 32,
) -> dict[str, Any]:
    """Image and pixel figures on test images; the heat is zero outside the foreground.

    Of a detector without head there are those of its memories alone.

    An image is labelled by its folder, and by its mask where there is one. The two differ: BMAD has
    anomalous images with an empty mask.

    Parameters
    ----------
    detector : MCMIADDetector
        Its encoder made the features.
    dataset : FeatureDataset
        Of all test images, or of the slices of test volumes.
    cases : sequence of dict
        The same images.
    thresholds : bool
        Whether the detector is calibrated; only then is there a Dice at its threshold.

    Returns
    -------
    dict
        ``scores``, figures by scoring option with null where undefined, and counts.
    """
    known, records = {case["case"]: case for case in cases}, dataset.records
    folders = [known[r.case]["anomalous"] for r in records]
    # no folder says whether a user's own volume is anomalous: its mask does, slice by slice
    by_folder = np.array(
        [r.anomalous if f is None else bool(f) for r, f in zip(records, folders, strict=True)]
    )
    by_mask = np.array([r.anomalous for r in records])
    masked = any(case["label"] for case in cases)
    patients = [patient_of(known[r.case]) for r in records]
    own = score_name(method)
    scorers = {
        name: method.build_score(dataset.encoder, **options).to(device)
        for name, options in scores_of(method).items()
    }
    scorers[own] = detector.score  # which the training may have chosen
    memories = [f"memory-{distance}" for distance in detector.memories]
    figures = {name: StudyFigures("image") for name in scorers}
    unit = detector.heat_scale.float()
    for start in range(0, len(records), batch_size):
        rows = list(range(start, min(start + batch_size, len(records))))
        features = dataset.batch(rows).to(device)
        bright = dataset.intensity(rows)
        others = [*memories, *(["intensity"] if "intensity" in detector.score.sources else [])]
        maps = detector.source_maps(features, others, None if bright is None else bright.to(device))
        output = None if detector.head is None else detector.head(features)
        inside, lesion = dataset.foreground(rows).to(device), dataset.lesion(rows)
        for name, scorer in scorers.items():
            if output is not None:  # its map depends on the scoring option
                maps["head"] = scorer.score_map(output.target, output.reconstruction)
            heat = scorer.place(scorer.total(maps), inside) * inside
            heat = heat / unit if name == own else heat
            figures[name].update_images(
                patients[start : start + batch_size],
                heat.cpu(),
                lesion,
                scores=scorer.slice_score(heat, inside),
                labels=by_folder[rows],
            )

    def of_score(name: str) -> dict[str, Any]:
        chosen = name == own
        found = figures[name].compute()
        if masked:
            images = zip(figures[name].slices, by_mask, strict=True)
            relabelled = [Scored(image.patient, image.score, label) for image, label in images]
            found |= score_figures("image_by_mask", relabelled)
        if not (thresholds and chosen):
            del found["pixel_dice_at_threshold"]
        kept = {k: to_plain(v) for k, v in found.items() if masked or k.startswith("image")}
        intervals = figures[name].intervals() if chosen else {}
        return kept | {
            f"{k}_interval": [to_plain(interval.low), to_plain(interval.high)]
            for k, interval in intervals.items()
            if masked or k.startswith("image")
        }

    return {
        "images": {"good": int((~by_folder).sum()), "anomalous": int(by_folder.sum())},
        "empty_masks": int((by_folder & ~by_mask).sum()) if masked else None,
        "unreadable": len(dataset.failures),
        "scores": {name: of_score(name) for name in scorers},
    }
