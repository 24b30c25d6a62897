"""What a forked process does to be the command that it was asked for; see forked_commands.py.

Run by `runpy` with REQUEST: folder, environment, the file that stdout and stderr go to, and the
line behind ``python``, which is ``-m MODULE …`` or ``SCRIPT …``.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

request: dict[str, Any] = globals()["REQUEST"]
os.chdir(request["folder"])
os.environ.clear()
os.environ.update(request["environment"])
with Path(request["told"]).open("wb") as file:
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
line: list[str] = request["line"]
if line[0] == "-m":
    sys.argv = line[1:]
    sys.path.insert(0, request["folder"])
    runpy.run_module(line[1], run_name="__main__", alter_sys=True)
else:
    sys.argv = line
    sys.path.insert(0, str(Path(line[0]).parent))
    runpy.run_path(line[0], run_name="__main__")
