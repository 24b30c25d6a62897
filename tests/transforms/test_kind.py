"""Which modality a study is: told, checked against header and values, and never guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name in its manual)
from monai.data import MetaTensor

from mcmiad_monai.data.studies import StudyDataset
from mcmiad_monai.modality import MODALITIES, UNIFIED, get_modality
from mcmiad_monai.transforms import StudyModalityd, VolumeError, load_volume, preprocessing
from mcmiad_monai.transforms.metadata import new_volume
from mcmiad_monai.transforms.readers import sidecar_modality

DICOM = {"brain_mri": "MR", "liver_ct": "CT", "retina_oct": "OPT"}


def values_of(name: str) -> np.ndarray:
    """Voxels as the modality has them: Hounsfield units for CT, signals above 0 otherwise."""
    signal = np.random.default_rng(0).integers(1, 300, (8, 9, 5)).astype(np.float32)
    if name == "liver_ct":
        signal -= 150
        signal[:2] = -1000
    return signal


def study(name: str, *, header: str | None = None, picture: bool = False) -> dict[str, Any]:
    volume = new_volume(
        values_of(name), np.eye(4), Path("/data/p7.nii.gz"), picture=picture, dicom_modality=header
    )
    return {"image": volume}


def settled(model: str, data: dict[str, Any], *, check: bool = True) -> tuple[str, str]:
    meta = StudyModalityd("image", model, check=check)(data)["image"].meta
    return meta["modality"], meta["modality_from"]


@pytest.mark.parametrize("name", MODALITIES)
def test_model_of_one_modality_decides_and_an_agreeing_header_passes(name: str) -> None:
    assert settled(name, study(name)) == (name, "the model")
    assert settled(name, study(name, header=DICOM[name])) == (name, "the model")
    assert settled(name, {**study(name), "modality": name}) == (name, "the model")


@pytest.mark.parametrize("name", MODALITIES)
def test_contradicting_header_is_refused_with_both_names(name: str) -> None:
    other = "CT" if name == "brain_mri" else "MR"
    with pytest.raises(VolumeError, match=rf"is {other} by its header, and .*\({DICOM[name]}\)"):
        settled(name, study(name, header=other))
    assert settled(name, study(name, header=other), check=False) == (name, "the model")


def test_header_under_the_key_of_a_server_counts_before_that_of_the_file() -> None:
    data = study("brain_mri", header="MR")
    with pytest.raises(VolumeError, match=r"p7\.nii\.gz is CT by its header, and brain MRI"):
        settled("brain_mri", {**data, "dicom_modality": "CT"})
    agreeing = {**study("brain_mri", header="CT"), "dicom_modality": "MR"}
    assert settled("brain_mri", agreeing)[0] == "brain_mri"
    assert settled("brain_mri", {**data, "dicom_modality": None})[0] == "brain_mri"


def test_study_listed_as_another_modality_is_refused() -> None:
    listed = {**study("brain_mri"), "modality": "liver_ct"}
    with pytest.raises(VolumeError, match="listed as liver_ct, and the model is for brain_mri"):
        settled("brain_mri", listed)
    assert settled("brain_mri", listed, check=False) == ("brain_mri", "the model")


@pytest.mark.parametrize("name", MODALITIES)
def test_unified_model_takes_what_is_told(name: str) -> None:
    assert settled("unified", {**study(name), "modality": name}) == (name, "given")
    told = {**study(name, header=DICOM[name]), "modality": name}
    assert settled("unified", told) == (name, "given")


@pytest.mark.parametrize("name", MODALITIES)
def test_unified_model_takes_the_header_where_nothing_is_told(name: str) -> None:
    expected = (name, f"the header ({DICOM[name]})")
    assert settled("unified", study(name, header=DICOM[name])) == expected
    assert settled("unified", {**study(name), "dicom_modality": DICOM[name]}) == expected
    assert settled("unified", {**study(name, header=DICOM[name]), "modality": None}) == expected


def test_unified_model_refuses_a_header_against_what_is_told() -> None:
    contradicting = {**study("liver_ct", header="CT"), "modality": "brain_mri"}
    with pytest.raises(VolumeError, match=r"is CT by its header, and brain MRI"):
        settled("unified", contradicting)
    assert settled("unified", contradicting, check=False) == ("brain_mri", "given")


@pytest.mark.parametrize(
    ("header", "says"), [(None, "no header says it"), ("US", "its header says 'US'")]
)
@pytest.mark.parametrize("check", [True, False])
def test_unified_model_never_guesses(header: str | None, says: str, check: bool) -> None:
    with pytest.raises(VolumeError, match="never guessed") as caught:
        settled("unified", study("liver_ct", header=header), check=check)
    message = str(caught.value)
    assert f"({says})" in message
    for remedy in ("study_modality", "datalist", *MODALITIES):
        assert remedy in message


@pytest.mark.parametrize("told", ["liver", "MR", "unified", ""])
def test_unknown_names_are_refused_with_those_there_are(told: str) -> None:
    with pytest.raises(VolumeError, match=rf"modality {told!r}; one of .*brain_mri.*retina_oct"):
        settled("unified", {**study("brain_mri"), "modality": told})


@pytest.mark.parametrize("model", ["brain_mri", "retina_oct"])
def test_hounsfield_units_are_refused_where_signals_are_needed(model: str) -> None:
    with pytest.raises(VolumeError, match=r"values down to -1000 as Hounsfield.*check_modality"):
        settled(model, study("liver_ct"))
    with pytest.raises(VolumeError, match="seems to be CT"):
        settled("unified", {**study("liver_ct"), "modality": model})
    assert settled(model, study("liver_ct"), check=False)[0] == model


def test_values_without_any_below_zero_are_no_hounsfield_units() -> None:
    with pytest.raises(VolumeError, match=r"none below 0, so they are no Hounsfield units"):
        settled("liver_ct", study("brain_mri"))
    with pytest.raises(VolumeError, match=r"no Hounsfield units"):
        settled("unified", {**study("brain_mri"), "modality": "liver_ct"})
    assert settled("liver_ct", study("brain_mri"), check=False)[0] == "liver_ct"


def test_a_few_dark_voxels_of_an_mri_are_no_air() -> None:
    data = study("brain_mri")
    data["image"][0, 0, 0, 0] = -700.0  # ringing of an interpolation, 1 of 360 voxels
    assert settled("brain_mri", data)[0] == "brain_mri"
    data["image"][0, 0, :, :] = -700.0
    with pytest.raises(VolumeError, match="Hounsfield"):
        settled("brain_mri", data)


@pytest.mark.parametrize("name", MODALITIES)
def test_pictures_hold_grey_levels_in_every_modality(name: str) -> None:
    assert settled(name, study("brain_mri", picture=True))[0] == name


def test_every_key_is_settled_by_itself() -> None:
    data = {"a": study("brain_mri", header="MR")["image"], "b": study("liver_ct")["image"]}
    data["b"].meta["dicom_modality"] = "CT"
    done = StudyModalityd(["a", "b"], UNIFIED)(data)
    assert [done[key].meta["modality"] for key in "ab"] == ["brain_mri", "liver_ct"]


def test_codes_of_the_header_are_those_of_dicom() -> None:
    assert {name: get_modality(name).dicom for name in MODALITIES} == DICOM
    assert UNIFIED.dicom is None


def nifti(path: Path, sidecar: Any = None) -> Path:
    nib.save(nib.Nifti1Image(values_of("brain_mri"), np.eye(4)), path)
    if sidecar is not None:
        text = sidecar if isinstance(sidecar, bytes) else json.dumps(sidecar).encode()
        path.with_name(f"{path.name.split('.nii')[0]}.json").write_bytes(text)
    return path


@pytest.mark.parametrize("name", ["sub-01_FLAIR.nii.gz", "sub-01_FLAIR.nii", "a.b.nii.gz"])
def test_modality_of_a_bids_sidecar_is_read(tmp_path: Path, name: str) -> None:
    path = nifti(tmp_path / name, {"Modality": "MR", "EchoTime": 0.1})
    assert sidecar_modality(path) == "MR"
    assert load_volume(path).meta["dicom_modality"] == "MR"


@pytest.mark.parametrize(
    "sidecar",
    [None, {"EchoTime": 0.1}, {"Modality": 7}, ["MR"], b"{", b"\xff\xfe"],
    ids=["none", "silent", "number", "list", "broken", "no JSON"],
)
def test_other_json_of_the_name_tells_nothing_and_breaks_nothing(
    tmp_path: Path, sidecar: Any
) -> None:
    path = nifti(tmp_path / "a.nii.gz", sidecar)
    assert sidecar_modality(path) is None
    assert "dicom_modality" not in load_volume(path).meta


def test_sidecar_of_another_file_tells_nothing(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    nifti(tmp_path / "b.nii.gz", {"Modality": "CT"})
    assert sidecar_modality(path) is None
    (tmp_path / "c.json").write_text('{"Modality": "CT"}')
    assert sidecar_modality(tmp_path / "c.mgz") is None  # BIDS is NIfTI


def test_contradicting_sidecar_is_refused_by_the_preprocessing(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", {"Modality": "CT"})
    assert f"{path} is CT by its header" in refused(preprocessing("brain_mri"), path)
    passed = preprocessing("brain_mri", check_modality=False)({"image": str(path)})
    assert passed["image"].meta["modality"] == "brain_mri"


def refused(prepare: Any, path: Path) -> str:
    """The message that stands in the report of a cohort."""
    return StudyDataset([{"case": "p7", "image": str(path)}], prepare)[0]["error"]


def dicom_series(folder: Path, modality: str | None) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(-400, 400, (3, 6, 8)).astype("i2")
    for k, plane in enumerate(pixels):
        image = sitk.GetImageFromArray(plane)
        tags = {
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0020|0032": f"0\\0\\{k * 2.5}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-100",
            "0028|1053": "1",
        }
        if modality is not None:
            tags["0008|0060"] = modality
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.Execute(image)
    return folder


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_modality_of_the_dicom_header_is_read(tmp_path: Path, modality: str) -> None:
    folder = dicom_series(tmp_path / "s", modality)
    assert load_volume(folder).meta["dicom_modality"] == modality
    assert load_volume(folder / "0.dcm").meta["dicom_modality"] == modality


def test_dicom_series_finds_its_modality_by_itself(tmp_path: Path) -> None:
    folder = dicom_series(tmp_path / "s", "CT")
    image: MetaTensor = preprocessing("unified")({"image": str(folder)})["image"]
    assert image.meta["modality"] == "liver_ct"
    assert image.meta["modality_from"] == "the header (CT)"
    assert "is CT by its header, and brain MRI" in refused(preprocessing("brain_mri"), folder)


def test_volumes_of_formats_without_a_modality_have_none(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(values_of("brain_mri")), str(tmp_path / "a.nrrd"))
    assert "dicom_modality" not in load_volume(tmp_path / "a.nrrd").meta
