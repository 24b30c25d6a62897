"""Cohorts: many studies by many processes, exactly once, with one table of results."""
