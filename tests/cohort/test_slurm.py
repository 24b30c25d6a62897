"""The jobs of Slurm that do a cohort, as files; `test_slurm_real.py` has Slurm run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcmiad_monai.cli.cohort import _words
from mcmiad_monai.cli.parser import get_parser
from mcmiad_monai.cohort.slurm import Jobs, SlurmError, submit, write_jobs

#: What may be in the name of a file, and would end a word, a quote or a comment of a shell.
NASTY = """a b'c"d$HOME`id`\\e;f#g%j*\nrm -rf x\udcff"""


@pytest.fixture
def printer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of Python, which writes its words into a file and ends with 3."""
    program, words = tmp_path / "it's python", tmp_path / "words.json"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"open({str(words)!r}, 'w').write(json.dumps(sys.argv[1:]))\nsys.exit(3)\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return words


def run(file: Path, task: int = 0) -> int:
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
    return subprocess.run(["sh", file], env=environment, check=False).returncode


def test_a_task_gets_the_words_of_the_command_and_its_shard(
    tmp_path: Path, printer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / NASTY
    monkeypatch.chdir(tmp_path)
    jobs = write_jobs(NASTY, [f"/data/{NASTY}", "--bundle=/m", f"--out={out}"], 4)
    assert run(jobs.array, task=3) == 0  # 3, that other shards have studies left, is no failure
    screen = ["-m", "mcmiad_monai.cli", "screen"]
    words = [f"/data/{NASTY}", "--bundle=/m", f"--out={out}", "--engine", "shard", "--shard", "3/4"]
    assert json.loads(printer.read_text(encoding="utf-8")) == [*screen, *words]
    assert run(jobs.collect) == 3
    collect = ["--collect", "--out", str(out)]
    assert json.loads(printer.read_text(encoding="utf-8")) == [*screen, *collect]


def test_names_bring_no_directive_into_a_job(tmp_path: Path) -> None:
    out = tmp_path / "a\n#SBATCH --partition=other"
    jobs = write_jobs(out, ["/d\n#SBATCH --exclusive"], 2, options=[("time", "01:00:00")])
    for file in (jobs.array, jobs.collect):
        head = file.read_text(encoding="utf-8").split("set -eu")[0].splitlines()
        assert all(line.startswith("#") for line in head)
        directives = [line for line in head if line.startswith("#SBATCH")]
        assert "#SBATCH --time=01:00:00" in directives
        assert not [line for line in directives if "other" in line or "exclusive" in line]


def test_array_has_a_task_for_each_shard(tmp_path: Path) -> None:
    text = write_jobs(tmp_path, ["/d"], 12).array.read_text(encoding="utf-8")
    assert "#SBATCH --array=0-11\n" in text
    assert '--shard "$SLURM_ARRAY_TASK_ID/12"' in text


@pytest.mark.parametrize("name", ["array", "output", "--dependency"])
def test_options_that_the_jobs_need_are_not_overridden(tmp_path: Path, name: str) -> None:
    with pytest.raises(SlurmError, match="is set by mcmiad screen"):
        write_jobs(tmp_path, ["/d"], 2, options=[(name, "1")])


@pytest.mark.parametrize(
    ("name", "value"), [("comment", "a b"), ("x\n#SBATCH --y", "1"), ("time", "1\n"), ("Mem", "1")]
)
def test_options_of_another_form_are_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(SlurmError, match="is no option of sbatch"):
        write_jobs(tmp_path, ["/d"], 2, options=[(name, value)])


#: Options that say how the cohort is run, and not what comes out.
OF_ENGINE = {
    "engine",
    "workers",
    "shard",
    "address",
    "collect",
    "follow",
    "submit",
    "sbatch",
    "again",
}
OF_SCREEN = {"json", "print_completion", "verbose", "quiet", "command", "run"}


def test_tasks_are_given_every_option_of_the_command() -> None:
    given = ["/data/a b", "https://pacs/x", "--bundle", "/m", "--out", "/o", "--attempts", "5"]
    given += ["--keep", "none", "--query", "Modality=MR", "--query", "StudyDate=2026-", "--set"]
    given += ["slice_range=[0.3,0.8]", "--set", "mask_threshold=1e-1", "--image-name", "t1"]
    given += ["--modality=brain_mri", "--max-voxels=1000", "--device=cuda", "--threads=3"]
    parse = get_parser().parse_args
    options, default = vars(parse(["screen", *given])), vars(parse(["screen", "--out", "/x"]))
    again = vars(parse(["screen", *_words(parse(["screen", *given]))]))
    for name in set(options) - OF_ENGINE - OF_SCREEN:
        assert options[name] != default[name], f"{name} is not tried"
        assert again[name] == options[name], name


SBATCH = """#!/bin/sh
echo "$PWD: $*" >>"$SAID"
case $*:$FAILS in *collect*:collect) echo "no such partition" >&2; exit 1 ;; esac
echo "4$(wc -l <"$SAID");cluster"
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What programs in the place of sbatch and scancel were asked."""
    tools, said = tmp_path / "tools", tmp_path / "said"
    tools.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "scancel": '#!/bin/sh\necho "scancel $*" >>"$SAID"',
    }.items():
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SAID", str(said))
    monkeypatch.setenv("FAILS", "")
    return said


def jobs_of(folder: Path) -> Jobs:
    return write_jobs(folder / "it's out", ["/d"], 2)


def test_collecting_job_waits_for_the_array_however_that_ends(tmp_path: Path, said: Path) -> None:
    jobs = jobs_of(tmp_path)
    assert submit(jobs) == ("41", "42")
    folder = jobs.array.parent
    lines = [
        f"{folder}: --parsable array.sbatch",
        f"{folder}: --parsable --dependency=afterany:41 collect.sbatch",
    ]
    assert said.read_text(encoding="utf-8").splitlines() == lines
    said.unlink()
    subprocess.run(["sh", "-c", jobs.commands()], check=True, stdout=subprocess.DEVNULL)
    told = said.read_text(encoding="utf-8").splitlines()
    assert told == [lines[0], lines[1].replace("--parsable ", "")]


def test_an_array_without_its_collecting_job_is_taken_back(
    tmp_path: Path, said: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "collect")
    with pytest.raises(SlurmError, match=r"Slurm does not take .*collect\.sbatch: no such part"):
        submit(jobs_of(tmp_path))
    assert said.read_text(encoding="utf-8").splitlines()[-1] == "scancel 41"


def test_a_machine_without_slurm_is_told_where_the_jobs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match=r"sbatch is not installed here. Submit .*array\.sbatch"):
        submit(jobs_of(tmp_path))
