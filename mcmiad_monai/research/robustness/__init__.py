"""Robustness and fairness: figures under graded corruptions, and by scanner, site, sex or age."""
