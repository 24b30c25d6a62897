"""The page beside a model file that says what the model is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mcmiad_monai.calibration import Calibration, UnifiedCalibration
from mcmiad_monai.training.mask_check import MaskCheck
from mcmiad_monai.training.score_choice import ScoreChoice, choice_table


def model_card(
    provenance: Mapping[str, Any],
    calibration: Calibration | UnifiedCalibration,
    *,
    odd: Mapping[str, Mapping[str, str]] | None = None,
    masks: MaskCheck | None = None,
    choice: ScoreChoice | None = None,
) -> str:
    """Markdown that says what the model is made of, warnings first.

    Parameters
    ----------
    odd : mapping, optional
        Odd healthy studies of each part, case → reason.
    masks : MaskCheck, optional
        Masks on validation studies with a lesion.
    choice : ScoreChoice, optional
        How the score was chosen.
    """
    encoder, prior = provenance["encoder"], provenance["text_prior"]
    warnings = []
    if "random, seed" in str(encoder["weights"]):
        warnings.append(
            "**The encoder has random weights.** Its features were never trained on any image; "
            "the model shows that the software works and detects nothing that can be relied on."
        )
    if prior and "hashing" in prior["encoder"]:
        warnings.append(
            "**The text prior is not CLIP.** It is made of hashed words, which carry no meaning "
            "across words; it stands in where CLIP cannot be had."
        )
    if masks is not None and masks.finds_nothing:
        warnings.append(f"**The masks are empty**: {masks.summary()}.")
    lines = ["# Model card", "", "Research software, not a medical device.", ""]
    lines += [f"> {w}\n" for w in warnings]
    lines += ["## Thresholds", "", f"{calibration.summary()}.", ""]
    if masks is not None:
        lines += ["## Masks", "", f"{masks.summary()[:1].upper()}{masks.summary()[1:]}.", ""]
    if choice is not None:
        lines += ["## Score", "", *choice_table(choice)]
    lines += _odd_studies(odd or {})
    if memory := provenance["training"].get("memory"):
        lines += ["## What the file holds of training images", "", _memory_note(memory), ""]
    lines += ["## Provenance", ""]
    lines += ["```json", json.dumps(provenance, indent=1, default=str), "```", ""]
    return "\n".join(lines)


def _odd_studies(odd: Mapping[str, Mapping[str, str]]) -> list[str]:
    rows = [
        f"- One of the {part} studies: {reason}"
        for part, found in odd.items()
        for reason in found.values()
    ]
    if not rows:
        return []
    intro = (
        "Unlike the other healthy studies; they still count for the thresholds. Names are not in "
        "this file: `eval/odd_studies.csv` of the training has them."
    )
    return ["## Odd healthy studies", "", intro, "", *rows, ""]


def _memory_note(memory: Mapping[str, Any]) -> str:
    return (
        f"Features of {memory['tokens']} places in slices of {memory['studies']} healthy training "
        "studies, with the number of the study, the slice and the place of each. Names are not in "
        "the file. Whoever has the file can compare images with these features: ask what the "
        "owners of the training images allow before it is passed on."
    )
