"""The BMAD benchmark: layouts, preparation, checks."""
