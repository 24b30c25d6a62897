"""Metrics that stream: memory does not grow with the number of pixels."""
