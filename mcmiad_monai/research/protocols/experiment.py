"""One experiment: trained on normal images of one or several sets, and measured on each."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcmiad_monai.data.cases.names import Case
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.files.writing import write_text
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.package import load_package, save_package
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.bmad.sets import Masks
from mcmiad_monai.research.protocols.finishing import finish
from mcmiad_monai.research.protocols.laboratory import Experiment, Laboratory
from mcmiad_monai.research.protocols.measure import measure
from mcmiad_monai.research.protocols.shots import choose_shots
from mcmiad_monai.training.fit import fit_head

#: Figures of an experiment by the masks they were made with; both are of one model.
RESULTS: dict[Masks, str] = {"any": "result.json", "white": "result_white_masks.json"}
MODEL = "model.pt"


def run_experiment(plan: Experiment, lab: Laboratory, out: str | Path) -> dict[str, Any]:
    """Train and measure, or read what an earlier run has found.

    A finished experiment is never repeated; one that was stopped goes on after its last epoch. One
    that was measured with masks read otherwise is measured again, with the model that is there.

    Parameters
    ----------
    plan : Experiment
    lab : Laboratory
    out : path
        Its folder is made below; ``result.json`` (``result_white_masks.json`` where white alone is
        lesion) and ``model.pt`` end up in it.

    Returns
    -------
    dict
        ``results`` by set and score, ``supports``, ``data``, and all that produced them.

    Raises
    ------
    ValueError
        If the finished experiment was run on other images.
    """
    folder = Path(out) / plan.folder
    for masks in sorted(RESULTS, key=lambda reading: reading != lab.masks):
        if not (folder / RESULTS[masks]).exists():
            continue
        finished: dict[str, Any] = json.loads((folder / RESULTS[masks]).read_text("utf-8"))
        _require_same_data(finished["data"], {name: lab.data[name] for name in plan.sets}, folder)
        if masks != lab.masks:
            detector = load_package(folder / MODEL, lab.device)
            finished |= _measured(plan, lab, detector, bool(finished["calibration"]))
            write_text(folder / RESULTS[lab.masks], json.dumps(finished, indent=1))
        return finished
    supports = {
        name: lab.sets[name].cases("train")
        if plan.shots is None
        else choose_shots(lab.sets[name].cases("train"), plan.shots, plan.seed)
        for name in plan.sets
    }
    started = time.monotonic()
    data = FeatureDataset.join(
        {name: lab.features(name, "train", plan.method, supports[name]) for name in plan.sets}
    )
    detector, steps = train(plan, lab, data, supports, folder)
    trained = time.monotonic()
    finished = finish(plan, lab, detector, data)
    calibration = finished["calibration"]
    learned: dict[str, Any] = {key: finished[key] for key in ("memory", "score") if key in finished}
    report: dict[str, Any] = {
        "experiment": plan.to_dict(),
        **_measured(plan, lab, detector, bool(calibration)),
        "trained_on": {name: len(cases) for name, cases in supports.items()},
        "supports": None
        if plan.shots is None
        else {name: [case["case"] for case in cases] for name, cases in supports.items()},
        "calibration": calibration,
        **learned,
        "steps": steps,
        "seconds": {
            "training": round(trained - started, 1),
            "measuring": round(time.monotonic() - trained, 1),
        },
        "data": {name: lab.data[name] for name in plan.sets},
        "parameters": 0
        if detector.head is None
        else sum(p.numel() for p in detector.head.parameters() if p.requires_grad),
        "provenance": {
            "encoder": detector.encoder.provenance,
            "text_prior": lab.prior(plan.method).provenance if plan.method.trains_head else None,
            **produced_with(),
        },
    }
    modalities = {lab.sets[name].modality for name in plan.sets}
    training: dict[str, Any] = {
        "experiment": plan.to_dict(),
        "method": plan.method.to_dict(),
        "modality": modalities.pop() if len(modalities) == 1 else None,
        "slice_range": [0.0, 1.0],
        **learned,
        "data": report["data"],
    }
    save_package(
        folder / MODEL,
        detector,
        calibration=calibration,
        provenance={**report["provenance"], "training": training},
    )
    write_text(folder / RESULTS[lab.masks], json.dumps(report, indent=1))
    (folder / "last.pt").unlink(missing_ok=True)
    return report


def train(
    plan: Experiment,
    lab: Laboratory,
    data: FeatureDataset,
    supports: Mapping[str, Sequence[Case]],
    folder: Path,
) -> tuple[MCMIADDetector, int]:
    """Train a head, where the method has one.

    The weights are those of the last epoch, as nothing is chosen on test images.

    Returns
    -------
    tuple
        The detector, and the number of optimiser steps.
    """
    method, encoder = plan.method, lab.encoder(plan.method)
    score = method.build_score(encoder).to(lab.device)
    if not method.trains_head:
        return MCMIADDetector(encoder, score=score).to(lab.device).eval(), 0
    head, steps = fit_head(
        method,
        data,
        lab.prior(method),
        seed=plan.seed,
        device=lab.device,
        checkpoints=folder,
        fingerprint=lab.run_identity(method, supports, plan.seed),
        progress=lab.progress,
    )
    return MCMIADDetector(encoder, head, score).eval(), steps


def _measured(
    plan: Experiment, lab: Laboratory, detector: MCMIADDetector, calibrated: bool
) -> dict[str, Any]:
    """Figures on the test images of each set, and how their masks were read."""
    results = {
        name: measure(
            detector,
            lab.features(name, "test", plan.method),
            lab.sets[name].cases("test"),
            plan.method,
            thresholds=calibrated,
            device=lab.device,
        )
        for name in plan.sets
    }
    return {"masks": lab.masks, "results": results}


def _require_same_data(then: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    if then != now:
        raise ValueError(
            f"{folder} was run on {then}, and the sets now hold {now}. Give another output folder, "
            "or delete this one to run it again."
        )
