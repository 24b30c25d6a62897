"""What a driver gives its workers: how they open the model, without opening it itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcmiad_monai.cohort.options import WorkOptions
    from mcmiad_monai.cohort.work import Work


def open_work(bundle: Path, out: Path, options: WorkOptions) -> Work:
    """Open the model, in a worker."""
    from mcmiad_monai.cohort.work import Work

    return Work(bundle, out, options)
