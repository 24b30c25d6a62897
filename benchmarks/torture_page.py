"""The page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torture_base import Try

INTRO = """\
# Torture

`{how}` (seed {seed}, {seconds} s): commands are killed at random moments and continued, files are
damaged, disks are full, and inputs, names and packages are hostile. A try holds if nothing is lost,
nothing is silent, and no verdict differs from that of an undisturbed run. Studies are phantoms, and
models are trained in seconds: this is about the software. All tries, with what was seen:
`benchmarks/results/torture.json`.

"""
MEANING = {
    "kills": "SIGKILL, SIGTERM or SIGINT, every fourth try twice. Going on with `infer "
    "--continue`, `train --resume`, or the same command again gives the files of an undisturbed "
    "run, and none "
    "more; SIGTERM and SIGINT end with 143 and 130 and without a trace",
    "bit flips": "one bit of a model, an ONNX file, a threshold or a study: refused, or without "
    "effect on the scores; `verify` names the file",
    "malformed packages": "one message; no code of a file is run, no network is asked, no verdict",
    "bombs": "the study fails, the others are done, with at most 800 MB more memory than without",
    "full disk": "told in words with the path; what is written is whole; `--continue` completes it",
    "hostile names": "nothing outside of `--out` changes; no study is lost; no live formula, no "
    "forged line",
    "wrong inputs": "each has its own right answer, which is in the JSON file",
    "MONAI Label app": "a real server: 4xx for what is refused, and `/info` answers meanwhile",
}


def write_page(path: Path, tries: Sequence[Try], report: Mapping[str, Any]) -> None:
    """Write the page: the table, what it means, and every try that did not hold."""
    said = not_held(tries).strip()
    lines = [f"- {line}" for line in said.splitlines()] or ["Every try held."]
    intro = INTRO.format(**{key: report[key] for key in ("how", "seed", "seconds")})
    rows = [f"| {kind} | {text} |" for kind, text in MEANING.items()]
    meaning = "\n".join(["", "", "| kind | what must hold |", "|---|---|", *rows, ""])
    parts = [intro, table(tries), meaning, "\n## What did not hold\n\n", "\n".join(lines)]
    path.write_text("".join(parts) + "\n", encoding="utf-8")


def table(tries: Sequence[Try]) -> str:
    """Markdown: tried, held and kills by kind."""
    rows = ["| kind | tried | held |", "|---|---|---|"]
    for kind in [*dict.fromkeys(one.kind for one in tries), None]:
        of = [t for t in tries if kind in (None, t.kind)]
        tried = [t for t in of if t.held is not None]
        held = sum(bool(t.held) for t in tried)
        kills = sum(t.kills for t in of)
        count = f"{len(tried)} ({kills} kills)" if kills else str(len(tried))
        note = "" if len(tried) == len(of) else f"; {len(of) - len(tried)} not tried"
        rows.append(f"| {kind or 'all'} | {count}{note} | {held} |")
    return "\n".join(rows)


def not_held(tries: Sequence[Try]) -> str:
    """Lines of all tries that did not hold or were not tried."""
    lines = [
        f"{'NOT HELD' if t.held is False else 'not tried'}: {t.kind}: {t.name}: {'; '.join(t.seen)}"
        for t in tries
        if not t.held
    ]
    return "".join(f"{line}\n" for line in lines)
