"""Metrics that merge over processes; those of pixels stream, in memory that does not grow."""
