"""What ``mcmiad verify`` says of the files of a trained bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from mcmiad_monai.bundle import compare_checksums, copy_bundle, renew_checksum, write_checksums
from mcmiad_monai.cli.parser import main
from mcmiad_monai.errors import BundleError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    (root / "models/model.pt").write_bytes(b"weights")
    for name in ("models/last.pt", "eval/events", ".git/index", "configs/.hidden"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"of the training")
    write_checksums(root)
    return root


def test_bundle_as_it_was_written_is_in_order(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "models/last.pt").unlink()
    shutil.rmtree(bundle / "eval")
    moved = bundle.rename(bundle.with_name("moved"))
    assert main(["verify", str(moved)]) == 0
    assert "all files are as they were written" in capsys.readouterr().out


@pytest.mark.parametrize("bit", [1, 128])
def test_every_file_that_differs_is_named(
    bundle: Path, capsys: pytest.CaptureFixture[str], bit: int
) -> None:
    config = bundle / "configs/inference.yaml"
    content = bytearray(config.read_bytes())
    content[len(content) // 2] ^= bit
    config.write_bytes(content)
    (bundle / "models/model.pt").unlink()
    (bundle / "models/other.pt").write_bytes(b"")
    assert main(["verify", str(bundle)]) == 1
    lines = capsys.readouterr().out.splitlines()
    expected = [
        "changed\tconfigs/inference.yaml",
        "missing\tmodels/model.pt",
        "new\tmodels/other.pt",
    ]
    assert lines == expected
    assert main(["verify", str(bundle), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["models/model.pt"] == "missing"


def test_file_is_that_of_sha256sum(bundle: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum")
    run = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(run, cwd=bundle, check=False).returncode == 0
    (bundle / "LICENSE").write_text("other")
    assert subprocess.run(run, cwd=bundle, check=False, capture_output=True).returncode == 1


def test_export_into_a_bundle_is_no_difference(bundle: Path, tmp_path: Path) -> None:
    (bundle / "models/model.onnx").write_bytes(b"exported")
    assert compare_checksums(bundle) == {"models/model.onnx": "new"}
    renew_checksum(bundle / "models/model.onnx")
    assert compare_checksums(bundle) == {}
    (tmp_path / "elsewhere.onnx").write_bytes(b"exported")
    renew_checksum(tmp_path / "elsewhere.onnx")  # in no bundle
    assert not (tmp_path.parent / "SHA256SUMS").exists()


def test_damaged_or_missing_checksums_are_no_all_clear(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle / "SHA256SUMS"
    path.write_bytes(b"\xff\x00" + path.read_bytes()[2:])
    assert main(["verify", str(bundle)]) == 1
    path.unlink()
    with pytest.raises(BundleError, match="SHA256SUMS does not exist"):
        compare_checksums(bundle)
    assert main(["verify", str(bundle)]) == 2
    assert "mcmiad train" in capsys.readouterr().err
