"""Which patients and slices BMAD's brain set has, as its code publishes them."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from pathlib import Path

from mcmiad_monai.data.cases.names import stem_of
from mcmiad_monai.research.bmad.layout import Split
from mcmiad_monai.research.bmad.sets import ImageSet, patient_of_name

#: BraTS2021 numbers of the good patients by folder: a text file, to be read by people too.
PATIENTS = Path(__file__).with_name("brain_patients.txt")
#: Axial slices of BraTS that BMAD uses.
BRAIN_SLICES = range(60, 100)
#: Every how many slices of that range is taken as anomalous, by split.
BRAIN_STEP = {"valid": 10, "test": 8}
#: Anomalous patients in valid, and all of them. Which ones are in valid is not published: BMAD's
#: script takes them in the order of a Python set.
BRAIN_ILL_VALID, BRAIN_ILL = 11, 626
#: Folders of the release by split.
FOLDERS: dict[Split, str] = {"train": "train", "val": "valid", "test": "test"}
#: A patient of BraTS2021 by its name: ``BraTS2021_00003``, or the number alone.
NUMBERED = re.compile(r"(?:brats2021\D*)?(\d{5})", re.IGNORECASE)


@cache
def good_patients() -> dict[str, frozenset[int]]:
    """BraTS2021 numbers of the patients of ``train/good``, ``valid/good`` and ``test/good``."""
    found: dict[str, set[int]] = {}
    for line in PATIENTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            numbers = found.setdefault(line.strip("[]"), set())
        elif not line.startswith("#"):
            for word in line.split():
                first, _, last = word.partition("-")
                numbers.update(range(int(first), int(last or first) + 1))
    return {folder: frozenset(numbers) for folder, numbers in found.items()}


def number_of(name: str) -> int | None:
    """BraTS2021 number of a patient; None where the name is not of BraTS2021's kind."""
    match = NUMBERED.fullmatch(name)
    return int(match[1]) if match else None


def brain_fit(found: ImageSet) -> str:
    """Whether a brain set has the patients and slices of the release, as far as file names tell.

    Parameters
    ----------
    found : ImageSet
        Its images are named by patient and slice: ``00003_60`` or ``BraTS2021_00003_60``.
    """
    patients: dict[str, set[int]] = defaultdict(set)
    other_slices = nameless = 0
    cases = [(split, case) for split in found.splits for case in found.cases(split)]
    for name, case in cases:
        split, kind = FOLDERS[name], "Ungood" if case["anomalous"] else "good"
        stem = stem_of(Path(case["image"]))
        patient = patient_of_name(stem)
        number, k = number_of(patient), stem[len(patient) :].strip("_- .")
        if number is None or not k:
            nameless += 1
            continue
        patients[f"{split}/{kind}"].add(number)
        step = BRAIN_STEP[split] if kind == "Ungood" else 1
        other_slices += int(k) not in BRAIN_SLICES[::step]
    if nameless:
        return (
            f"brain: {nameless} of {len(cases)} file names hold no number of BraTS2021 with a "
            "slice (such as 00003_60): it cannot be told whether its patients are those of the "
            "release"
        )
    differences = [
        f"{folder} has {len(have & wanted)} of the {len(wanted)} published patients and "
        f"{len(have - wanted)} others"
        for folder, wanted in good_patients().items()
        if (have := patients.get(folder)) and have != wanted
    ]
    good = frozenset[int]().union(*good_patients().values())
    ill = patients["valid/Ungood"] | patients["test/Ungood"]
    counts = {"valid/Ungood": BRAIN_ILL_VALID, "test/Ungood": BRAIN_ILL - BRAIN_ILL_VALID}
    differences += [
        f"{folder} has {len(patients[folder])} patients, the release {count}"
        for folder, count in counts.items()
        if len(patients[folder]) not in (0, count)
    ]
    if ill & good:
        differences.append(f"{len(ill & good)} patients of Ungood are good ones of the release")
    if other_slices:
        differences.append(f"{other_slices} images are of slices that the release does not take")
    if differences:
        return f"brain differs from the release: {'; '.join(differences)}"
    return (
        "brain fits the release by its file names: its good patients are the published ones, and "
        f"its slices are those of the release (which {BRAIN_ILL_VALID} anomalous patients are in "
        "valid is not published)"
    )
