from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import pytest

from mcmiad_monai.cli import demo


def test_demo_runs_the_whole_job_and_says_where_things_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small cohort and encoder; the real one is `make demo`."""
    small = {"train": 3, "val": 2, "test_normal": 1, "test_lesion": 2}
    monkeypatch.setattr(demo, "COHORT", small)
    settings = {**demo.SETTINGS, "encoder_name": "test_efficientnet.r160_in1k", "max_epochs": 1}
    monkeypatch.setattr(demo, "SETTINGS", {**settings, "stage_weights": None})
    result = demo.run_demo(tmp_path / "out", progress=False)
    told = capsys.readouterr().out
    assert "RANDOM weights" in told
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
