"""Results to archives: each once, tried again, and what was not taken is told."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from shutil import which
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="pynetdicom comes with the extra `dicom`")
pytest.importorskip("dicomweb_client", reason="dicomweb-client comes with the extra `dicom`")

from archives import Received, receiver, write_object
from cli_errors import refused
from pydicom.uid import DeflatedExplicitVRLittleEndian, SegmentationStorage

from mcmiad_monai.cli.parser import main
from mcmiad_monai.dicom.answers import Answer
from mcmiad_monai.dicom.credentials import AddressError, open_session
from mcmiad_monai.dicom.send import (
    SendLedger,
    Sent,
    send,
    send_to,
    sender_to,
)

WARNING, REFUSED, FULL = 0xB000, 0xC001, 0xA700


class Scripted:
    """A sender that answers as it is told."""

    target = "scripted"

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.stored = list(answers), list[str]()

    def store(self, files: Sequence[Path]) -> Iterator[Answer]:
        for file in files:
            self.stored.append(file.name)
            yield self.answers.pop(0) if self.answers else Answer(True)


def send_scripted(tmp_path: Path, files: list[Path], *answers: Answer) -> tuple[Sent, list[str]]:
    sender = Scripted(*answers)
    sent = send(files, sender, SendLedger(tmp_path / "sent.jsonl", "scripted"), pause=0)
    return sent, sender.stored


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_object(tmp_path / f"{k}.dcm") for k in range(2)]


@pytest.fixture
def pacs() -> Iterator[Received]:
    with receiver() as got:
        yield got


def test_file_is_sent_once_and_again_if_its_content_is_another(
    tmp_path: Path, files: list[Path]
) -> None:
    assert send_scripted(tmp_path, files)[1] == ["0.dcm", "1.dcm"]
    sent, stored = send_scripted(tmp_path, files)
    assert stored == []
    assert sent.before == files
    uid = json.loads((tmp_path / "sent.jsonl").read_text().splitlines()[0])["instance"]
    write_object(files[0], uid, text="b")
    assert send_scripted(tmp_path, files)[1] == ["0.dcm"]
    write_object(files[0], uid, text="a")  # what the archive has now is b
    assert send_scripted(tmp_path, files)[1] == ["0.dcm"]


def test_another_archive_gets_it_as_well(tmp_path: Path, files: list[Path]) -> None:
    send_scripted(tmp_path, files)
    other = Scripted()
    send(files, other, SendLedger(tmp_path / "sent.jsonl", "other"))
    assert other.stored == ["0.dcm", "1.dcm"]


def test_torn_line_of_a_killed_run_is_passed_over(tmp_path: Path, files: list[Path]) -> None:
    send_scripted(tmp_path, files[:1])
    ledger = tmp_path / "sent.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + whole[:40])
    assert send_scripted(tmp_path, files)[1] == ["1.dcm"]
    assert send_scripted(tmp_path, files)[1] == []


def test_only_what_may_pass_is_tried_again(tmp_path: Path, files: list[Path]) -> None:
    busy, no = Answer(False, "busy", again=True), Answer(False, "no")
    sent, stored = send_scripted(tmp_path, files, busy, no, busy)
    assert stored == ["0.dcm", "1.dcm", "0.dcm", "0.dcm"]
    assert sent.stored == [files[0]]
    assert sent.unsent == {files[1]: "no"}
    told = sent.message(tmp_path)
    assert "1 of 2 files were written and not sent to scripted" in told
    assert f"{files[1]}: no" in told
    assert f"mcmiad send {tmp_path} --to scripted" in told


def test_tries_end(tmp_path: Path, files: list[Path]) -> None:
    lost = Answer(False, "gone", again=True, lost=True)
    sent, stored = send_scripted(tmp_path, files[:1], *[lost] * 9)
    assert len(stored) == 4
    assert sent.lost
    assert sent.unsent == {files[0]: "gone"}


def test_what_is_no_dicom_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_text("no")
    sent, stored = send_scripted(tmp_path, [tmp_path / "a.dcm"])
    assert stored == []
    assert "no DICOM file" in sent.unsent[tmp_path / "a.dcm"]


def test_only_files_that_are_whole_are_sent(
    tmp_path: Path, pacs: Received, capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"PACS@127.0.0.1:{pacs.port}"
    assert "no DICOM file" in refused(capsys, "send", str(tmp_path), "--to", target)
    write_object(tmp_path / ".mcmiad-1-1.dcm")
    file = write_object(tmp_path / "a.dcm", "1.2.3.9")
    assert main(["send", str(tmp_path), str(file), "--to", target]) == 0
    assert pacs.instances == ["1.2.3.9"]


def test_c_store_proposes_the_classes_and_syntaxes_of_the_files(
    tmp_path: Path, pacs: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCMIAD_AE_TITLE", "KNOWN")
    plain = write_object(tmp_path / "a.dcm")
    deflated = write_object(
        tmp_path / "b.dcm", sop_class=SegmentationStorage, syntax=DeflatedExplicitVRLittleEndian
    )
    sent = send_to(f"PACS@127.0.0.1:{pacs.port}", [plain, deflated], tmp_path, pause=0)
    assert sent.stored == [plain, deflated]
    assert {syntax for _, syntax in pacs.contexts} == {
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.1.99",
    }
    assert set(pacs.calling) == {"KNOWN"}


def test_c_store_warnings_are_told_and_refusals_have_their_reason(
    tmp_path: Path, pacs: Received, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    files = [write_object(tmp_path / f"{k}.dcm", f"1.2.3.9.{k}") for k in range(3)]
    pacs.codes = {"1.2.3.9.0": [WARNING], "1.2.3.9.1": [REFUSED], "1.2.3.9.2": [FULL, FULL]}
    sent = send_to(f"PACS@127.0.0.1:{pacs.port}", files, tmp_path, pause=0)
    assert "Coercion" in sent.warnings[files[0]]
    assert "Cannot Understand (code C001)" in sent.unsent[files[1]]
    assert sent.stored == [files[0], files[2]]
    assert sorted(pacs.instances) == ["1.2.3.9.0", "1.2.3.9.2"]
    assert "Secret" not in caplog.text
    assert "Coercion" in caplog.text


def test_archive_without_the_class_says_so(tmp_path: Path) -> None:
    from pynetdicom.presentation import build_context
    from pynetdicom.sop_class import SecondaryCaptureImageStorage

    files = [
        write_object(tmp_path / "a.dcm"),
        write_object(tmp_path / "b.dcm", sop_class=SegmentationStorage),
    ]
    with receiver(contexts=[build_context(SecondaryCaptureImageStorage)]) as got:
        sent = send_to(f"PACS@127.0.0.1:{got.port}", files, tmp_path, pause=0)
        assert sent.stored == files[:1]
        assert "takes no Segmentation Storage as Explicit VR" in sent.unsent[files[1]]
        alone = send_to(f"PACS@127.0.0.1:{got.port}", files[1:], tmp_path, pause=0)
        assert "takes no Segmentation Storage" in alone.unsent[files[1]]


def test_rejected_association_names_the_titles(tmp_path: Path, files: list[Path]) -> None:
    with receiver(require_calling_aet=["OTHER"]) as got:
        sent = send_to(f"PACS@127.0.0.1:{got.port}", files, tmp_path, pause=0)
    assert "Calling AE title not recognised" in sent.unsent[files[0]]
    assert "we are MCMIAD" in sent.unsent[files[0]]
    assert sent.lost


def test_nobody_there_is_told(tmp_path: Path, files: list[Path]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        for target in (f"PACS@127.0.0.1:{port}", f"http://127.0.0.1:{port}/dicom-web"):
            sent = send_to(target, files, tmp_path, pause=0)
            assert sent.lost
            assert "was not reached" in sent.unsent[files[1]]


@pytest.mark.skipif(which("storescp") is None, reason="dcmtk is not installed")
def test_dcmtk_takes_what_is_sent(tmp_path: Path, files: list[Path]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    there = tmp_path / "there"
    there.mkdir()
    process = subprocess.Popen(["storescp", "-od", str(there), "-aet", "DCMTK", str(port)])
    try:
        sent = send_to(f"DCMTK@127.0.0.1:{port}", files, tmp_path, pause=0.3)
    finally:
        process.terminate()
        process.wait()
    assert sent.stored == files
    assert len(list(there.iterdir())) == 2


class Archive(BaseHTTPRequestHandler):
    """STOW-RS with the answers that the server was given: status, and content or None."""

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            size = 0
            while length := int(self.rfile.readline(), 16):
                size += len(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
        else:
            size = len(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.got.append((self.path, self.headers.get("Authorization"), size))
        status, content = server.answers.pop(0)
        body = json.dumps(content).encode() if content is not None else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/dicom+json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), Archive)
    server.got, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def listed(uid: str, sequence: str = "00081199", **reason: int) -> dict[str, Any]:
    """A list of one instance, stored or (0008,1198) failed, with the code of a tag."""
    item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
    item |= {tag.strip("_"): {"vr": "US", "Value": [code]} for tag, code in reason.items()}
    return {sequence: {"vr": "SQ", "Value": [item]}}


def test_stow_reads_warnings_and_failures_of_each_instance(tmp_path: Path, web: Any) -> None:
    files = [write_object(tmp_path / f"{k}.dcm", f"1.2.3.9.{k}") for k in range(5)]
    web.answers = [
        (202, listed("1.2.3.9.0", _00081196=WARNING)),
        (409, listed("1.2.3.9.1", "00081198", _00081197=REFUSED)),
        (200, listed("1.2.3.9.77")),
        (200, None),
        (415, None),
    ]
    sent = send_to(web.url, files, tmp_path, pause=0)
    assert [path for path, _, _ in web.got] == ["/dicom-web/studies"] * 5
    assert sent.stored == [files[0], files[3]]
    assert "Coercion" in sent.warnings[files[0]]
    assert "Cannot Understand (code C001)" in sent.unsent[files[1]]
    assert "did not say that it stored it" in sent.unsent[files[2]]
    assert "415" in sent.unsent[files[4]]
    assert not sent.lost


def test_large_instance_is_whole_at_the_second_try(tmp_path: Path, web: Any) -> None:
    file = write_object(
        tmp_path / "a.dcm", "1.2.3.9", Rows=2048, Columns=1024, PixelData=bytes(2048 * 1024)
    )
    web.answers = [(503, None), (200, listed("1.2.3.9"))]
    sent = send_to(web.url, [file], tmp_path, pause=0)
    assert sent.stored == [file]
    first, second = (size for _, _, size in web.got)
    assert first == second > 2048 * 1024


def test_credentials_are_those_of_the_environment(
    tmp_path: Path, web: Any, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCMIAD_DICOMWEB_TOKEN", "t0ken")
    web.answers = [(401, None), (200, None)]
    sent = send_to(web.url, files, tmp_path, pause=0)
    assert [told for _, told, _ in web.got] == ["Bearer t0ken"] * 2
    assert "401" in sent.unsent[files[0]]
    assert "MCMIAD_DICOMWEB_TOKEN" in sent.unsent[files[0]]
    assert "t0ken" not in (tmp_path / "sent.jsonl").read_text()


def test_token_is_not_replaced_by_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    netrc = tmp_path / "netrc"
    netrc.write_text("machine host login other password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("MCMIAD_DICOMWEB_TOKEN", "t0ken")
    session = open_session("https://host/")
    request = session.prepare_request(requests.Request("GET", "https://host/"))
    assert request.headers["Authorization"] == "Bearer t0ken"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("https://user:secret@host/dicom-web", "holds credentials"),
        ("https://", "no address of an archive"),
        ("ftp://host/", "no address of an archive"),
        ("PACS@host", "no address to send to"),
        ("PACS@host:99999", "no address to send to"),
        ("A-TITLE-OF-17-LET@host:104", "no address to send to"),
        ("host:104", "no address to send to"),
    ],
)
def test_what_is_no_address_is_refused(target: str, words: str) -> None:
    with pytest.raises(AddressError, match=words) as caught:
        sender_to(target)
    assert "secret" not in str(caught.value)
