"""Choosing the normal images of few-shot training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mcmiad_monai.data.cases.names import Case
from mcmiad_monai.data.studies import patient_of


def choose_shots(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """Draw ``count`` normal images, of different patients as long as there are such.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    normal = [case for case in cases if not case.get("anomalous")]
    if count < 1 or len(normal) < count:
        raise ValueError(f"{count} normal images were asked for; there are {len(normal)}.")
    drawn = [normal[i] for i in np.random.default_rng(seed).permutation(len(normal))]
    seen: set[str] = set()
    fresh: list[Case] = []
    again: list[Case] = []
    for case in drawn:
        (again if patient_of(case) in seen else fresh).append(case)
        seen.add(patient_of(case))
    return (fresh + again)[:count]
