"""Metrics that stream: memory does not grow with the number of pixels."""

from mcmiad_monai.metrics.auroc import PixelAUROC, SliceAUROC, auroc, histogram_auroc
from mcmiad_monai.metrics.histogram import ScoreHistogram

__all__ = ["PixelAUROC", "ScoreHistogram", "SliceAUROC", "auroc", "histogram_auroc"]
