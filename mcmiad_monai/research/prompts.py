"""Prompts of normal anatomy: the paper's, or a user's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    """Modalities and what stands under them, in the file's order, repeated ones included."""
    import yaml

    reader = {".json": _json_pairs, ".txt": _text_pairs}.get(source.suffix.lower(), _yaml_pairs)
    try:
        # editors on Windows begin a file with a byte order mark
        pairs = reader(source.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{source} is not readable YAML, JSON or text: {error}") from error
    if not isinstance(pairs, tuple) or not pairs:
        raise ValueError(
            f"{source} holds {_kind(pairs)}; a list of sentences under each of "
            f"{sorted(MODALITIES)} is expected."
        )
    return pairs


def _kind(content: Any) -> str:
    return "nothing" if content is None or content == () else f"a {type(content).__name__}"


# Each reader gives a tuple of pairs, or what else it found.
def _json_pairs(text: str) -> Any:
    return json.loads(text, object_pairs_hook=tuple)


def _yaml_pairs(text: str) -> Any:
    import yaml

    content = yaml.safe_load(text)
    if not isinstance(content, Mapping):
        return content
    loader = yaml.SafeLoader(text)  # the mapping itself has only the last of repeated names
    node = loader.get_single_node()
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value] if node else []
    return tuple((key, content.get(key)) for key in keys)


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
