"""Write the four bundles of this project from their one source; run by ``make bundles``.

Edit the files in this folder, never those of a bundle: ``modalities.yaml`` has what differs between
the bundles, and every ``{{key}}`` in the other files is replaced by its value of the bundle.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

SOURCE = Path(__file__).resolve().parent
BUNDLES = SOURCE.parent
#: Files of this folder that are no part of a bundle.
OWN_FILES = ("modalities.yaml", "render.py")


def render() -> dict[Path, str]:
    """Text of every file of every bundle, by its path.

    Raises
    ------
    KeyError
        If a file names a key that ``modalities.yaml`` does not have.
    """
    values: dict[str, dict[str, Any]] = yaml.safe_load(_read(SOURCE / "modalities.yaml"))
    sources = [p for p in SOURCE.rglob("*.*") if p.name not in OWN_FILES and p.suffix != ".pyc"]
    rendered = {}
    for name, own in values.items():
        rendered[BUNDLES / name / "LICENSE"] = _read(BUNDLES.parent / "LICENSE")
        for path in sources:
            text = re.sub(r"\{\{(\w+)\}\}", lambda match, own=own: own[match[1]], _read(path))
            rendered[BUNDLES / name / path.relative_to(SOURCE)] = text.rstrip("\n") + "\n"
    return rendered


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def main() -> None:
    """Write the bundles."""
    for path, text in render().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
