"""What was found of BMAD, against what there should be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from mcmiad_monai.data.cases.names import Case
from mcmiad_monai.errors import root_message
from mcmiad_monai.research.bmad.layout import Split
from mcmiad_monai.research.bmad.masks import MaskTally
from mcmiad_monai.research.bmad.release import brain_fit
from mcmiad_monai.research.bmad.sets import OFFICIAL, OFFICIAL_SUMS, SPLITS, ImageSet
from mcmiad_monai.transforms import load_volume


@dataclass(frozen=True)
class BMADReport:
    """Counts of each set and split, and everything that is not as it should be.

    Attributes
    ----------
    rows : list of dict
        ``set``, ``layout``, ``split``, ``good``, ``ungood``, ``masks`` and ``official``.
    problems : list of str
        Images without mask and masks without image; after a full check also unreadable files,
        images and masks of different size.
    notes : list of str
        What is to be known and is no fault: counts or patients that differ from the release, kinds
        of masks, empty masks.
    """

    rows: list[dict[str, Any]]
    problems: list[str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary for JSON."""
        return asdict(self)

    def text(self) -> str:
        """As a table, with problems and notes below."""
        columns = ("set", "split", "good", "ungood", "masks", "official")
        lines = ["".join(f"{name:>12}" for name in columns) + "  layout"]
        for row in self.rows:
            values = ("-" if row[name] is None else row[name] for name in columns)
            lines.append("".join(f"{value!s:>12}" for value in values) + f"  {row['layout']}")
        lines += [f"problem: {text}" for text in self.problems]
        lines += [f"note: {text}" for text in self.notes]
        return "\n".join(lines)


def bmad_report(
    sets: Mapping[str, ImageSet], *, verify: bool = False, progress: bool = False
) -> BMADReport:
    """Count, compare with the release and, if asked for, read every file.

    Parameters
    ----------
    sets : mapping
        Of :func:`~mcmiad_monai.research.bmad.sets.find_bmad`.
    verify : bool
        Read every image and mask: minutes for the whole of BMAD. One bad file never stops it.
    progress : bool
        Show a bar over the files read.
    """
    rows, notes = [], []
    problems = [problem for found in sets.values() for problem in found.problems]
    for name, found in sets.items():
        for split in SPLITS:
            good, ungood = found.counts(split)
            official, differs = _official(name, split, good, ungood)
            cases = found.cases(split)
            if not cases and official is None:
                continue
            masks = sum(case["label"] is not None for case in cases)
            row = {"set": name, "layout": found.layout, "split": split, "good": good}
            rows.append({**row, "ungood": ungood, "masks": masks, "official": official})
            if differs:
                notes.append(f"{name} {split}: {good} + {ungood} images, released: {official}")
        if name == "brain":
            notes.append(brain_fit(found))
    if verify:
        tallies = {}
        for name, found in sets.items():
            cases = [case for split in SPLITS for case in found.cases(split)]
            reading = tqdm(cases, f"reading {name}", unit=" images", disable=not progress)
            bad, tallies[name] = _verify(reading)
            problems += bad
        notes += _mask_notes(tallies)
    return BMADReport(rows, problems, notes)


def _official(name: str, split: Split, good: int, ungood: int) -> tuple[str | None, bool]:
    """Released counts in words, and whether those found differ."""
    counts = OFFICIAL[name].counts.get(split) if name in OFFICIAL else None
    if counts is not None:
        return f"{counts[0]}+{counts[1]}", counts != (good, ungood)
    total = OFFICIAL_SUMS.get(name, {}).get(split)
    return (None, False) if total is None else (f"{total}", total != good + ungood)


def _verify(cases: Iterable[Case]) -> tuple[list[str], MaskTally]:
    """Problems of files, and what their masks are."""
    problems, tally = [], MaskTally()
    for case in cases:
        try:
            image = tuple(load_volume(case["image"]).shape[1:3])
            mask = image if case["label"] is None else tally.add(case["case"], case["label"])
        except Exception as error:
            problems.append(f"{case['case']}: {root_message(error)}")
            continue
        if image != mask:
            problems.append(f"{case['case']}: image {image} and mask {mask} differ in size")
    return problems, tally


def _mask_notes(tallies: Mapping[str, MaskTally]) -> list[str]:
    """Kinds of masks, and masks that mark nothing."""
    notes = [note for name, tally in tallies.items() for note in tally.notes(name)]
    empty = [case for tally in tallies.values() for case in tally.empty]
    if empty:
        names = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        notes.append(
            f"{len(empty)} anomalous images have an empty mask ({names}): their labels by folder "
            "and by mask differ, and both are reported"
        )
    return notes
