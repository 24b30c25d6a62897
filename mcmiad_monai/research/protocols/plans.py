"""Which experiments each table needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mcmiad_monai.research.protocols.laboratory import Experiment
from mcmiad_monai.research.protocols.published import OTHER_SETS, TABLE_SETS
from mcmiad_monai.training.method import PRESETS, Method

TABLES = (1, 2, 3, 4)
BASE = "w/ CLIP fusion"


def ablations(method: Method, encoders: Mapping[str, str] | None = None) -> dict[str, Method]:
    """Variants of a method, one change each; the scoring options need no run of their own.

    A method without head has those of the encoder alone.

    Parameters
    ----------
    method : Method
        What they differ from.
    encoders : mapping, optional
        Weights of further encoders by their name.
    """
    variants = {
        "w/o CLIP fusion": method.with_options(use_text_fusion=False),
        "prior of 15 prompts": method.with_options(fusion_mode="prompts"),
        "no jitter": method.with_options(jitter_scale=0.0),
        "jitter on features": method.with_options(jitter_position="features"),
        "MoEAD's head": method.with_options(
            **PRESETS["moead"]["head"], balance_weight=PRESETS["moead"]["balance_weight"]
        ),
        "area pooling": method.with_options(pool="area"),
        "standardised features": method.with_options(standardize_features=True),
        "defaults of the bundles": method.with_options(**PRESETS["default"]),
    }
    if not method.trains_head:
        variants = {"area pooling": variants["area pooling"]}
    for name, weights in (encoders or {}).items():
        variants[f"encoder {name}"] = method.with_options(encoder_name=name, weights=weights)
    return variants


def experiments(
    available: Iterable[str],
    method: Method,
    *,
    tables: Sequence[int] = TABLES,
    seeds: Sequence[int] = (0, 1, 2),
    shots: Sequence[int] = (1,),
    encoders: Mapping[str, str] | None = None,
) -> list[Experiment]:
    """Every experiment that the tables need, once.

    Parameters
    ----------
    available : iterable of str
        Sets that there are.
    shots : sequence of int
        Numbers of normal images for Table 3.

    Raises
    ------
    ValueError
        If a table is not known, or there are no seeds.
    """
    unknown = sorted(set(tables) - set(TABLES))
    if unknown or not seeds:
        raise ValueError(f"tables {unknown} or seeds {list(seeds)}: tables are 1 to 4, one seed.")
    there = list(available)
    each = [name for name in (*TABLE_SETS, *OTHER_SETS) if name in there]
    each += [name for name in there if name not in each]  # sets of the user
    together = tuple(name for name in TABLE_SETS if name in there)
    plans: list[Experiment] = []

    def add(name: str, sets: Iterable[tuple[str, ...]], changed: Method, **options: Any) -> None:
        for chosen in sets:
            plans.append(Experiment(name=name, sets=chosen, method=changed, **options))

    single = [(name,) for name in each]
    for seed in seeds:
        if {1, 2, 4} & set(tables):
            add(BASE, single, method, seed=seed)
        if 1 in tables and len(together) > 1:
            add("unified", [together], method, seed=seed)
        for shot in shots if 3 in tables else ():
            add(f"{shot}-shot", single, method, seed=seed, shots=shot)
        for variant, changed in ablations(method, encoders).items() if 4 in tables else ():
            add(variant, [s for s in single if s[0] not in OTHER_SETS], changed, seed=seed)
    return plans
