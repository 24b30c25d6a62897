"""MCMIAD as MONAI bundles: healthy studies in, calibrated anomaly heatmaps out.

Importing the package is cheap: nothing heavy (torch, monai) is loaded before a room is entered.
"""

import pathlib

__version__ = "0.1.0"

# In a clone the rooms `transforms` and `bundles` lie beside the package, and what `python -m` runs
# there finds the package here, before an installed one that holds them.
_here = pathlib.Path(__path__[0])
if not (_here / "transforms").is_dir():
    __path__.append(str(_here.parent))
