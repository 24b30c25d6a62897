"""DICOM objects of a prediction, and the ways in and out of archives."""
