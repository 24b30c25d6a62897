"""``mcmiad`` whose workers have a stub of the network; for `cohort_kills.py`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from mcmiad_monai.cohort import opening

#: Seconds that a study takes.
SECONDS = 0.05


def open_stub(*_: object) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Open nothing; a study is its mean."""
    import nibabel as nib
    import numpy as np

    def work(study: Mapping[str, Any]) -> dict[str, Any]:
        if "killer" in study["case"]:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(SECONDS)
        try:
            values = np.asarray(nib.load(study["image"]).dataobj)
        except Exception as error:
            return {"status": "refused", "error": str(error)}
        return {"status": "done", "score": float(values.mean()), "verdict": "none"}

    return work


if __name__ == "__main__":
    from mcmiad_monai.cli.parser import main

    opening.open_work = open_stub  # type: ignore[assignment]
    sys.exit(main())
