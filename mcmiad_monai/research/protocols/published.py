"""Figures of the paper's tables, and the best published elsewhere, in per cent.

Rows of Table 1 stand under two settings that must not be mixed: MCMIAD trains one model for each
set, while the paper takes the figures of the others from multi-class experiments.
"""

from __future__ import annotations

#: Sets of the paper's tables, in its order, and their names there.
TABLE_SETS: dict[str, str] = {
    "liver": "Liver Tumor",
    "brain": "Brain Tumor",
    "resc": "Retina (RESC)",
}
#: Sets that are measured beside them.
OTHER_SETS: dict[str, str] = {"oct2017": "Retina (OCT2017)"}

Pair = tuple[float, float]
"""Image AUROC and pixel AUROC."""

#: Table 1, multi-class columns.
TABLE_1_UNIFIED: dict[str, dict[str, Pair]] = {
    "DRAEM": {"liver": (59.1, 52.9), "brain": (69.2, 52.0), "resc": (51.7, 57.4)},
    "UniAD": {"liver": (61.0, 97.1), "brain": (89.9, 97.4), "resc": (84.6, 94.8)},
    "SimpleNet": {"liver": (55.8, 97.4), "brain": (82.3, 94.8), "resc": (88.8, 95.5)},
    "DiAD": {"liver": (59.2, 97.1), "brain": (93.7, 95.4), "resc": (88.3, 95.3)},
}
#: Table 1, MCMIAD, one model for each set.
TABLE_1_PAPER: dict[str, Pair] = {
    "liver": (75.0, 95.8),
    "brain": (89.1, 96.6),
    "resc": (82.8, 95.5),
}
#: Best published elsewhere, one model for each set.
BEST_PER_SET: dict[str, Pair] = {
    "liver": (75.7, 97.5),
    "brain": (94.0, 98.1),
    "resc": (93.4, 96.5),
}
#: Best published elsewhere, one model for all: mean over the sets.
BEST_UNIFIED_MEAN: Pair = (84.9, 97.3)

#: Table 2: trainable parameters in millions, mean of image and pixel AUROC.
TABLE_2: dict[str, Pair] = {"DiAD": (1300.0, 88.2), "UniAD": (7.7, 87.5), "MCMIAD": (2.97, 89.2)}

#: Table 3, one normal image.
TABLE_3: dict[str, dict[str, Pair]] = {
    "UniAD": {"liver": (35.0, 88.5), "brain": (50.0, 93.6), "resc": (53.5, 80.7)},
    "MCMIAD": {"liver": (77.4, 96.0), "brain": (59.4, 88.8), "resc": (58.7, 84.0)},
}
#: Best published elsewhere with one normal image.
BEST_ONE_SHOT: dict[str, Pair] = {
    "liver": (77.4, 96.3),
    "brain": (80.2, 96.8),
    "resc": (85.5, 94.9),
}

#: Table 4: means over the sets.
TABLE_4: dict[str, Pair] = {"w/o CLIP fusion": (80.9, 94.8), "w/ CLIP fusion": (82.3, 96.1)}
