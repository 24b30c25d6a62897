"""Plain YAML, and digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mcmiad_monai.files.formats import DATA_BESIDE

#: Most bytes of a YAML file, and most values in it, those behind aliases each time.
YAML_BYTES = 1_000_000
YAML_VALUES = 100_000


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """A mapping in a YAML file, of plain values: no tag makes an object, no code is run.

    Raises
    ------
    ValueError
        If it is no such file, or its aliases stand for more than `YAML_VALUES` values.
    """
    import yaml

    try:
        if (size := Path(path).stat().st_size) > YAML_BYTES:
            raise ValueError(f"it has {size} bytes; at most {YAML_BYTES} are read")
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if _values(node, {}) > YAML_VALUES:
            raise ValueError(f"its aliases stand for more than {YAML_VALUES} values")
        content = loader.construct_document(node) if node else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} cannot be read as YAML of plain values: {reason}. Tags that make objects, as "
            "!!python/object, are not read. Bring the file of the bundle again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; names with values are needed.")
    return content


def _values(node: Any, known: dict[int, int]) -> int:
    """Values of a YAML node, those behind aliases each time."""
    if not isinstance(getattr(node, "value", None), list):
        return 1
    if id(node) not in known:
        known[id(node)] = YAML_VALUES + 1  # of a node in itself
        below = [part for pair in node.value for part in (pair if type(pair) is tuple else (pair,))]
        known[id(node)] = min(YAML_VALUES + 1, 1 + sum(_values(part, known) for part in below))
    return known[id(node)]


def file_sha256(path: Path, *, without_last: int = 0) -> str:
    """SHA-256 of a file in hexadecimal, all of it or without its last bytes."""
    digest, left = hashlib.sha256(), max(0, path.stat().st_size - without_last)
    with path.open("rb") as stream:
        while block := stream.read(min(left, 1 << 20)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def input_digest(path: str | Path) -> str:
    """SHA-256 of a file, or of the visible files of a folder whatever their names.

    Of a header whose data lie in a file beside it, of both.
    """
    source = Path(path)
    if not source.is_dir():
        beside = [source.with_suffix(data) for data in DATA_BESIDE.get(source.suffix.lower(), ())]
        parts = [file_sha256(f) for f in (source, *beside) if f.is_file() or f == source]
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
    files = (file for file in source.iterdir() if file.is_file() and file.name[0] != ".")
    digests = sorted(file_sha256(file) for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()
