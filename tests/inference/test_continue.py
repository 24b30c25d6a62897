"""``mcmiad infer --continue``: results that are there stay, and no other is taken for one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from forked_commands import ForkedCommands
from PIL import Image
from stressed import make_model

from mcmiad_monai import load
from mcmiad_monai.cli.parser import main
from mcmiad_monai.data.studies import study_digest
from mcmiad_monai.inference.continuing import finished_studies, room_needed

NAMES = ("a", "b", "c")
WHOLE = (0.0, 1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model.pt", slice_range=WHOLE)


def write_head(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 40, 4)), indexing="ij")
    head = (x**2 + y**2 < 0.8) * (100 + 10 * rng.standard_normal(x.shape))
    nib.save(nib.Nifti1Image(head.astype(np.float32), np.eye(4)), path)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        write_head(folder / f"{name}.nii.gz", seed)
    return folder


def infer(studies: Path, model: Path, out: Path, *more: str) -> int:
    line = ["infer", str(studies), "--bundle", str(model), "--out", str(out), "--device", "cpu"]
    return main([*line, "--set", "progress=false", "--set", "engine=torch", *more])


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def computed(out: Path, before: float) -> set[str]:
    """Studies whose scores were written since then."""
    return {p.parent.name for p in out.glob("*/*_scores.json") if p.stat().st_mtime_ns > before}


def now(out: Path) -> int:
    return max(p.stat().st_mtime_ns for p in out.rglob("*"))


def test_complete_results_stay_and_the_others_are_computed(
    studies: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert infer(studies, model, out, "--preview") == 0
    whole, start = content(out), now(out)
    heat = out / "a/a_heatmap.nii.gz"
    heat.write_bytes(heat.read_bytes()[:-20])  # damaged on the disk
    (out / "b/b_preview.png").unlink()
    os.utime(heat, ns=(0, 0))
    (out / "scores.json").unlink()  # the first run was killed before it
    (out / "scores.csv").unlink()
    capsys.readouterr()
    assert infer(studies, model, out, "--preview", "--continue") == 0
    assert computed(out, start) == {"a", "b"}
    assert "2 studies done, 1 kept from before, 0 failed: " in capsys.readouterr().err
    again = content(out)
    assert again.keys() == whole.keys()
    assert {n for n in whole if whole[n] != again[n]} <= {"scores.json", "scores.csv"}
    report = json.loads(again["scores.json"])
    assert sorted(s["case"] for s in report["scores"]) == list(NAMES)
    assert report["studies"] == 3
    assert all(f"\n{name},".encode() in again["scores.csv"] for name in NAMES)


def test_a_result_of_another_model_is_refused_before_anything_is_computed(
    studies: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", make_model(tmp_path / "m.pt", slice_range=WHOLE, seed=5)
    assert infer(studies, model, out) == 0
    before = content(out)
    capsys.readouterr()
    assert infer(studies, other, out, "--continue") == 2
    told = capsys.readouterr().err
    assert "3 of 3 studies have a result" in told
    assert re.search(r"model was [0-9a-f]{12}… and is [0-9a-f]{12}….*\(--out\)", told)
    assert content(out) == before
    assert infer(studies, other, out) == 0
    assert content(out) != before


@pytest.mark.parametrize(
    "setting", ["mask_threshold=0.5", "slice_range=[0.3,0.8]", "check_modality=false"]
)
def test_a_result_of_other_settings_is_refused_and_named(
    studies: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    out = tmp_path / "out"
    assert infer(studies, model, out) == 0
    before = content(out)
    assert infer(studies, model, out, "--continue", "--set", setting) == 2
    assert f"For example a: {setting.partition('=')[0]} was " in capsys.readouterr().err
    assert content(out) == before


@pytest.mark.parametrize("made_with", [None, {}, {"model": None}])
def test_a_result_that_does_not_name_its_model_is_refused(
    studies: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], made_with: Any
) -> None:
    out = tmp_path / "out"
    assert infer(studies, model, out) == 0
    path = out / "a/a_scores.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "made_with": made_with}))
    assert infer(studies, model, out, "--continue") == 2
    assert "does not say which model made it" in capsys.readouterr().err


def test_a_result_of_another_input_is_not_kept_and_not_replaced(
    studies: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert infer(studies, model, out) == 0
    before = content(out)
    write_head(studies / "a.nii.gz", 9)
    assert infer(studies, model, out, "--continue") == 1
    failed = json.loads((out / "scores.json").read_text())["failed"]
    assert "holds the result of another input" in failed["a"]
    assert {n: b for n, b in content(out).items() if "/" in n} == {
        n: b for n, b in before.items() if "/" in n
    }


def test_the_modality_and_the_organ_mask_belong_to_the_input(
    studies: Path, model: Path, tmp_path: Path
) -> None:
    out, predictor = tmp_path / "out", load(model, device="cpu", engine="torch")
    case = {"case": "a", "image": str(studies / "a.nii.gz")}
    predictor(case["image"]).save(out)
    assert list(finished_studies([case], out, predictor.made_with)) == ["a"]
    with pytest.raises(ValueError, match="modality was brain_mri and is liver_ct"):
        finished_studies([{**case, "modality": "liver_ct"}], out, predictor.made_with)
    masks = [{**case, "organ": str(studies / f"{name}.nii.gz")} for name in "bc"]
    assert len({study_digest(c, organ=True) for c in (case, *masks)}) == 3
    assert len({study_digest(c, organ=False) for c in (case, *masks)}) == 1


def test_pictures_are_kept_by_their_own_files(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.pt", slice_range=WHOLE, modality="retina_oct")
    (tmp_path / "in").mkdir()
    grey = np.random.default_rng(0).integers(40, 120, (40, 50)).astype("u1")
    Image.fromarray(grey).save(tmp_path / "in" / "eye.png")
    out = tmp_path / "out"
    assert infer(tmp_path / "in", model, out) == 0
    start = now(out)
    assert infer(tmp_path / "in", model, out, "--continue") == 0
    assert computed(out, start) == set()
    # NIfTI that is asked for now is not there
    assert infer(tmp_path / "in", model, out, "--continue", "--set", "pictures=false") == 0
    assert computed(out, start) == {"eye"}


def test_room_is_by_the_headers_whatever_can_be_read(studies: Path, tmp_path: Path) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "p.png")
    cases = [{"image": studies / f"{name}.nii.gz"} for name in NAMES]
    assert room_needed(cases) == 3 * 40 * 40 * 4
    assert room_needed(cases * 100) == 300 * 40 * 40 * 4
    assert room_needed([{"image": tmp_path / "p.png"}]) == 5 * 40 * 30
    assert room_needed([{"image": tmp_path / "none.nii.gz"}]) == room_needed([]) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_the_report_and_says_how_to_go_on(
    model: Path, tmp_path: Path, forked: ForkedCommands, number: int, code: int
) -> None:
    source, out = tmp_path / "studies", tmp_path / "out"
    source.mkdir()
    for k in range(60):
        write_head(source / f"s{k:02}.nii.gz", k)
    line = ["-m", "mcmiad_monai.cli", "infer", source, "--bundle", model, "--out", out, "-q"]
    process, told = forked.start([*line, "--set", "engine=torch"], tmp_path)
    while process.exitcode is None and len(list(out.glob("*/*_scores.json"))) < 3:
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code, told.read_text()
    text, report = told.read_text(), json.loads((out / "scores.json").read_text())
    done = {study["case"] for study in report["scores"]}
    assert re.fullmatch(
        rf"mcmiad: interrupted by \S+; {len(done)} studies done, 0 failed, {60 - len(done)} not "
        r"done: .*out; go on with the same command and --continue\n",
        text,
    )
    assert done == {path.parent.name for path in out.glob("*/*_scores.json")}
    assert sorted({*done, *report["not_done"]}) == [f"s{k:02}" for k in range(60)]
    assert not list(out.rglob(".*"))


def test_a_run_that_was_killed_goes_on_to_the_files_of_a_straight_one(
    studies: Path, model: Path, tmp_path: Path, forked: ForkedCommands
) -> None:
    for k in range(20):
        write_head(studies / f"s{k:02}.nii.gz", k + 10)
    out, straight = tmp_path / "out", tmp_path / "straight"
    line = ["-m", "mcmiad_monai.cli", "infer", studies, "--bundle", model, "--out", out, "-q"]
    process, _ = forked.start([*line, "--set", "engine=torch"], tmp_path)
    while process.exitcode is None and len(list(out.glob("*/*_scores.json"))) < 3:
        time.sleep(0.02)
    process.kill()
    process.join(60)
    assert infer(studies, model, out, "--continue") == 0
    assert infer(studies, model, straight) == 0
    found, expected = content(out), content(straight)
    assert found.keys() == expected.keys()
    assert {n for n in found if found[n] != expected[n]} <= {"scores.json", "scores.csv"}


def test_an_evaluation_that_is_interrupted_writes_no_figures(
    studies: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    entries = []
    for name in NAMES:
        mask = np.zeros((40, 40, 4), np.uint8)
        mask[18:22, 18:22, 1] = 1
        nib.save(nib.Nifti1Image(mask, np.eye(4)), studies / f"{name}_lesion.nii.gz")
        entries.append({"image": f"{name}.nii.gz", "label": f"{name}_lesion.nii.gz", "case": name})
    (studies / "datalist.json").write_text(json.dumps({"testing": entries}))
    out, count = tmp_path / "out", []
    from mcmiad_monai.predictor import Predictor

    heat = Predictor.heat

    def stop_at_the_third(self: Predictor, image: Any) -> Any:
        count.append(1)
        if len(count) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return heat(self, image)

    monkeypatch.setattr(Predictor, "heat", stop_at_the_third)
    line = ["evaluate", str(studies / "datalist.json"), "--bundle", str(model), "--out", str(out)]
    assert main([*line, "-q", "--device", "cpu", "--set", "engine=torch"]) == 143
    assert "2 of 3 studies evaluated, nothing written" in capsys.readouterr().err
    assert not (out / "metrics.json").exists()  # its figures would look like those of all studies


def test_a_disk_that_fills_up_fails_its_study_and_keeps_the_others(
    studies: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcmiad_monai.inference import writers

    write = writers._write_gzip

    def full(image: Any, path: Path) -> None:
        write(image, path)
        if path.parent.name == "b":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers, "_write_gzip", full)
    out = tmp_path / "out"
    assert infer(studies, model, out) == 1
    report = json.loads((out / "scores.json").read_text())
    assert list(report["failed"]) == ["b"]
    assert f"no room for {out}/b/b_heatmap.nii.gz" in report["failed"]["b"]
    assert [s["case"] for s in report["scores"]] == ["a", "c"]
    monkeypatch.undo()
    assert infer(studies, model, out, "--continue") == 0
    report = json.loads((out / "scores.json").read_text())
    assert (report["failed"], report["studies"]) == ({}, 3)


def test_a_report_without_room_leaves_the_results_and_is_no_success(
    studies: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from mcmiad_monai.files.room import DiskFullError
    from mcmiad_monai.inference import cohort

    def full(path: Path, _text: str) -> None:
        raise DiskFullError(f"there is no room for {path}")

    monkeypatch.setattr(cohort, "write_text", full)
    out = tmp_path / "out"
    assert infer(studies, model, out) == 1
    assert "mcmiad: there is no room for" in capsys.readouterr().err
    assert len(list(out.glob("*/*_scores.json"))) == 3


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(
    studies: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    assert infer(studies, model, tmp_path / "out") == 2
    assert "mcmiad: the output folder" in capsys.readouterr().err
    usage = shutil.disk_usage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda p: usage(p)._replace(free=10))
        assert infer(studies, model, tmp_path / "new") == 2
    assert "0.0 MB free, and about 0.0 MB will be written" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
