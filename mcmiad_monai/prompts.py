"""Prompts of normal anatomy: the paper's, or a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcmiad_monai.modality import MODALITIES, get_modality

Prompts = dict[str, tuple[str, ...]]


def prompts_of(source: str | Path | None = None) -> Prompts:
    """Prompts by modality: the paper's 15 (A.2), or those of a file."""
    if source is None:
        return {name: modality.prompts for name, modality in MODALITIES.items()}
    return load_prompts(source)


def load_prompts(path: str | Path) -> Prompts:
    """Read prompts from a YAML or JSON file with a list of sentences under each modality.

    ::

        brain_mri:
          - A FLAIR brain MRI slice of a healthy adult.
        liver_ct:
          - A normal contrast-enhanced liver CT slice.

    Raises
    ------
    ValueError
        If there is no such file, a modality is not known, or a list is not one of sentences.
    """
    import yaml

    source = Path(path)
    if not source.is_file():
        raise ValueError(f"there is no file {source}; give a YAML or JSON file of prompts.")
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is not readable YAML or JSON: {error}") from error
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{source} holds {type(content).__name__}; a list of sentences under each of "
            f"{sorted(MODALITIES)} is expected."
        )
    return {
        get_modality(str(name)).name: _sentences(source, name, v) for name, v in content.items()
    }


def flat(prompts: Prompts) -> tuple[str, ...]:
    """All prompts, modality after modality."""
    return tuple(sentence for sentences in prompts.values() for sentence in sentences)


def _sentences(source: Path, name: Any, values: Any) -> tuple[str, ...]:
    good = isinstance(values, list) and all(isinstance(v, str) and v.strip() for v in values)
    if not good or not values or len(set(values)) < len(values):
        raise ValueError(
            f"{source} has {values!r} under {name!r}; a list of different sentences is expected."
        )
    return tuple(values)
