"""`mcmiad watch`: each series of an Orthanc once, whatever is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("highdicom", reason="highdicom comes with the extra `dicom`")
pytest.importorskip("prometheus_client", reason="prometheus_client comes with the extra `dicom`")

import requests
from brain_series import small_bundle, write_brain
from forked_commands import ForkedCommands
from orthanc_server import OrthancServer, missing_orthanc

from mcmiad_monai.cli.parser import main
from mcmiad_monai.dicom.position import Place, Position, PositionError, Records, only_watcher

SECONDS = 240


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_bundle(tmp_path_factory.mktemp("model") / "bundle"))


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[OrthancServer]:
    if reason := missing_orthanc():
        pytest.skip(reason)
    with OrthancServer(tmp_path / "orthanc") as server:
        yield server


@pytest.fixture
def watch(bundle: str, orthanc: OrthancServer, tmp_path: Path) -> list[str]:
    """The command, without what a test adds."""
    words = ["watch", orthanc.url, "--bundle", bundle, "--out", str(tmp_path / "state")]
    return [*words, "--output", "sr", "--poll", "1"]


def until(true: Callable[[], Any]) -> Any:
    """Wait for something to be so."""
    end = time.monotonic() + SECONDS
    while not (found := true()):
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.1)
    return found


def fill(orthanc: OrthancServer, folder: Path, *numbers: int, modality: str = "MR") -> None:
    for number in numbers:
        path = write_brain(folder / str(number), number, modality=modality)
        orthanc.send(*sorted(path.iterdir()))


def settled(orthanc: OrthancServer) -> bool:
    return all(series["IsStable"] for series in orthanc.get("/series?expand"))


def results(orthanc: OrthancServer) -> Counter[str]:
    """Study of each report in the archive, and how many instances it has."""
    found: Counter[str] = Counter()
    for series in orthanc.get("/series?expand"):
        if series["MainDicomTags"]["Modality"] == "SR":
            study = orthanc.get(f"/studies/{series['ParentStudy']}")
            found[study["MainDicomTags"]["StudyInstanceUID"]] += len(series["Instances"])
    return found


def position(state: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((state / "position.json").read_text())
    return content


def begin(forked: ForkedCommands, words: list[str], folder: Path) -> tuple[BaseProcess, Path]:
    return forked.start(["-m", "mcmiad_monai.cli", *words], folder)


def printed(path: Path) -> str:
    """What a process has printed so far; it makes the file when it begins."""
    return path.read_text() if path.exists() else ""


def kill(process: BaseProcess, sign: signal.Signals = signal.SIGKILL) -> int | None:
    assert process.pid is not None
    os.kill(process.pid, sign)
    process.join(timeout=60)
    return process.exitcode


def test_each_result_once_although_watcher_and_archive_are_killed(
    orthanc: OrthancServer, watch: list[str], forked: ForkedCommands, tmp_path: Path
) -> None:
    fill(orthanc, tmp_path, 1, 2, 3)
    fill(orthanc, tmp_path, 4, modality="CT")
    process, told = begin(forked, watch, tmp_path)
    until(lambda: results(orthanc))
    kill(process)
    assert sum(results(orthanc).values()) < 3, "the kill came too late to test anything"
    process, told = begin(forked, watch, tmp_path)
    until(lambda: "status: http" in printed(told))
    # comes while Orthanc is stopped, which then never says that it is stable
    fill(orthanc, tmp_path, 5)
    orthanc.stop()
    until(lambda: "was not reached" in printed(told))
    orthanc.start()
    expected = {f"1.2.41.{number}": 1 for number in (1, 2, 3, 5)}
    until(lambda: results(orthanc) == expected)
    until(lambda: sum(position(tmp_path / "state")["counts"].values()) == 4)
    assert kill(process, signal.SIGTERM) == 143
    assert "interrupted by SIGTERM" in printed(told)
    assert "Secret" not in printed(told)
    assert main([*watch, "--once"]) == 0
    assert results(orthanc) == expected
    assert position(tmp_path / "state")["counts"] == {"done": 4, "refused": 0, "failed": 0}
    assert not list((tmp_path / "state" / "results").iterdir())


def test_bad_series_stops_nothing_and_is_looked_at_again_when_it_is_complete(
    orthanc: OrthancServer, watch: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *files, late, last = sorted(write_brain(tmp_path / "1", 1).iterdir())
    orthanc.send(*files, last)
    fill(orthanc, tmp_path, 2)
    until(lambda: settled(orthanc))
    assert main([*watch, "--once"]) == 1
    assert results(orthanc) == {"1.2.41.2": 1}
    assert "unevenly spaced" in capsys.readouterr().err
    assert main([*watch, "--once"]) == 0
    assert position(tmp_path / "state")["counts"] == {"done": 1, "refused": 1, "failed": 0}
    orthanc.send(late)
    until(lambda: settled(orthanc))
    assert main([*watch, "--once"]) == 0
    assert results(orthanc) == {"1.2.41.1": 1, "1.2.41.2": 1}


def test_new_only_passes_over_what_is_there(
    orthanc: OrthancServer, watch: list[str], tmp_path: Path
) -> None:
    fill(orthanc, tmp_path, 1)
    until(lambda: settled(orthanc))
    assert main([*watch, "--once", "--new-only"]) == 0
    fill(orthanc, tmp_path, 2)
    until(lambda: settled(orthanc))
    assert main([*watch, "--once", "--new-only"]) == 0
    assert results(orthanc) == {"1.2.41.2": 1}


def test_series_that_ended_the_watcher_three_times_is_left_alone(
    orthanc: OrthancServer, watch: list[str], tmp_path: Path
) -> None:
    fill(orthanc, tmp_path, 1, 2)
    until(lambda: settled(orthanc))
    (name,) = (
        series["ID"]
        for series in orthanc.get("/series?expand")
        if series["MainDicomTags"]["SeriesInstanceUID"] == "1.2.40.1"
    )
    from mcmiad_monai.dicom.orthanc import Orthanc

    digest = Orthanc(orthanc.url).series(name).fingerprint
    record = {"fingerprint": digest, "status": "begun", "attempts": 3}
    Records(tmp_path / "state").write(name, record)
    assert main([*watch, "--once"]) == 1
    assert results(orthanc) == {"1.2.41.2": 1}
    assert "ended the watcher 3 times" in Records(tmp_path / "state").read(name)["reason"]


def test_results_go_elsewhere_and_are_kept(
    orthanc: OrthancServer, watch: list[str], tmp_path: Path
) -> None:
    from archives import receiver

    fill(orthanc, tmp_path, 1)
    until(lambda: settled(orthanc))
    with receiver() as pacs:
        assert main([*watch, "--once", "--keep", "--send", f"PACS@127.0.0.1:{pacs.port}"]) == 0
        assert len(pacs.instances) == 1
    assert not results(orthanc)
    (kept,) = (tmp_path / "state" / "results").rglob("*.dcm")
    assert pacs.instances[0] in kept.name


def test_results_by_stow_are_in_the_archive_once(
    orthanc: OrthancServer, watch: list[str], tmp_path: Path
) -> None:
    fill(orthanc, tmp_path, 1)
    until(lambda: settled(orthanc))
    assert main([*watch, "--once", "--send", f"{orthanc.url}/dicom-web"]) == 0
    until(lambda: settled(orthanc))
    assert main([*watch, "--once", "--send", f"{orthanc.url}/dicom-web"]) == 0
    assert results(orthanc) == {"1.2.41.1": 1}
    assert position(tmp_path / "state")["counts"] == {"done": 1, "refused": 0, "failed": 0}


def test_status_page_and_metrics_on_this_machine_alone(
    orthanc: OrthancServer, watch: list[str], forked: ForkedCommands, tmp_path: Path
) -> None:
    fill(orthanc, tmp_path, 1)
    process, told = begin(forked, watch, tmp_path)
    try:
        url = until(lambda: re.search(r"status: (http://127\.0\.0\.1:\d+/)", printed(told)))[1]
        until(lambda: 'series_total{status="done"} 1.0' in requests.get(f"{url}metrics").text)
        page = requests.get(url)
        assert "<th>series done</th><td>1</td>" in page.text
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert requests.get(url, headers={"Host": "evil.example:80"}).status_code == 403
        assert requests.get(f"{url}../position.json").status_code == 404
        metrics = requests.get(f"{url}metrics").text
        assert "mcmiad_watch_archive_up 1.0" in metrics
        assert "mcmiad_watch_seconds_count 1.0" in metrics
        until(lambda: "mcmiad_watch_pending 0.0" in requests.get(f"{url}metrics").text)
    finally:
        assert kill(process, signal.SIGTERM) == 143


def test_second_watcher_of_a_folder_is_refused(tmp_path: Path) -> None:
    again = only_watcher(tmp_path)
    with only_watcher(tmp_path), pytest.raises(PositionError, match="another watcher"):
        again.__enter__()
    with only_watcher(tmp_path):
        pass


def test_folder_of_another_archive_and_a_damaged_position_are_refused(tmp_path: Path) -> None:
    Position(tmp_path, "http://a").save(Place(7, ("x",)))
    assert Position(tmp_path, "http://a").place == Place(7, ("x",))
    with pytest.raises(PositionError, match="belongs to the archive http://a"):
        Position(tmp_path, "http://b")
    (tmp_path / "position.json").write_text("{")
    with pytest.raises(PositionError, match="is damaged"):
        Position(tmp_path, "http://a")
