"""Workflows of a bundle, opened with the options of a command."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def open_training(options: argparse.Namespace, root: Path, more: dict[str, Any]) -> Any:
    """Open the training of a bundle on the studies of the command line.

    Parameters
    ----------
    options : Namespace
        ``source``, ``modality``, ``image_name``, ``device``, ``tracking``, ``quiet`` and
        ``overrides``.
    root : path
        Folder of the bundle.
    more : dict
        Further overrides; those that are None are left out, and ``--set`` wins.
    """
    given = {
        "dataset_dir": str(options.source.resolve()),
        "study_modality": options.modality,
        "studies#image_name": options.image_name,
        "device": options.device,
        "progress": False if options.quiet else None,
        **more,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    overrides |= dict(options.overrides)
    return open_quietly(root, ["train"], overrides, tracking=options.tracking)


def open_quietly(
    root: Path, names: Sequence[str], overrides: dict[str, Any], *, tracking: str | None = None
) -> Any:
    """Open a workflow whose messages all go to the root logger.

    MONAI's own handlers print on standard output, and those of the bundle's ``logging.conf`` would
    show every message a second time.
    """
    import monai.bundle  # noqa: F401  (its loggers exist from here on)

    from mcmiad_monai.bundle import open_workflow

    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] == "monai" and isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
    return open_workflow(root, names, {"logging_file": False} | overrides, tracking=tracking)
