"""The page beside a model file that says what the model is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mcmiad_monai.calibration import Calibration, UnifiedCalibration
from mcmiad_monai.training.mask_check import MaskCheck


def model_card(
    provenance: Mapping[str, Any],
    calibration: Calibration | UnifiedCalibration,
    *,
    odd: Mapping[str, Mapping[str, str]] | None = None,
    masks: MaskCheck | None = None,
) -> str:
    """Markdown that says what the model is made of, warnings first.

    Parameters
    ----------
    odd : mapping, optional
        Odd healthy studies of each part, case → reason.
    masks : MaskCheck, optional
        Masks on validation studies with a lesion.
    """
    encoder, prior = provenance["encoder"], provenance["text_prior"]
    warnings = []
    if str(encoder["weights"]).startswith("random"):
        warnings.append(
            "**The encoder has random weights.** Its features were never trained on any image; "
            "the model shows that the software works and detects nothing that can be relied on."
        )
    if "hashing" in prior["encoder"]:
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
    lines += _odd_studies(odd or {})
    lines += ["## Provenance", ""]
    lines += ["```json", json.dumps(provenance, indent=1, default=str), "```", ""]
    return "\n".join(lines)


def _odd_studies(odd: Mapping[str, Mapping[str, str]]) -> list[str]:
    rows = [
        f"- {case} ({part}): {reason}"
        for part, found in odd.items()
        for case, reason in found.items()
    ]
    if not rows:
        return []
    intro = "Unlike the other healthy studies. Look at them; they still count for the thresholds."
    return ["## Odd healthy studies", "", intro, "", *rows, ""]
