"""Which modality a study is: told, checked against header and values, and never guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name in its manual)
from dicom_slices import write_slice
from monai.data import MetaTensor
from oblique import oblique_affine

from mcmiad_monai.data.studies import StudyDataset
from mcmiad_monai.modality import MODALITIES, UNIFIED
from mcmiad_monai.transforms import StudyModalityd, VolumeError, load_volume, preprocessing
from mcmiad_monai.transforms.metadata import new_volume

DICOM = {"brain_mri": "MR", "liver_ct": "CT", "retina_oct": "OPT"}


def values_of(name: str) -> np.ndarray:
    """Voxels as the modality has them: Hounsfield units for CT, signals above 0 otherwise."""
    signal = np.random.default_rng(0).integers(1, 300, (8, 9, 5)).astype(np.float32)
    if name == "liver_ct":
        signal -= 150
        signal[:2] = -1000
    return signal


def study(name: str, *, header: str | None = None, picture: bool = False) -> dict[str, Any]:
    values = values_of(name)[..., :1] if picture else values_of(name)
    volume = new_volume(
        values, np.eye(4), Path("/data/p7.nii.gz"), picture=picture, dicom_modality=header
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
def test_unified_model_takes_what_is_told_and_else_the_header(name: str) -> None:
    headed, code = study(name, header=DICOM[name]), {"dicom_modality": DICOM[name]}
    by_header = (name, f"the header ({DICOM[name]})")
    assert settled("unified", {**study(name), "modality": name}) == (name, "given")
    assert settled("unified", {**headed, "modality": name}) == (name, "given")
    assert settled("unified", {**headed, "modality": None}) == by_header
    assert settled("unified", {**study(name), **code}) == by_header


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


@pytest.mark.parametrize(
    ("model", "values", "reason"),
    [
        ("brain_mri", "liver_ct", r"values down to -1000 as Hounsfield.*check_modality"),
        ("retina_oct", "liver_ct", r"seems to be CT.*check_modality"),
        ("liver_ct", "brain_mri", r"none below 0, so they are no Hounsfield units"),
    ],
)
def test_values_of_another_modality_are_refused(model: str, values: str, reason: str) -> None:
    with pytest.raises(VolumeError, match=reason):
        settled(model, study(values))
    with pytest.raises(VolumeError, match=reason):
        settled("unified", {**study(values), "modality": model})
    assert settled(model, study(values), check=False)[0] == model


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


def planes(name: str, shape: tuple[int, int, int], codes: str = "RAS") -> dict[str, Any]:
    """A volume of a shape in voxels along the axes of the codes."""
    signal = np.random.default_rng(0).normal(100, 60, shape).astype(np.float32)
    signal -= 200 * (name == "liver_ct")
    affine = oblique_affine(codes)
    return {"image": new_volume(signal, affine, Path("/data/p7.nii.gz"), picture=False)}


@pytest.mark.parametrize("name", MODALITIES)
@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("shape", "codes", "found"),
    [
        ((1, 30, 40), "RAS", "1 sagittal slice"),
        ((30, 40, 1), "PIR", "1 sagittal slice"),
        ((30, 40, 5), "ASL", "5 sagittal slice"),
        ((40, 1, 30), "LPS", "1 coronal slice"),
        ((40, 30, 3), "RSA", "3 coronal slice"),
        ((7, 7, 5), "RAS", "few voxels"),
    ],
)
def test_slices_of_another_plane_are_refused_and_never_cut(
    name: str, check: bool, shape: tuple[int, int, int], codes: str, found: str
) -> None:
    with pytest.raises(VolumeError, match=rf"is .*{found}.*looked at in axial slices") as caught:
        settled(name, planes(name, shape, codes), check=check)
    assert "Give the axial series" in str(caught.value)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "AIL", "SRP"])
def test_one_axial_slice_and_whole_volumes_pass_in_every_orientation(codes: str) -> None:
    for sizes in ({"x": 30, "y": 40, "z": 1}, {"x": 30, "y": 40, "z": 60}):
        axis = {"R": "x", "L": "x", "A": "y", "P": "y", "S": "z", "I": "z"}
        x, y, z = (sizes[axis[code]] for code in codes)
        assert settled("brain_mri", planes("brain_mri", (x, y, z), codes))[0] == "brain_mri"


@pytest.mark.parametrize("shape", [(24, 220, 220), (120, 14, 60)], ids=["sagittal", "coronal"])
def test_strips_of_a_slab_or_of_thick_slices_are_refused_unless_asked_for(
    shape: tuple[int, int, int],
) -> None:
    with pytest.raises(VolumeError, match=r"at most 3 times as long as wide.*check_modality"):
        settled("brain_mri", planes("brain_mri", shape))
    assert settled("brain_mri", planes("brain_mri", shape), check=False)
    assert settled("retina_oct", planes("retina_oct", shape))  # a B-scan is long and flat


def body(*, fat: bool = True, bone: bool = True) -> np.ndarray:
    """Hounsfield units (24, 24, 3) of muscle in air, with fat around it and bone in it."""
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, 24),) * 2, range(3), indexing="ij")
    radius = np.hypot(x, y)
    values = np.where(radius < 0.9, -100.0 if fat else 50.0, -1000.0)
    values[radius < 0.8] = 50.0
    values[(radius < 0.3) & bone] = 900.0
    return (values + np.random.default_rng(0).normal(0, 12, values.shape)).astype(np.float32)


def shifted() -> np.ndarray:
    values = body() + 1024
    values[:2] = -2000.0
    return values


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (body() / 1000, "within less than 50"),
        ((body() - body().mean()) / body().std(), "within less than 50"),
        (body() + 1100, "none below 0"),
        (shifted(), "neither fat nor air.*rescale intercept"),
        (np.maximum(shifted(), -1024), "neither fat nor air.*rescale intercept"),
    ],
    ids=["thousandths", "standardised", "unrescaled", "padded", "padded with -1024"],
)
def test_ct_without_hounsfield_units_is_refused(values: np.ndarray, reason: str) -> None:
    data = {"image": new_volume(values, np.eye(4), Path("/data/p7.nii.gz"), picture=False)}
    with pytest.raises(VolumeError, match=rf"{reason}.*no Hounsfield units.*check_modality"):
        settled("liver_ct", data)
    assert settled("liver_ct", data, check=False)[0] == "liver_ct"


@pytest.mark.parametrize("outside", [0.0, -1000.0, -1024.0, -2000.0, -3024.0])
@pytest.mark.parametrize("bone", [False, True])
def test_hounsfield_units_pass_cropped_masked_and_padded(outside: float, bone: bool) -> None:
    whole, masked = body(bone=bone), body(bone=bone)
    masked[:3] = masked[:, :3] = outside
    organ = np.where(np.hypot(*np.mgrid[-1:1:24j, -1:1:24j]) < 0.6, 1, 0)[..., None] > 0
    soft = np.where(organ, body(bone=False), outside).astype(np.float32)
    crop = body(fat=False, bone=False)[8:16, 8:16]
    for values in (whole, masked, soft, crop - 60):
        data = {"image": new_volume(values, np.eye(4), Path("/data/p7.nii.gz"), picture=False)}
        if values.min() < 0:
            assert settled("liver_ct", data)[0] == "liver_ct"


def nifti(path: Path, sidecar: Any = None) -> Path:
    nib.save(nib.Nifti1Image(values_of("brain_mri"), np.eye(4)), path)
    if sidecar is not None:
        text = sidecar if isinstance(sidecar, bytes) else json.dumps(sidecar).encode()
        path.with_name(f"{path.name.split('.nii')[0]}.json").write_bytes(text)
    return path


@pytest.mark.parametrize(
    ("name", "sidecar", "expected"),
    [
        *((name, {"Modality": "MR"}, "MR") for name in ("a_FLAIR.nii.gz", "a.nii", "a.b.nii.gz")),
        *(("a.nii", other, None) for other in (None, {"EchoTime": 0.1}, {"Modality": 7}, ["MR"])),
        *(("a.nii", other, None) for other in (b"{", b"\xff\xfe")),
    ],
)
def test_bids_sidecar_of_the_file_tells_its_modality_and_no_other_breaks_it(
    tmp_path: Path, name: str, sidecar: Any, expected: str | None
) -> None:
    nifti(tmp_path / "other.nii.gz", {"Modality": "CT"})
    found = load_volume(nifti(tmp_path / name, sidecar))
    assert found.meta.get("dicom_modality") == expected


def test_contradicting_sidecar_is_refused_by_the_preprocessing(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", {"Modality": "CT"})
    assert f"{path} is CT by its header" in refused(preprocessing("brain_mri"), path)
    passed = preprocessing("brain_mri", check_modality=False)({"image": str(path)})
    assert passed["image"].meta["modality"] == "brain_mri"


def refused(prepare: Any, path: Path) -> str:
    """The message that stands in the report of a cohort."""
    return StudyDataset([{"case": "p7", "image": str(path)}], prepare)[0]["error"]


def test_dicom_series_finds_its_modality_by_itself(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(-400, 400, (3, 9, 8))
    for k, plane in enumerate(pixels):
        write_slice(tmp_path / f"{k}.dcm", plane, (0, 0, k * 2.5))
    assert load_volume(tmp_path / "0.dcm").meta["dicom_modality"] == "CT"
    image: MetaTensor = preprocessing("unified")({"image": str(tmp_path)})["image"]
    assert image.meta["modality"] == "liver_ct"
    assert image.meta["modality_from"] == "the header (CT)"
    assert "is CT by its header, and brain MRI" in refused(preprocessing("brain_mri"), tmp_path)


def test_volumes_of_formats_without_a_modality_have_none(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(values_of("brain_mri")), str(tmp_path / "a.nrrd"))
    (tmp_path / "a.json").write_text('{"Modality": "CT"}')  # BIDS is NIfTI
    assert "dicom_modality" not in load_volume(tmp_path / "a.nrrd").meta
