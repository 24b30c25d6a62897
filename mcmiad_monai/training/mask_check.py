"""Whether the masks of a finished model find the lesions of its validation studies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mcmiad_monai.calibration import Calibration, UnifiedCalibration, heat_unit
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.training.calibrating import heated


class MaskCheck(NamedTuple):
    """Masks at the pixel threshold on validation studies with a lesion.

    Attributes
    ----------
    studies : int
        With a lesion.
    empty : int
        Of these, in which no voxel exceeds 1.0.
    dice : list of float
        Dice of those with a lesion mask, on the network grid.
    """

    studies: int
    empty: int
    dice: list[float]

    @property
    def finds_nothing(self) -> bool:
        """Whether every mask is empty."""
        return self.studies > 0 and self.empty == self.studies

    def summary(self) -> str:
        """One sentence for people."""
        if not self.studies:
            return "no validation study has a lesion: the masks were not checked"
        told = (
            f"on {self.empty} of {self.studies} validation studies with a lesion no voxel exceeds "
            "1.0"
        )
        if not self.dice:
            return told
        mean = math.fsum(self.dice) / len(self.dice)
        return f"{told}; mean Dice at the threshold {mean:.3f} ({len(self.dice)} studies)"


@dataclass
class _Overlap:
    above: int = 0
    lesion: int = 0
    both: int = 0


@torch.inference_mode()
def check_masks(
    detector: MCMIADDetector,
    dataset: FeatureDataset,
    calibration: Calibration | UnifiedCalibration,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 32,
) -> MaskCheck:
    """Compare masks at 1.0 with the lesions of a dataset, over all slices of a study with one.

    Parameters
    ----------
    detector : MCMIADDetector
        Calibrated.
    dataset : FeatureDataset
        Validation slices.
    """
    stored = calibration.to_dict(scores=False)
    known = getattr(calibration, "modalities", None)
    with_lesion = {
        r.case for r in dataset.records if r.anomalous and (known is None or r.modality in known)
    }
    rows = [i for i, r in enumerate(dataset.records) if r.case in with_lesion]
    found = {case: _Overlap() for case in with_lesion}
    for row, heat, _, _ in heated(detector, dataset, rows, device, batch_size):
        record = dataset.records[row]
        mask = heat.cpu() > heat_unit(stored, record.modality)
        lesion = dataset.lesion([row])[0]
        overlap = found[record.case]
        overlap.above += int(mask.sum())
        overlap.lesion += int(lesion.sum())
        overlap.both += int((mask & lesion).sum())
    return MaskCheck(
        studies=len(found),
        empty=sum(o.above == 0 for o in found.values()),
        dice=[2 * o.both / (o.above + o.lesion) for _, o in sorted(found.items()) if o.lesion],
    )
