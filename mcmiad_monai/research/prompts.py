"""Prompts of normal anatomy: the paper's, or a user's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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

    A text file (``.txt``) has a line ``[brain_mri]`` before the sentences of a modality, one a
    line; empty lines and those that begin with ``#`` are passed over.

    Raises
    ------
    ValueError
        If there is no such file, a modality is not known or comes twice, a list is not one of
        sentences, or a sentence comes twice.
    """
    source = Path(path)
    if not source.is_file():
        raise ValueError(f"there is no file {source}; give a YAML, JSON or text file of prompts.")
    pairs = _pairs(source)
    names = [str(name) for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{source} has {repeated} more than once; put their prompts together.")
    return checked_prompts(dict(zip(names, (value for _, value in pairs), strict=True)), source)


def checked_prompts(prompts: Mapping[str, Any], source: str | Path = "prompts") -> Prompts:
    """Check that there is a list of sentences for each modality, none of them twice.

    A sentence of two modalities would be right and wrong for the images of both. CLIP reads neither
    case nor spacing, so sentences that differ in nothing else are the same.

    Parameters
    ----------
    prompts : mapping
        Sentences by name of the modality.
    source : str or Path
        Where they come from, for messages.

    Raises
    ------
    ValueError
        If they are not such lists, or a modality is not known.
    """
    found = {get_modality(name).name: _sentences(source, name, v) for name, v in prompts.items()}
    every = [_as_read(sentence) for sentence in flat(found)]
    repeated = [s for s in flat(found) if every.count(_as_read(s)) > 1]
    if repeated:
        raise ValueError(
            f"{source} has {repeated[0]!r} under more than one modality; a prompt describes one."
        )
    return found


def flat(prompts: Prompts) -> tuple[str, ...]:
    """All prompts, modality after modality."""
    return tuple(sentence for sentences in prompts.values() for sentence in sentences)


def _pairs(source: Path) -> tuple[tuple[Any, Any], ...]:
    """Modalities and their prompts in the file's order, repeated ones included."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads a mapping as pairs, of which a dictionary keeps the last of repeated names."""

    mapping = yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG
    Loader.add_constructor(mapping, lambda own, node: tuple(own.construct_pairs(node, deep=True)))
    readers: dict[str, Callable[[str], Any]] = {
        ".json": lambda text: json.loads(text, object_pairs_hook=tuple),
        ".txt": _text_pairs,
    }
    read = readers.get(source.suffix.lower(), lambda text: Loader(text).get_single_data())
    try:
        # editors on Windows begin a file with a byte order mark
        pairs = read(source.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not readable YAML, JSON or text: {error}") from error
    if not isinstance(pairs, tuple) or not pairs:
        kind = "nothing" if pairs in (None, ()) else f"a {type(pairs).__name__}"
        raise ValueError(
            f"{source} holds {kind}; a list of sentences under each of {sorted(MODALITIES)} is "
            "expected."
        )
    return pairs


def _text_pairs(text: str) -> tuple[tuple[str, list[str]], ...]:
    pairs: list[tuple[str, list[str]]] = []
    lines = (line.strip() for line in text.splitlines())
    for line in (line for line in lines if line and not line.startswith("#")):
        if line.startswith("[") and line.endswith("]"):
            pairs.append((line[1:-1].strip(), []))
        elif pairs:
            pairs[-1][1].append(line)
        else:
            raise ValueError(
                f"the text begins with {line!r}; before the sentences of a modality comes its "
                f"name as a line of its own, one of {[f'[{name}]' for name in MODALITIES]}."
            )
    return tuple(pairs)


def _sentences(source: str | Path, name: Any, values: Any) -> tuple[str, ...]:
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    good = listed and all(isinstance(v, str) and v.strip() for v in values)
    if not good or not values or len({_as_read(v) for v in values}) < len(values):
        raise ValueError(
            f"{source} has {values!r} under {name!r}; a list of different sentences is expected. "
            "In YAML, a sentence with a colon needs quotes."
        )
    return tuple(values)


def _as_read(sentence: str) -> str:
    return " ".join(sentence.split()).lower()
