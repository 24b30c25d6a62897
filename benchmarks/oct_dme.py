"""Quality on real OCT of diabetic macular oedema: does the heat lie on the fluid.

    python benchmarks/oct_dme.py DATA --encoder tf_efficientnetv2_b0 --peers --seeds 0 1 2 \
        --weights tf_efficientnetv2_b0.imagenet.stride16.safetensors

DATA holds ``img/img_<k>.png`` and ``mask/`` of the same names (Duke DME B-scans; Chiu et al.,
Biomed Opt Express 2015). There are no normal eyes in it: the scans without fluid are of diseased
eyes as well, so that no image-level figure can be given, and the heads are fitted to what is not
normal. The scans are numbered patient by patient, eleven each; the folds leave two patients out
each, fit on the scans without fluid of the other eight, and measure the pixels of the left-out
scans with fluid. All folds are pooled into one figure.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import Maps
from PIL import Image
from quality import (
    add_options,
    cached,
    encoder_of,
    images_of,
    measure,
    method_of,
    our_maps,
    over_seeds,
    peer_maps,
    show,
    write,
)
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.studies import iterate_slices

SCANS_PER_PATIENT, PATIENTS_LEFT_OUT = 11, 2
COLUMNS = ("pixel_auroc", "pixel_ap", "pixel_f1_max")


def main() -> None:
    """Fit and measure all folds, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parser.parse_args()
    cases = scans(options.data)
    patients = sorted({case["patient"] for case in cases})
    encoder = encoder_of(options)
    kept: dict[str, Any] = {
        "modality": "retina_oct",
        "transform": images_of(options, "retina_oct"),
        "min_foreground": 0.0,
        **cached(options),
    }
    # by seed of our head, None for what has none
    pooled: dict[int | None, dict[str, list[Tensor]]] = {}
    lesions: list[Tensor] = []
    counts, steps, seconds = [], 0, 0.0
    for fold in range(0, len(patients), PATIENTS_LEFT_OUT):
        left = set(patients[fold : fold + PATIENTS_LEFT_OUT])
        train = [c for c in cases if c["patient"] not in left and not c["anomalous"]]
        test = [c for c in cases if c["patient"] in left and c["anomalous"]]
        if not test:
            continue
        training = FeatureDataset(train, encoder, copies=method_of(options).copies, **kept)
        testing = FeatureDataset(test, encoder, **kept)
        rows = list(range(len(testing)))
        found: dict[int | None, dict[str, Maps]] = {
            None: {"raw intensity, dark": dark(test), **peer_maps(options, training, testing)}
        }
        for seed in options.seeds:
            found[seed], steps, seconds = our_maps(options, training, testing, seed)
        with torch.inference_mode():
            for seed, ways in found.items():
                parts = pooled.setdefault(seed, {})
                for name, maps in ways.items():
                    parts.setdefault(name, []).append(maps(rows))
        lesions.append(testing.lesion(rows))
        counts.append({"left_out": sorted(left), "train": len(training), "test": len(testing)})
        print(f"fold without {sorted(left)}: {len(training)} scans to fit, {len(testing)} to find")
    everything = Pooled(torch.cat(lesions))
    tables = {
        seed: {
            name: measure(everything.maps(torch.cat(heat)), everything, everything.rows, None)
            for name, heat in parts.items()
        }
        for seed, parts in pooled.items()
    }
    table = {**tables.pop(None), **over_seeds(list(tables.values()))}
    print(f"{steps} steps in {seconds:.0f} s a fold; seeds {options.seeds}; pixel figures alone")
    show(table, COLUMNS)
    provenance = {"encoder": encoder.provenance, "steps": steps, "seconds": seconds}
    write(options.out, options, {"folds": counts, **provenance, "table": table})


class Pooled:
    """Test scans of all folds, as `measure` reads a dataset."""

    def __init__(self, lesions: Tensor) -> None:
        self._lesions = lesions
        self.rows = list(range(len(lesions)))

    def foreground(self, rows: list[int]) -> Tensor:
        """An OCT scan is foreground everywhere."""
        return torch.ones_like(self._lesions[rows])

    def lesion(self, rows: list[int]) -> Tensor:
        """Fluid of scans."""
        return self._lesions[rows]

    @staticmethod
    def maps(heat: Tensor) -> Any:
        """Heatmaps by row."""
        return lambda rows: heat[rows]


def scans(data: Path) -> list[dict[str, Any]]:
    """Cases of the B-scans; anomalous is one with fluid."""
    cases = []
    for path in sorted((data / "img").glob("*.png")):
        mask = data / "mask" / path.name
        number = int(path.stem.rsplit("_", 1)[1])
        cases.append(
            {
                "case": path.stem,
                "image": str(path),
                "label": str(mask),
                "anomalous": bool((np.asarray(Image.open(mask)) > 0).any()),
                "patient": f"p{number // SCANS_PER_PATIENT}",
            }
        )
    return cases


def dark(cases: list[dict[str, Any]]) -> Any:
    """The baseline without a model: fluid is dark."""
    images = torch.stack([s.image for s in iterate_slices(cases, "retina_oct", min_foreground=0.0)])
    return lambda rows: (1 - images[rows]).clamp_min(0)  # resizing can leave 1 by a rounding


if __name__ == "__main__":
    main()
