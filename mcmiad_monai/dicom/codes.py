"""Codes that the objects share: of the anatomy, of units, and our own where no standard has one."""

from __future__ import annotations

from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

OWN = "99MCMIAD"
"""Our coding scheme; names that begin with 99 are private ones (DICOM PS3.16, 8.2)."""

ABNORMAL = codes.SCT.MorphologicallyAbnormalStructure
NO_UNIT = CodedConcept("1", "UCUM", "no units")
RATIO = CodedConcept("{ratio}", "UCUM", "ratio")
SCORE = CodedConcept("{score}", "UCUM", "score")
MILLILITRES = CodedConcept("ml", "UCUM", "milliliter")
HEAT = CodedConcept("heat", OWN, "Anomaly score in units of its threshold")

REGIONS = {
    "brain_mri": CodedConcept("12738006", "SCT", "Brain"),
    "liver_ct": CodedConcept("10200004", "SCT", "Liver"),
    "retina_oct": CodedConcept("5665001", "SCT", "Retina"),
}
"""Anatomy by modality of the study."""


def own(value: str, meaning: str) -> CodedConcept:
    """A code of our own."""
    return CodedConcept(value, OWN, meaning)
