from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.prompts import flat, load_prompts, prompts_of


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
        ("- a\n- b", "holds list"),
        ("", "holds NoneType"),
        ("a: [b", "not readable"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        load_prompts(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        load_prompts(tmp_path / "none.yaml")
