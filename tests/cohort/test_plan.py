"""The plan is made once, and a folder belongs to one kind of run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcmiad_monai.cohort.identity import OtherRunError, check_model, check_run, run_identity
from mcmiad_monai.cohort.ledger import Ledger
from mcmiad_monai.cohort.lock import BusyError, only_driver
from mcmiad_monai.cohort.plan import make_plan, read_plan, room_needed
from mcmiad_monai.data.cases.names import CaseError
from mcmiad_monai.errors import BundleError


def case(name: str, **more: Any) -> dict[str, Any]:
    return {"case": name, "image": f"/data/{name}.nii.gz", "label": None, **more}


def test_studies_are_numbered_and_named_as_folders_can_be(tmp_path: Path) -> None:
    cases = [case("a"), case("A"), case("../x"), case("records"), case("b", refused="why")]
    assert make_plan(tmp_path, cases) == 5
    plan = list(read_plan(tmp_path))
    assert [study["number"] for study in plan] == [0, 1, 2, 3, 4]
    assert [study["case"] for study in plan] == ["a", "A_2", "x", "study_records", "b"]
    assert plan[4]["refused"] == "why"
    assert "label" not in plan[0]


def test_images_are_named_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = "https://archive/studies/1/series/2"
    cases = [{"case": "a", "image": "a.nii.gz"}, {"case": "b", "image": address}]
    make_plan(tmp_path, cases)
    assert [study["image"] for study in read_plan(tmp_path)] == [f"{tmp_path}/a.nii.gz", address]


def test_first_plan_holds_and_studies_are_not_looked_for_again(tmp_path: Path) -> None:
    def fails() -> Iterator[dict[str, Any]]:
        raise AssertionError
        yield

    make_plan(tmp_path, [case("a")])
    assert make_plan(tmp_path, fails()) == 1


def test_nothing_is_left_of_a_plan_without_studies(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="no studies"):
        make_plan(tmp_path, [])
    assert not list(tmp_path.iterdir())


def test_room_is_that_of_the_studies(tmp_path: Path) -> None:
    images = [tmp_path / "a.nii.gz", tmp_path / "b.nii"]
    for image in images:
        image.write_bytes(bytes(1000))
    out = tmp_path / "out"
    out.mkdir()
    make_plan(out, [{"case": path.name, "image": str(path)} for path in images])
    assert room_needed(out, 2) == 1500
    assert room_needed(out, 20) == 15000


def identity(root: Path, content: bytes = b"model", **more: Any) -> dict[str, Any]:
    (root / "model.pt").write_bytes(content)
    return run_identity(root / "model.pt", [root / "data"], **{"settings": {}, **more})


def test_other_run_is_refused_once_a_study_was_begun(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_run(out, identity(tmp_path))
    check_run(out, identity(tmp_path))
    check_run(out, identity(tmp_path, b"another"))  # nothing was done yet
    Ledger(out, "w-1-0").begin({"number": 0, "case": "a"})
    check_run(out, identity(tmp_path, b"another", settings={"engine": "torch"}))
    with pytest.raises(OtherRunError, match=r"model_file was .* and is"):
        check_run(out, identity(tmp_path))
    with pytest.raises(OtherRunError, match=r'settings was {} and is {"mask_threshold": 0\.5}'):
        check_run(out, identity(tmp_path, b"another", settings={"mask_threshold": 0.5}))
    with pytest.raises(OtherRunError, match="keep was null and is none"):
        check_run(out, identity(tmp_path, b"another", keep="none"))
    (out / "run.json").write_text("{")
    with pytest.raises(OtherRunError, match="damaged"):
        check_run(out, identity(tmp_path, b"another"))


def test_results_of_infer_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(OtherRunError, match="mcmiad infer"):
        check_run(tmp_path, identity(tmp_path))


def test_missing_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no trained model"):
        run_identity(tmp_path, [], settings={})


def test_worker_with_another_model_is_refused(tmp_path: Path) -> None:
    check_model(tmp_path, {"made_with": {"model": "a"}, "calibration": {}})
    check_model(tmp_path, {"made_with": {"model": "a"}, "calibration": {}})
    with pytest.raises(OtherRunError, match="model was a and is b"):
        check_model(tmp_path, {"made_with": {"model": "b"}, "calibration": {}})
    assert json.loads((tmp_path / "model.json").read_text())["made_with"] == {"model": "a"}


def test_one_driver_for_a_shard(tmp_path: Path) -> None:
    with only_driver(tmp_path, (0, 2)):
        with only_driver(tmp_path, (1, 2)):
            pass
        told = r"works on shard 0/2 .*process \d+ on"
        for other in ((0, 2), (0, 1)):
            with pytest.raises(BusyError, match=told), only_driver(tmp_path, other):
                pass
    with only_driver(tmp_path, (0, 1)):
        pass
