"""What a training learns from, and how: a checkpoint is of one run, which alone goes on from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mcmiad_monai.data.cache_key import describe_transform
from mcmiad_monai.files.reading import input_digest
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.training.method import Method

#: Options that may differ when a run is resumed, and names of weights, which may have been moved:
#: their digests are compared.
MAY_CHANGE = frozenset({"max_epochs", "patience", "encoder_name", "weights", "text_prior"})
#: What every checkpoint has.
NEEDED = {"network", "optimizer", "lr_scheduler", "epoch", "iteration", "fingerprint"}


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not belong to this run."""


class RunIdentity(dict[str, Any]):
    """Everything that decides what a run learns, by name; plain values, fit for JSON.

    Studies stand for themselves by digests of their files, so that they may be moved and no name
    is kept in a checkpoint.

    Attributes
    ----------
    names : dict
        Digest → name of the studies of this run, for messages.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, **studies: Sequence[Any]) -> None:
        super().__init__(values or {})
        self.names: dict[str, str] = {}
        for kind, cases in studies.items():
            digests = [case_digest(case) for case in cases]
            self[f"{kind} studies"] = digests
            self.names |= zip(digests, (case["case"] for case in cases), strict=True)

    @property
    def text(self) -> str:
        """As it is kept."""
        return json.dumps(self, sort_keys=True, default=str)

    def read(self, path: str | Path) -> dict[str, Any]:
        """Read a checkpoint of this run.

        Raises
        ------
        CheckpointError
            If there is none, it is not one, or it comes from another run.
        """
        source = Path(path)
        if not source.is_file():
            raise CheckpointError(f"no checkpoint at {source}; train first, or leave `resume` out.")
        try:
            content: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{source} is not a readable checkpoint: {error}") from error
        if missing := NEEDED - set(content):
            raise CheckpointError(
                f"{source} lacks {sorted(missing)}: it is not a training checkpoint. Pass the "
                "`last.pt` of a run (a packaged model.pt cannot be trained further)."
            )
        if "text prior" in self and "text prior" not in content["fingerprint"]:
            raise CheckpointError(
                f"{source} was written by an older version, which did not keep what a run learns "
                "from. Finish it with that version, or train afresh (mcmiad train --overwrite)."
            )
        if differences := self.differences(content["fingerprint"]):
            raise CheckpointError(
                f"{source} belongs to another run: {'; '.join(differences)}. Resume with what it "
                "was trained with, or train afresh (mcmiad train --overwrite, or another folder)."
            )
        return content

    def check(self, resume: str | Path | None, directory: str | Path) -> None:
        """Refuse a resume that cannot be, before anything is built or written.

        Parameters
        ----------
        resume : path, optional
            The checkpoint to go on from.
        directory : path
            Where the best epoch so far has to be.

        Raises
        ------
        CheckpointError
            As `read`.
        """
        if resume is None:
            return
        kept, best = self.read(resume), Path(directory) / "best.pt"
        if kept["best_epoch"] and not best.is_file():
            raise CheckpointError(
                f"{resume} needs the best epoch so far ({kept['best_epoch']}) beside it, and there "
                f"is no {best}. Copy the best.pt of that run there."
            )
        if kept["best_epoch"]:
            self.read(best)

    def differences(self, text: str) -> list[str]:
        """What of a kept identity is not that of this run, each as ``name: old -> new``."""
        old, new = json.loads(text), json.loads(self.text)
        return [
            self._difference(name, old.get(name, "not given"), new.get(name, "not given"))
            for name in sorted({*old, *new})
            if old.get(name, "not given") != new.get(name, "not given")
        ]

    def _difference(self, name: str, old: Any, new: Any) -> str:
        if not (name.endswith(" studies") and isinstance(old, list) and isinstance(new, list)):
            return f"{name}: {old} -> {new}"
        other = [self.names.get(str(digest), str(digest)) for digest in new if digest not in old]
        gone = len([digest for digest in old if digest not in new])
        shown = ", ".join(other[:5]) + (", …" if len(other) > 5 else "")
        what = f"{gone} no longer there as they were, {len(other)} new or changed"
        what += f" ({shown})" if other else ""
        return f"{name}: {len(old)} -> {len(new)}, {what if gone or other else 'in another order'}"


def run_identity(
    method: Method,
    *,
    encoder: FrozenEncoder,
    prior: TextPrior,
    seed: int,
    training: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]] = (),
    transform: Callable[..., Any] | None = None,
    **settings: Any,
) -> RunIdentity:
    """Identity of the training of a method.

    Parameters
    ----------
    training, validation : sequence of dict
        Cases; their files are read.
    transform : callable, optional
        From a case to an image and a mask.
    settings
        Further plain values.
    """
    own = method.to_dict()
    options = {name: value for name, value in own.items() if name not in {*MAY_CHANGE, "head"}}
    prompts = hashlib.sha256("\n".join(prior.prompts).encode()).hexdigest()[:12]
    described = "" if transform is None else describe_transform(transform)
    return RunIdentity(
        {
            **options,
            **own["head"],
            "encoder": f"{encoder.provenance['name']} {encoder.provenance['tensors_sha256'][:16]}",
            "text prior": f"{prior.encoder}, {prior.weights}, prompts {prompts}",
            "preprocessing": hashlib.sha256(described.encode()).hexdigest()[:16],
            "seed": seed,
            **settings,
        },
        training=training,
        validation=validation,
    )


def case_digest(case: Mapping[str, Any]) -> str:
    """Digest of the files of a case and of what is known of it, without names and places."""
    content = [case.get("anomalous"), case.get("modality")]
    content += [_digest(case.get(key)) for key in ("image", "label", "organ")]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _digest(path: str | None) -> str | None:
    try:
        return None if path is None else input_digest(Path(path).expanduser())
    except OSError:  # training reports it, and leaves the study out
        return "unreadable"
