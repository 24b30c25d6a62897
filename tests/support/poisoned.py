"""A worker's work that fails, waits or dies with studies whose names say so.

As a script, ``mcmiad`` with such workers.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from mcmiad_monai.cohort import opening
from mcmiad_monai.cohort.ledger import Row, Study
from mcmiad_monai.cohort.options import WorkOptions


def open_poisoned(bundle: Path, out: Path, chosen: WorkOptions) -> object:
    """Open the model as `open_work` does."""
    from mcmiad_monai.cohort.work import Work

    class Poisoned(Work):
        """``killer`` kills its worker, ``broken`` fails, ``slow`` waits for the file ``go``."""

        def _done(self, study: Study) -> Row:
            name = str(study["case"])
            if "killer" in name:
                os.kill(os.getpid(), signal.SIGKILL)
            if "broken" in name:
                raise RuntimeError("a bug")
            while "slow" in name and not (out.parent / "go").exists():
                time.sleep(0.01)
            return super()._done(study)

    return Poisoned(bundle, out, chosen)


if __name__ == "__main__":
    from mcmiad_monai.cli.parser import main

    opening.open_work = open_poisoned  # type: ignore[assignment]
    sys.exit(main())
