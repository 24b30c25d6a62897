"""MCMIAD as MONAI bundles: healthy studies in, calibrated anomaly heatmaps out.

Importing the package is cheap: nothing heavy (torch, monai) is loaded before a room is entered.
"""

__version__ = "0.1.0"
