"""Finding cases: every kind of source, and errors that say what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from case_files import names, touch, write_list

from mcmiad_monai.data.cases import folder as volumes_folder
from mcmiad_monai.data.cases.find import CaseError, find_cases, split_cases


def labels(cases: list[dict[str, Any]]) -> dict[str, str | None]:
    return {case["case"]: case["label"] and Path(case["label"]).name for case in cases}


@pytest.mark.parametrize("name", ["a.b.nii.gz", "a.b.nii", "a.b.MGZ", "a.b.png", "a.b.dcm"])
def test_single_file_is_a_case_named_without_extension(tmp_path: Path, name: str) -> None:
    image = str(touch(tmp_path, name) / name)
    expected = {"case": "a.b", "image": image, "label": None, "anomalous": None}
    assert find_cases(image, "test") == [expected]


def test_dicom_without_extension_is_known_by_its_letters(tmp_path: Path) -> None:
    series = touch(tmp_path, "head.1.2/README") / "head.1.2"
    (series / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    (case,) = find_cases(tmp_path)
    assert (case["case"], case["image"]) == ("head.1.2", str(series))
    assert find_cases(series) == [case]
    assert names(find_cases(series / "IM0001")) == ["IM0001"]


def test_folders_of_dicom_series_and_their_masks(tmp_path: Path) -> None:
    touch(tmp_path, "p1/s1/1.dcm", "p2/s1/1.dcm", "p2/s1/lesion_mask.nii.gz")
    cases = find_cases(tmp_path)
    assert labels(cases) == {"p1_s1": None, "p2_s1": "lesion_mask.nii.gz"}


def test_flat_folder_pairs_masks_by_suffix_and_ignores_hidden_files(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a_flair.nii.gz", "a_seg.nii.gz", "b_lesion_mask.nii.gz")
    touch(tmp_path, ".c.nii.gz", "._a_flair.nii.gz", "notes.txt", "lesion_07.mgz", "unmask.nii")
    cases = find_cases(tmp_path, "train")
    assert labels(cases) == {
        "a_flair": "a_seg.nii.gz",
        "b": "b_lesion_mask.nii.gz",
        "lesion_07": None,  # the word leads, so it is a case and no mask
        "unmask": None,  # words are whole
    }
    assert names(cases) == sorted(names(cases))


def test_flat_folder_is_train_and_test_but_not_val(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    assert find_cases(tmp_path, "train") == find_cases(tmp_path, "test") == find_cases(tmp_path)
    with pytest.raises(CaseError, match="split_cases"):
        find_cases(tmp_path, "val")


@pytest.mark.parametrize("mask", ["mask.nii.gz", "p1_label.nii.gz", "flair_seg.nii.gz"])
def test_one_folder_a_case_is_named_by_the_folder(tmp_path: Path, mask: str) -> None:
    touch(tmp_path, "p1/flair.nii.gz", f"p1/{mask}", "p2/flair.nii.gz", "p2/readme.md")
    assert labels(find_cases(tmp_path)) == {"p1": mask, "p2": None}


def test_several_images_in_a_case_are_listed_and_one_is_chosen_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "p1/p1_flair.nii.gz", "p1/p1_t1.nii.gz", "p1/seg.nii.gz")
    with pytest.raises(CaseError, match=r"p1_flair.nii.gz, p1_t1.nii.gz.*image_name='flair'"):
        find_cases(tmp_path)
    cases = find_cases(tmp_path, image_name="FLAIR")
    assert names(cases) == ["p1"]
    assert cases[0]["image"].endswith("p1_flair.nii.gz")
    with pytest.raises(CaseError, match=r"no file named with image_name='t2'"):
        find_cases(tmp_path, image_name="t2")


def test_masks_of_many_images_are_found_without_a_look_at_every_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, calls = 60, []
    for k in range(count):
        # every third mask names the beginning of its image only
        (tmp_path / f"p{k:03}{'_t1' if k % 3 == 0 else ''}.nii.gz").touch()
        (tmp_path / f"p{k:03}_mask.nii.gz").touch()
    plain = volumes_folder.stem_of
    monkeypatch.setattr(volumes_folder, "stem_of", lambda p: calls.append(p) or plain(p))
    cases = find_cases(tmp_path)
    assert len(cases) == count
    for case in cases:
        assert Path(case["label"]).name[:4] == Path(case["image"]).name[:4]
    assert len(calls) < 10 * count


def test_mask_without_image_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "mask.nii.gz", "c_mask.nii.gz")
    with pytest.raises(CaseError, match=r"c_mask.nii.gz belongs to no image"):
        find_cases(tmp_path)


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders(tmp_path: Path, val: str) -> None:
    touch(tmp_path, "train/a.nii", f"{val}/b/flair.nii", f"{val}/b/mask.nii")
    with pytest.raises(CaseError, match=rf"no test split; it has train/, {val}/"):
        find_cases(tmp_path, "test")
    touch(tmp_path, "test/c.nii")
    assert names(find_cases(tmp_path, "train")) == ["a"]
    assert labels(find_cases(tmp_path, "val")) == {"b": "mask.nii"}
    assert names(find_cases(tmp_path, "all")) == ["a", "b", "c"]


def test_datalist_entries_of_every_kind(tmp_path: Path) -> None:
    touch(tmp_path, "i/1.nii.gz", "l/1.nii.gz", "i/2.nii.gz", "c/image.nii.gz", "p.png")
    path = write_list(
        tmp_path / "list.json",
        training=[
            {"image": "./i/1.nii.gz", "label": "./l/1.nii.gz"},
            {"image": "p.png", "label": 1},
        ],
        validation=["i/2.nii.gz"],
        test=[{"image": "c/image.nii.gz"}],
    )
    train = find_cases(path, "train")
    assert labels(train) == {"1": "1.nii.gz", "p": None}
    assert [case["anomalous"] for case in train] == [None, True]
    assert names(find_cases(path, "val")) == ["2"]
    assert names(find_cases(path, "test")) == ["c"]
    assert names(find_cases(path)) == ["1", "p", "2", "c"]


def test_decathlon_folder_is_read_by_its_dataset_json(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/x_1.nii.gz", "labelsTr/x_1.nii.gz", "imagesTs/x_2.nii.gz")
    entry = {"image": "./imagesTr/x_1.nii.gz", "label": "./labelsTr/x_1.nii.gz"}
    write_list(tmp_path / "dataset.json", name="x", training=[entry], test=["imagesTs/x_2.nii.gz"])
    assert labels(find_cases(tmp_path, "train")) == {"x_1": "x_1.nii.gz"}
    assert names(find_cases(tmp_path, "test")) == ["x_2"]


def test_other_json_in_a_folder_is_no_datalist(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    write_list(tmp_path / "dataset.json", numTraining=3)
    assert names(find_cases(tmp_path)) == ["a"]


def test_datalist_errors_name_what_is_wrong(tmp_path: Path) -> None:
    path = write_list(tmp_path / "x.json", training=["a.nii"], labels={})
    with pytest.raises(CaseError, match=r"'test' or 'testing'.*\['labels', 'training'\]"):
        find_cases(path, "test")
    with pytest.raises(CaseError, match=r"1 files that do not exist \(a.nii\)"):
        find_cases(path, "train")
    write_list(path, training=[{"label": "a.nii"}])
    with pytest.raises(CaseError, match="'image'"):
        find_cases(path, "train")
    path.write_text("{")
    with pytest.raises(CaseError, match="not a readable JSON"):
        find_cases(path, "train")


@pytest.mark.parametrize("masks", ["anomaly_mask", "label"])
@pytest.mark.parametrize("img", ["img/", ""])
def test_bmad_tree(tmp_path: Path, masks: str, img: str) -> None:
    touch(tmp_path, f"train/good/{img}1.png", f"train/good/{img}2.png")
    touch(tmp_path, f"valid/good/{img}3.png", f"valid/Ungood/{img}3.png")
    touch(tmp_path, f"valid/Ungood/{masks}/3.png")
    touch(
        tmp_path, f"test/good/{img}4.png", f"test/Ungood/{img}5.png", f"test/Ungood/{masks}/5.png"
    )
    train, val, test = (find_cases(tmp_path, split) for split in ("train", "val", "test"))
    assert names(train) == ["1", "2"]
    assert [case["anomalous"] for case in train] == [False, False]
    assert sorted(case["anomalous"] for case in val) == [False, True]
    assert labels(test) == {"4": None, "5": "5.png"}
    assert {case["case"]: case["anomalous"] for case in test} == {"4": False, "5": True}
    every = find_cases(tmp_path)
    assert len(set(names(every))) == len(every) == 6


def test_bmad_image_without_its_mask_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "test/Ungood/img/1.png", "test/Ungood/img/2.png", "test/Ungood/label/1.png")
    with pytest.raises(CaseError, match=r"none for 2.png"):
        find_cases(tmp_path, "test")


def test_good_and_ungood_without_splits_train_on_good_alone(tmp_path: Path) -> None:
    touch(tmp_path, "good/1.png", "Ungood/2.png")
    assert names(find_cases(tmp_path, "train")) == ["1"]
    assert len(find_cases(tmp_path, "test")) == 2


def test_images_beside_good_are_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "normal/1.png", "lesion/2.png")
    with pytest.raises(CaseError, match="beside them lesion/"):
        find_cases(tmp_path)


def test_nothing_found_says_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "report.pdf", "sub/notes.txt")
    with pytest.raises(CaseError, match=r"holds report.pdf, sub/.*\.nii\.gz"):
        find_cases(tmp_path)
    with pytest.raises(CaseError, match=r"does not exist; .* holds report.pdf"):
        find_cases(tmp_path / "dat" / "x.nii")
    with pytest.raises(CaseError, match=r"report.pdf is not an image"):
        find_cases(tmp_path / "report.pdf")
    with pytest.raises(CaseError, match="'valid' is not known"):
        find_cases(tmp_path, "valid")  # type: ignore[arg-type]


def test_split_leaves_one_case_on_either_side_or_is_refused() -> None:
    cases = [{"case": f"c{i}", "image": f"{i}.nii", "label": None} for i in range(2)]
    for fraction in (0.01, 0.99):
        assert [len(part) for part in split_cases(cases, fraction)] == [1, 1]
    with pytest.raises(CaseError, match="at least 2"):
        split_cases(cases[:1])
    with pytest.raises(CaseError, match="between 0 and 1"):
        split_cases(cases, 1.0)


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path / "a", "x/p1/a.nii", "y/p1/a.nii", "y/p2/a.nii")
    assert names(find_cases(tmp_path / "a")) == ["x_p1", "y_p1", "p2"]
    touch(tmp_path / "b", "x.nii.gz", "x.nii", "x.png")
    assert names(find_cases(tmp_path / "b")) == ["x", "x_2", "x_3"]
