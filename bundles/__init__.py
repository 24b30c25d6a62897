"""The MONAI bundles as package data: `configs/`, `docs/` and licences, no code of their own."""
