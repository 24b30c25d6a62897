"""Studies of one patient are known as such, and never fall on both sides of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from case_files import names, touch, write_list
from dicom_slices import without_preamble, write_slice

from mcmiad_monai.data.cases.find import CaseError, find_cases
from mcmiad_monai.data.cases.splits import training_splits


def patients(cases: list[dict[str, str]]) -> set[str]:
    return {case["patient"] for case in cases}


def series(folder: Path, patient: str, *, preamble: bool = True) -> None:
    folder.mkdir(parents=True)
    write_slice(folder / "1.dcm", np.eye(8) * 100, (0, 0, 0), patient=patient)
    if not preamble:
        without_preamble(folder / "1.dcm")


def test_sessions_of_a_bids_subject_stay_together(tmp_path: Path) -> None:
    for i in range(4):
        for session in (1, 2):
            stem = f"sub-{i}_ses-{session}"
            touch(tmp_path, f"sub-{i}/ses-{session}/anat/{stem}_FLAIR.nii.gz")
    for seed in range(6):
        train, val = training_splits(tmp_path, seed=seed)
        assert (len(train), len(val)) == (6, 2)
        assert not patients(train) & patients(val)


def test_series_of_one_patient_id_stay_together(tmp_path: Path) -> None:
    for i in range(8):
        series(tmp_path / f"exam{i}", f"P{i // 2}", preamble=i % 3 > 0)
    touch(tmp_path, "exam0/converted.nii.gz")  # of the patient of the series beside it
    cases = find_cases(tmp_path)
    assert len(cases) == 9
    assert len(patients(cases)) == 4
    assert not any("P0" in patient for patient in patients(cases))  # the ID itself goes nowhere
    for seed in range(6):
        train, val = training_splits(tmp_path, seed=seed)
        assert not patients(train) & patients(val)


@pytest.mark.parametrize("anonymous", ["", "ANONYMOUS", "0000"])
def test_what_anonymised_headers_have_for_an_id_is_no_patient(
    tmp_path: Path, anonymous: str
) -> None:
    for i in range(3):
        series(tmp_path / f"exam{i}", anonymous)
    assert not any("patient" in case for case in find_cases(tmp_path))


def test_patient_of_a_deflated_series_is_known(tmp_path: Path) -> None:
    for exam in ("one", "two"):
        path = tmp_path / exam / "1.dcm"
        series(path.parent, "P1")
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        header.save_as(path)
    assert len(patients(find_cases(tmp_path))) == 1


def test_patient_of_a_datalist_goes_before_all_others(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1_FLAIR.nii.gz", "sub-2_FLAIR.nii.gz")
    entries = [{"image": f"sub-{i}_FLAIR.nii.gz", "patient": "one"} for i in (1, 2)]
    write_list(tmp_path / "datalist.json", training=entries)
    assert patients(find_cases(tmp_path)) == {"one"}


def test_split_of_the_source_with_a_patient_on_both_sides_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/sub-1_ses-1_FLAIR.nii.gz", "train/sub-2_ses-1_FLAIR.nii.gz")
    touch(tmp_path, "val/sub-1_ses-2_FLAIR.nii.gz")
    with pytest.raises(CaseError, match="1 patients are in the training as"):
        training_splits(tmp_path)


def test_patient_with_studies_of_two_modalities_is_on_one_side(tmp_path: Path) -> None:
    touch(tmp_path, *(f"brain_mri/sub-{i}_FLAIR.nii.gz" for i in range(6)))
    touch(tmp_path, *(f"liver_ct/sub-{i}_ct.nii.gz" for i in range(3, 12)))
    for seed in range(6):
        train, val = training_splits(tmp_path, modality="unified", fraction=0.4, seed=seed)
        assert not patients(train) & patients(val)
        assert len(names(train + val)) == 15
