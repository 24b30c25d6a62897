from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_errors import refused

from mcmiad_monai.cli.parser import main
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.research.bmad.phantom import write_bmad_phantom

TINY = [
    *["--encoder", "test_efficientnet.r160_in1k", "--weights", "random"],
    *["--text-prior", "hashing", "--epochs", "1", "--set", "batch_size=4"],
    *["--set", "min_steps_per_epoch=1", "--set", "head.dim=16", "--set", "head.heads=2"],
    *["--set", "head.hidden=16", "--set", "head.rounds=1"],
]
pytestmark = pytest.mark.filterwarnings("ignore:the encoder .* has RANDOM weights")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_bmad_phantom(tmp_path / "bmad", sets=["brain"], size=48)


def test_generated_tree_is_found_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tree"
    assert main(["bmad", "phantom", str(out), "--layout", "ader"]) == 0
    assert main(["bmad", "check", str(out), "--verify", "--json", str(tmp_path / "r.json")]) == 0
    told = capsys.readouterr().out
    assert "3715" not in told
    assert "640+3075" in told
    assert json.loads((tmp_path / "r.json").read_text())["problems"] == []


def test_problems_of_a_tree_are_told_by_the_exit_code(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next((small / "Brain_AD/test/Ungood/anomaly_mask").iterdir()).unlink()
    assert main(["bmad", "check", str(small)]) == 1
    assert "problem: " in capsys.readouterr().out


def test_brain_set_is_prepared_from_volumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for k in range(3):
        for kind, values in (("flair", rng.random((8, 8, 66))), ("seg", np.zeros((8, 8, 66)))):
            path = tmp_path / "brats" / f"P_{k:03d}" / f"P_{k:03d}_{kind}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), path)
    source, out = str(tmp_path / "brats"), str(tmp_path / "out")
    assert main(["bmad", "prepare", "brain", "--clean", "--brats", source, "--out", out]) == 0
    assert "train/good\t6" in capsys.readouterr().out
    assert main(["bmad", "prepare", "liver", "--btcv", source, "--out", str(tmp_path / "x")]) == 2
    assert "--lits: give a folder" in capsys.readouterr().err


def test_reproduce_prints_the_tables(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = small.parent / "results"
    source = ["reproduce", "--bmad", str(small), "--out", str(out)]
    assert main([*source, "--tables", "1,2", "--seeds", "0", *TINY]) == 0
    told = capsys.readouterr().out
    assert "Table 1" in told
    assert "Table 2" in told
    assert "Table 3" not in told
    assert str(out / "report.md") in told


def test_reproduce_takes_own_folders(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["reproduce", "--own", f"brain_mri={small / 'Brain_AD'}", "--out"]
    quiet = [*source, str(small.parent / "own"), "--tables", "1", "--seeds", "0", "-q", *TINY]
    assert main(quiet) == 0
    printed = capsys.readouterr()
    assert "| Brain_AD |" in printed.out
    assert printed.err == ""


def test_reproduce_measures_white_masks_beside_all_others(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = small.parent / "results"
    more = ["--out", str(out), "--tables", "1", "--seeds", "0", *TINY]
    assert main(["reproduce", "--bmad", str(small), "--masks", "white", *more]) == 0
    told = capsys.readouterr().out
    assert "white (255) alone is lesion" in told
    assert str(out / "white_masks" / "report.md") in told
    assert not (out / "report.md").exists()
    own = f"brain_mri={small / 'Brain_AD'}"
    assert main(["reproduce", "--own", own, "--masks", "white", *more]) == 2
    assert "needs --bmad" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--set", "epoch=3"], "'epoch' is no option of the method. Did you mean max_epochs?"),
        (["--weights", "none.safetensors"], "none.safetensors"),
        (["--tables", "7"], "[7]"),
    ],
)
def test_reproduce_refuses_what_it_does_not_know(
    small: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    out = str(small.parent / "o")
    assert main(["reproduce", "--bmad", str(small), "--out", out, *TINY, *more]) == 2
    assert told in capsys.readouterr().err


def test_own_prompts_are_shown_and_encoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "prompts.yaml"
    own.write_text("brain_mri: [A healthy brain.]\n")
    assert main(["prompts", "show", "--prompts", str(own)]) == 0
    assert capsys.readouterr().out == "A healthy brain.\n"
    out = tmp_path / "prior.safetensors"
    arguments = ["prompts", "encode", "--encoder", "hashing", "--prompts", str(own)]
    assert main([*arguments, "--out", str(out)]) == 0
    prior = TextPrior.load(out)
    assert prior.prompts == ("A healthy brain.",)
    card = out.with_suffix(".md").read_text()
    told = capsys.readouterr().out
    assert str(out.with_suffix(".md")) in told
    for text in (
        prior.encoder,
        prior.weights,
        prior.provenance["embeddings_sha256"],
        *prior.prompts,
    ):
        assert text in card
    assert "torch" in card
    assert "--text-prior prior.safetensors" in card
    assert "OpenAI" not in card


def test_adaptation_of_one_modality_is_refused(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "prompts", "adapt", "--data", f"brain_mri={small / 'Brain_AD'}")
    assert "at least two modalities" in message
