"""The schedule of the learning rate of all experiments, chosen once on validation (§4.2)."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from mcmiad_monai.files.writing import write_text
from mcmiad_monai.modality import LIVER_CT
from mcmiad_monai.research.protocols.laboratory import Laboratory, identity_of
from mcmiad_monai.training.fit import fit_head
from mcmiad_monai.training.method import Method
from mcmiad_monai.training.schedule_choice import better, validation_metric

logger = logging.getLogger(__name__)

#: The choice, for the next run; its folder is named after what it depends on.
CHOICE = "choice.json"


def choose_schedule(method: Method, lab: Laboratory, out: Path, *, seed: int) -> Method:
    """The method with cosine or step decay, where it leaves that open.

    The two are compared on the validation part of the liver, as the paper sets its options there,
    or of the first set that has such a part. Without any it is cosine.

    Parameters
    ----------
    out : Path
        ``schedules`` in it keeps the choice and its figures.
    """
    if method.schedule != "auto" or not method.trains_head:
        return method
    options = json.dumps([identity_of(method), lab.data, seed], sort_keys=True)
    path = out / "schedules" / hashlib.sha256(options.encode()).hexdigest()[:10] / CHOICE
    found: dict[str, Any] = {}
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
    else:
        order = sorted(lab.sets, key=lambda name: lab.sets[name].modality != LIVER_CT.name)
        name = next((name for name in order if lab.sets[name].cases("val")), None)
        figures = {} if name is None else _figures(method, lab, name, path.parent, seed)
        found = {"schedule": better(figures), "set": name, "validation": figures}
        write_text(path, json.dumps(found, indent=1))
    logger.info(
        "schedule of the learning rate: %s (validation of %s: %s)",
        *(found[key] for key in ("schedule", "set", "validation")),
    )
    return method.with_options(schedule=found["schedule"])


def _figures(
    method: Method, lab: Laboratory, name: str, folder: Path, seed: int
) -> dict[str, float]:
    """Validation figure of the last epoch, by schedule."""
    figures = {}
    for kind in ("cosine", "step"):
        chosen = method.with_options(schedule=kind)
        head, _ = fit_head(
            chosen,
            lab.features(name, "train", chosen),
            lab.prior(chosen),
            seed=seed,
            device=lab.device,
            checkpoints=folder / kind,
            fingerprint=lab.run_identity(chosen, {name: lab.sets[name].cases("train")}, seed),
            progress=lab.progress,
        )
        validation = lab.features(name, "val", chosen)
        figures[kind] = validation_metric(head, chosen, validation, lab.device)
    return figures
