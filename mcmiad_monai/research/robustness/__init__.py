"""Robustness and fairness: figures under graded corruptions, and by scanner, site, sex or age."""

from mcmiad_monai.research.robustness.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Corruptd,
    Corruption,
    StudyCorruptor,
    corruptions_for,
    get_corruption,
)
from mcmiad_monai.research.robustness.stress import require_complete, run_stress
from mcmiad_monai.research.robustness.subgroup_tables import SubgroupError
from mcmiad_monai.research.robustness.subgroups import subgroup_report

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "Corruptd",
    "Corruption",
    "StudyCorruptor",
    "SubgroupError",
    "corruptions_for",
    "get_corruption",
    "require_complete",
    "run_stress",
    "subgroup_report",
]
