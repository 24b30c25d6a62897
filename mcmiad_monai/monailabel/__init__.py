"""The MONAI Label app: heatmaps in Slicer and OHIF, batch inference, scoring, training.

MONAI Label comes with the extra ``label`` and is imported in this package alone; only
:mod:`~mcmiad_monai.monailabel.layout` works without it.
"""
