from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mcmiad_monai.files import replace_atomically, save_torch, write_text


def test_failed_write_leaves_the_old_file_and_no_leftovers(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    write_text(target, "old")

    def half(partial: Path) -> None:
        partial.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_atomically(target, half)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_writer_sees_the_suffixes_and_the_folder_is_made(tmp_path: Path) -> None:
    seen: list[str] = []

    def write(partial: Path) -> None:
        seen.append("".join(partial.suffixes[-2:]))
        partial.write_bytes(b"x")

    replace_atomically(tmp_path / "a" / "b" / "map.nii.gz", write)
    assert seen == [".nii.gz"]
    assert (tmp_path / "a" / "b" / "map.nii.gz").read_bytes() == b"x"


def test_torch_files_load_without_code(tmp_path: Path) -> None:
    save_torch({"w": torch.ones(2), "epoch": 3}, tmp_path / "last.pt")
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert content["epoch"] == 3
