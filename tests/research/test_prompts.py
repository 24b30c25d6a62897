from __future__ import annotations

import json
import logging
from pathlib import Path

import open_clip
import pytest
import torch

from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.text_prior import TextPrior, tokenize
from mcmiad_monai.research.prior_card import write_prior
from mcmiad_monai.research.prompts import checked_prompts, flat, load_prompts, prompts_of


def test_default_prompts_are_the_papers_in_their_order() -> None:
    assert flat(prompts_of()) == normal_prompts()
    assert [len(lines) for lines in prompts_of().values()] == [5, 5, 5]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_own_prompts_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    own = {"liver_ct": ["A liver.", "Another liver: normal."], "brain_mri": ["A brain."]}
    path = tmp_path / f"prompts.{suffix}"
    path.write_text(
        json.dumps(own)
        if suffix == "json"
        else "liver_ct:\n  - A liver.\n  - 'Another liver: normal.'\nbrain_mri: [A brain.]\n"
    )
    assert prompts_of(path) == {k: tuple(v) for k, v in own.items()}
    assert flat(prompts_of(path)) == ("A liver.", "Another liver: normal.", "A brain.")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("heart: [A heart.]", "'heart' is not known"),
        ("brain_mri: []", "list of different sentences"),
        ("brain_mri: A brain.", "list of different sentences"),
        ("brain_mri: [3]", "list of different sentences"),
        ("brain_mri: [a, a]", "list of different sentences"),
        ("brain_mri: ['  ']", "list of different sentences"),
        ("- a\n- b", "holds a list"),
        ("", "holds nothing"),
        ("{}", "holds nothing"),
        ("2020-01-01", "holds a date"),
        ("a: [b", "not readable"),
        ("brain_mri: [a]\nbrain_mri: [b]", r"\['brain_mri'\] more than once"),
        ("brain_mri: [a]\nliver_ct: [b, a]", "'a' under more than one modality"),
        ("brain_mri: [A brain., ' a  BRAIN. ']", "list of different sentences"),
        ("brain_mri: [A scan.]\nliver_ct: [b, 'a scan. ']", "'A scan.' under more than one"),
        ("brain_mri: [A brain: normal.]", "needs quotes"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        load_prompts(path)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("json", '{"brain_mri": ["Größe normal."]}'),
        ("txt", "[brain_mri]\nGröße normal.\n"),
        ("yaml", "brain_mri: [Größe normal.]\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_byte_order_mark_is_passed_over(
    tmp_path: Path, suffix: str, text: str, encoding: str
) -> None:
    path = tmp_path / f"prompts.{suffix}"
    path.write_text(text, encoding=encoding)
    assert load_prompts(path) == {"brain_mri": ("Größe normal.",)}


def test_prompts_that_clip_reads_alike_count_as_the_same() -> None:
    tokens = open_clip.get_tokenizer("ViT-B-16")(["A normal brain.", " a  NORMAL brain. "])
    assert torch.equal(tokens[0], tokens[1])
    with pytest.raises(ValueError, match="list of different sentences"):
        checked_prompts({"brain_mri": ["A normal brain.", " a  NORMAL brain. "]})


def test_json_may_be_indented_with_tabs(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"brain_mri": ["A brain."]}, indent="\t"))
    assert load_prompts(path) == {"brain_mri": ("A brain.",)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"brain_mri": ["a"], "brain_mri": ["b"]}', "more than once"),
        ('["a"]', "holds a list"),
        ("null", "holds nothing"),
        ("{}", "holds nothing"),
        ('{"brain_mri": {"a": "b"}}', "list of different sentences"),
        ("{", "not readable"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        load_prompts(path)


def test_text_file_has_a_line_for_each_modality(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\n[liver_ct]\nA liver: normal.\n\n[ brain_mri ]\n  A brain.\nB.\n")
    assert load_prompts(path) == {
        "liver_ct": ("A liver: normal.",),
        "brain_mri": ("A brain.", "B."),
    }
    for text, told in (
        ("A brain.\n", r"prompts\.txt .*begins with 'A brain\.'"),
        ("[heart]\nA heart.\n", "'heart' is not known"),
        ("[liver_ct]\n", "list of different sentences"),
        ("", "is expected"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=told):
            load_prompts(path)


def test_prompts_that_are_given_are_checked_too() -> None:
    assert checked_prompts({"brain_mri": ["A brain."]}) == {"brain_mri": ("A brain.",)}
    with pytest.raises(ValueError, match="list of different sentences"):
        checked_prompts({"brain_mri": "A brain."})


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        load_prompts(tmp_path / "none.yaml")


@pytest.mark.parametrize(("tag", "licence"), [("openai", True), ("laion2b_s34b_b88k", False)])
def test_card_has_the_licence_of_weights_that_are_known(
    tmp_path: Path, tag: str, licence: bool
) -> None:
    weights = f"open_clip: ViT-B-16/{tag}, model.safetensors, sha256 0123abcd"
    prior = TextPrior(torch.eye(2), ("A brain.", "A liver."), "OpenCLIP ViT-B-16", weights)
    card = write_prior(prior, tmp_path / "prior.safetensors")
    assert card == tmp_path / "prior.md"
    text = card.read_text(encoding="utf-8")
    assert ("MIT licence" in text) == licence
    assert "sha256 0123abcd" in text
    assert "1. A brain.\n2. A liver." in text
    assert TextPrior.load(tmp_path / "prior.safetensors").provenance == prior.provenance


def test_prompt_that_clip_cuts_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Two tokens of 77 are begin and end."""
    fits, cut = "healthy " * 75, "healthy " * 76
    with caplog.at_level(logging.WARNING):
        tokens = tokenize("ViT-B-16", [fits, cut])
    assert torch.equal(tokens[0], tokens[1])
    assert [record.args[2] for record in caplog.records if record.args] == [cut]
