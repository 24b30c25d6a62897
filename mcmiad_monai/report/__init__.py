"""Pages that people open: a cohort, and each of its studies."""
