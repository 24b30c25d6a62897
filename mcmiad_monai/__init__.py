"""MCMIAD as MONAI bundles: healthy studies in, calibrated anomaly heatmaps out.

    from mcmiad_monai import load

    prediction = load("my_model")("study.nii.gz")

Importing the package is cheap: nothing heavy (torch, monai) is loaded before a name is used.
"""

import importlib
import pathlib
from typing import TYPE_CHECKING, Any

from mcmiad_monai.version import __version__

if TYPE_CHECKING:
    from mcmiad_monai.inference.prediction import Prediction
    from mcmiad_monai.predictor import Predictor, load

__all__ = ["Prediction", "Predictor", "__version__", "load"]

_MODULES = {
    "load": "mcmiad_monai.predictor",
    "Predictor": "mcmiad_monai.predictor",
    "Prediction": "mcmiad_monai.inference.prediction",
}

# In a clone the rooms `transforms` and `bundles` lie beside the package, and what `python -m` runs
# there finds the package here, before an installed one that holds them.
_here = pathlib.Path(__path__[0])
if not (_here / "transforms").is_dir():
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
