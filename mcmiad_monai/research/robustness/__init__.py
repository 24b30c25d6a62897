"""Robustness and fairness: figures under graded corruptions, and by scanner, site, sex or age."""

from typing import Any

_PLACES = {"require_complete": "stress", "run_stress": "stress", "subgroup_report": "subgroups"}


def __getattr__(name: str) -> Any:
    """Import what is asked for alone: tables of subgroups need neither torch nor MONAI."""
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"{__name__} has no {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
