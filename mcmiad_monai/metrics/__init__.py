"""Metrics that merge over processes; those of pixels stream, in memory that does not grow."""

from mcmiad_monai.metrics.bootstrap import (
    Interval,
    PatientPixels,
    bootstrap_auroc,
    bootstrap_interval,
)
from mcmiad_monai.metrics.curves import (
    BestF1,
    auroc,
    average_precision,
    f1_max,
    histogram_auroc,
    histogram_average_precision,
    histogram_f1_max,
)
from mcmiad_monai.metrics.histogram import ScoreHistogram
from mcmiad_monai.metrics.pixels import PixelAUROC, PixelMetrics
from mcmiad_monai.metrics.regions import AUPRO, FROC
from mcmiad_monai.metrics.slices import SliceAP, SliceAUROC, SliceF1Max

__all__ = [
    "AUPRO",
    "FROC",
    "BestF1",
    "Interval",
    "PatientPixels",
    "PixelAUROC",
    "PixelMetrics",
    "ScoreHistogram",
    "SliceAP",
    "SliceAUROC",
    "SliceF1Max",
    "auroc",
    "average_precision",
    "bootstrap_auroc",
    "bootstrap_interval",
    "f1_max",
    "histogram_auroc",
    "histogram_average_precision",
    "histogram_f1_max",
]
