"""What a result was produced with: versions of the software and the revision of its source."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcmiad_monai.version import __version__

#: Distributions whose version can change a figure.
LIBRARIES = (
    "torch",
    "torchvision",
    "monai",
    "timm",
    "open_clip_torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "pytorch-ignite",
)
#: Seconds after which git is given up on.
GIT_TIMEOUT = 10


def produced_with() -> dict[str, Any]:
    """Versions and revision, fit for JSON; to be stored beside every figure."""
    return {"software": software(), "git_revision": git_revision()}


def software() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "mcmiad_monai": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


@cache
def git_revision() -> str | None:
    """Commit of the checkout that the package runs from, None for an installed copy.

    ``+changes`` follows it where files that git knows differ from the commit: such a result cannot
    be had again from the commit alone.
    """
    package = Path(__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    # an environment may lie inside the checkout of something else, whose revision says nothing
    if top is None or Path(top).resolve() != package.parent or not _git(package, "ls-files"):
        return None
    revision = _git(package, "rev-parse", "HEAD")
    if revision is None:
        return None
    changed = _git(package.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{revision}+changes" if changed else revision


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None where git or a repository is missing."""
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
