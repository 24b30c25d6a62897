"""Training of the head, checkpoints, calibration and packaging."""
