"""Which kind of masks a set has, and what reading white alone as lesion would change."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mcmiad_monai.research.bmad.sets import WHITE
from mcmiad_monai.transforms import load_mask
from mcmiad_monai.transforms.readers import read_image

#: Greys of labels 1, 2 and 4 in matplotlib's ``bone`` colours; they differ by one between versions
#: of the libraries that turn colours into grey.
BONE_GREYS = frozenset({57, 58, 121, 122, WHITE})


@dataclass
class MaskTally:
    """Masks of a set, counted one by one."""

    masks: int = 0
    empty: list[str] = field(default_factory=list)
    emptied: int = 0
    greys: set[int] = field(default_factory=set)

    def add(self, case: str, path: str) -> tuple[int, ...]:
        """Count the mask of a case; its width and height."""
        lesion = load_mask(path)
        self.greys |= set(np.unique(read_image(Path(path)).values).astype(int).tolist()) - {0}
        self.masks += 1
        if not lesion.any():
            self.empty.append(case)
        elif not load_mask(path, label=WHITE).any():
            self.emptied += 1
        return tuple(lesion.shape[1:3])

    def notes(self, name: str) -> list[str]:
        """What they are, and which readings fit them; nothing where there are none."""
        if not self.greys:
            return []
        if self.greys == {WHITE}:
            return [f"{name} masks are black and white: all above 0 and white alone are the same"]
        listed = ", ".join(map(str, sorted(self.greys)[:6])) + (
            ", …" if len(self.greys) > 6 else ""
        )
        coloured = self.greys <= BONE_GREYS
        kind = ": labels in bone colours, as BMAD's brain masks are" if coloured else ""
        return [
            f"{name} masks have greys {listed}{kind}; all above 0 is lesion (the default). With "
            f"white alone (--masks white, as BMAD's own code reads them) {self.emptied} more of "
            f"{self.masks} masks are empty"
        ]
