"""The report of a cohort that was screened: a ledger, and files of some of its studies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ledgers import done, record, write_plan
from made_results import KNOWN, MADE_WITH, write_image, write_result

from mcmiad_monai.report.images import Images
from mcmiad_monai.report.rows import read_cohort
from mcmiad_monai.report.write import write_report


@pytest.fixture
def screened(tmp_path: Path) -> Path:
    """A study with files, one below the threshold, and a refused, a quarantined, a pending one."""
    out = tmp_path / "out"
    images = [
        write_image(tmp_path / "in" / f"s{n}.nii.gz", np.diag([2.0, 2, 5, 1]), seed=n)
        for n in range(5)
    ]
    write_plan(out, [{"case": f"s{n}", "image": str(path)} for n, path in enumerate(images)])
    scores = write_result(out, "s0", images[0])
    row = {
        "score": scores["volume_score"],
        "threshold": 2.0,
        "warnings": "",
        "slices": 9,
        "input": scores["input"],
        "modality": "brain_mri",
    }
    done(out, "w", 0, **row, verdict="anomalous", slices_above=3, folder="s0")
    done(out, "w", 1, **{**row, "score": 1.0}, verdict="normal", slices_above=0)
    done(out, "w", 2, status="refused", error="VolumeError: 4 dimensions")
    record(out, "w", "end", 3, status="quarantined", error="ended the program 3 times")
    content = {"made_with": MADE_WITH, "modality": "brain_mri", "calibration": KNOWN.to_dict()}
    (out / "model.json").write_text(json.dumps(content))
    return out


def test_every_status_is_told_with_its_reason(screened: Path) -> None:
    cohort = read_cohort(screened)
    states = {row.case: row.state for row in cohort.rows}
    assert states == {
        "s0": "above",
        "s1": "below",
        "s2": "refused",
        "s3": "quarantined",
        "s4": "pending",
    }
    assert cohort.rows[2].error == "VolumeError: 4 dimensions"
    assert cohort.calibration["volume_scores"] == list(KNOWN.volume_scores)
    assert cohort.facts["Model (SHA-256)"] == MADE_WITH["model"]


def test_studies_with_files_have_pages_with_the_image_of_the_plan(screened: Path) -> None:
    report = write_report(read_cohort(screened), screened)
    assert (report.studies, report.pages, report.left_out) == (5, 1, 0)
    page = (screened / "studies" / "s0.html").read_text("utf-8")
    assert '"webp":"' in page
    assert str(screened.parent) not in page
    index = (screened / "index.html").read_text("utf-8")
    assert str(screened.parent) not in index
    assert "Quarantined" in index


def test_image_of_an_organ_is_known_by_both_digests(tmp_path: Path) -> None:
    from hashlib import sha256

    from mcmiad_monai.files.reading import input_digest
    from mcmiad_monai.report.rows import Row

    image = write_image(tmp_path / "a.nii.gz", np.eye(4))
    organ = write_image(tmp_path / "a_organ.nii.gz", np.eye(4), seed=3)
    both = sha256((input_digest(image) + input_digest(organ)).encode()).hexdigest()
    scores = {"input": both, "made_with": {"region": "organ"}}
    row = Row("a", "done", image=str(image))
    assert Images((), [row], organs={"a": str(organ)}).of(row, scores) == (image, "")
    assert Images((), [row]).of(row, scores)[0] is None
