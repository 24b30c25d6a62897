"""Every kind of file that is accepted, and every one that is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name in its manual)
import torch
from oblique import OBLIQUE
from PIL import Image

from mcmiad_monai.files.reading import input_digest
from mcmiad_monai.transforms import LoadMaskd, VolumeError, load_mask, load_volume
from mcmiad_monai.transforms.kind import StudyModalityd


def _noise(shape: tuple[int, ...] = (9, 8, 7), high: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape)


def _nifti(path: Path, values: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", ">f4", "<f8", "<i4", "<u2"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_voxels_and_affine_survive_every_dtype(
    tmp_path: Path, dtype: str, suffix: str
) -> None:
    values = _noise().astype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(np.dtype(dtype))
    path = tmp_path / f"v{suffix}"
    nib.save(nib.Nifti1Image(values, OBLIQUE, header), path)
    volume = load_volume(path)
    assert volume.shape == (1, 9, 8, 7)
    assert volume.dtype == torch.float32
    assert volume.affine.dtype == torch.float64
    np.testing.assert_array_equal(volume[0].numpy(), values.astype("f4"))
    np.testing.assert_allclose(volume.affine.numpy(), OBLIQUE, atol=1e-5)
    assert volume.meta["filename_or_obj"] == str(path)
    np.testing.assert_array_equal(volume.meta["original_affine"], volume.affine.numpy())


def test_header_scaling_is_applied(tmp_path: Path) -> None:
    path = _nifti(tmp_path / "v.nii", _noise().astype("i2"))
    scaled = bytearray(path.read_bytes())
    scaled[112:120] = np.array([0.5, -100.0], dtype="<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(bytes(scaled))
    np.testing.assert_allclose(load_volume(path)[0].numpy(), _noise() * 0.5 - 100.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((9, 8, 7, 1), (9, 8, 7)), ((9, 8, 7, 1, 1), (9, 8, 7)), ((9, 8), (9, 8, 1))]
    + [(shape, shape) for shape in ((9, 8, 1), (1, 8, 9), (7, 5, 3))],
)
def test_trailing_singletons_are_squeezed_and_thin_volumes_load(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    volume = load_volume(_nifti(tmp_path / "v.nii", _noise(shape).astype("i2")))
    assert volume.shape == (1, *expected)
    assert tuple(volume.meta["spatial_shape"]) == expected


def test_mgz_loads(tmp_path: Path) -> None:
    values = _noise().astype("f4")
    nib.save(nib.MGHImage(values, OBLIQUE.astype("f4")), tmp_path / "v.mgz")
    volume = load_volume(tmp_path / "v.mgz")
    np.testing.assert_array_equal(volume[0].numpy(), values)
    np.testing.assert_allclose(
        volume.affine.numpy(), nib.load(tmp_path / "v.mgz").affine, atol=1e-5
    )


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_itk_geometry_agrees_with_nifti_of_the_same_image(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(_noise((7, 8, 9)).astype("i2"))
    turn = np.linalg.qr(OBLIQUE[:3, :3])[0]
    image.SetDirection((turn * np.sign(np.linalg.det(turn))).ravel().tolist())
    image.SetSpacing((0.9, 1.3, 2.5))
    image.SetOrigin((11.0, -22.0, 33.0))
    sitk.WriteImage(image, str(tmp_path / f"v{suffix}"))
    sitk.WriteImage(image, str(tmp_path / "v.nii"))
    ours, reference = load_volume(tmp_path / f"v{suffix}"), load_volume(tmp_path / "v.nii")
    np.testing.assert_array_equal(ours.numpy(), reference.numpy())
    np.testing.assert_allclose(ours.affine.numpy(), reference.affine.numpy(), atol=1e-4)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".bmp"])
def test_picture_is_width_by_height_and_lies_as_it_is_shown(tmp_path: Path, suffix: str) -> None:
    grey = _noise((20, 30)).astype("u1")
    Image.fromarray(grey).save(tmp_path / f"p{suffix}")
    volume = load_volume(tmp_path / f"p{suffix}")
    assert volume.shape == (1, 30, 20, 1)
    assert volume[0, 5, 3, 0] == grey[3, 5]
    # columns to the patient's left, rows to the back
    np.testing.assert_array_equal(volume.affine.numpy(), np.diag([-1.0, -1.0, 1.0, 1.0]))


#: EXIF orientation of a picture → how its pixels were turned from the upright ones.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((suffix, mode) for suffix in (".png", ".tiff") for mode in ("L", "I;16", "RGB")),
        *((".jpg", mode) for mode in ("L", "RGB")),  # of 8 bits
    ],
)
def test_picture_is_read_upright_as_its_exif_orientation_says(
    tmp_path: Path, orientation: int, suffix: str, mode: str
) -> None:
    blocks = np.kron(_noise((2, 3), 256), np.ones((16, 16)))  # JPEG keeps flat blocks
    levels = blocks.astype("u2" if mode == "I;16" else "u1")
    upright = Image.fromarray(levels)
    upright = upright.convert("RGB") if mode == "RGB" else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(STORED[orientation])
    stored.save(tmp_path / f"p{suffix}", exif=exif)
    volume = load_volume(tmp_path / f"p{suffix}", keep_colours=mode == "RGB")
    assert volume.shape[1:] == (48, 32, 1)
    np.testing.assert_allclose(volume[0, :, :, 0].numpy(), levels.T, atol=2)
    drawn = load_mask(tmp_path / f"p{suffix}")[0, :, :, 0].numpy()
    lesion = levels.T > 127 if suffix == ".jpg" else levels.T > 0
    np.testing.assert_array_equal(drawn, lesion)


def test_sixteen_bit_picture_keeps_its_grey_levels(tmp_path: Path) -> None:
    grey = _noise((20, 30), 60000).astype("u2")
    Image.fromarray(grey).save(tmp_path / "p.png")
    np.testing.assert_array_equal(load_volume(tmp_path / "p.png")[0, :, :, 0].numpy(), grey.T)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_picture_becomes_luminance(tmp_path: Path, mode: str) -> None:
    rgb = _noise((20, 30, 3), 256).astype("u1")
    rgb[2, 4] = (255, 0, 0)
    rgb = np.ascontiguousarray(np.repeat(rgb[:1], 20, 0)) if mode == "P" else rgb
    picture = Image.fromarray(rgb).convert(mode)
    picture.save(tmp_path / "p.png")
    red, green, blue = np.asarray(picture.convert("RGB"), dtype="f8").transpose(2, 1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    loaded = load_volume(tmp_path / "p.png")[0, :, :, 0].numpy()
    np.testing.assert_allclose(loaded, luma, atol=1.0)


def _label_blocks() -> np.ndarray:
    labels = np.zeros((30, 30, 30), dtype="i2")
    labels[5:15, 5:25, 5:25] = 1
    labels[15:25, 5:25, 5:25] = 2
    labels[10:12, 10:20, 10:20] = 4
    return labels


def _with_intent(path: Path) -> None:
    image = nib.Nifti1Image(_noise().astype("i2"), np.eye(4))
    image.header.set_intent("label")
    nib.save(image, path)


def _truncated(path: Path, size: int = 400) -> None:
    _nifti(path, _noise((30, 30, 30)).astype("f4"))
    path.write_bytes(path.read_bytes()[:size])


def _with(value: float) -> np.ndarray:
    values = _noise().astype("f4")
    values[1, 2, 3] = value
    return values


def _rgb() -> np.ndarray:
    colour = np.zeros((5, 4, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["R"] = _noise((5, 4, 3))
    return colour


def _zero_axis(path: Path) -> None:
    _nifti(path, _noise().astype("u1"))
    raw = bytearray(path.read_bytes())
    raw[42:44] = np.array([0], dtype="<i2").tobytes()  # dim[1]
    path.write_bytes(bytes(raw))


def _zero_column(path: Path) -> None:
    nib.save(nib.Nifti1Image(_noise().astype("i2"), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[312:328] = bytes(16)  # srow_z of the header
    path.write_bytes(content)


def _itk_colour(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(_noise((4, 5, 6, 3)).astype("u1"), True), str(path))


def _pages(path: Path, *shapes: tuple[int, int]) -> np.ndarray:
    pages = [_noise(shape).astype("u1") for shape in shapes]
    first, *others = [Image.fromarray(page) for page in pages]
    first.save(path, save_all=True, append_images=others)
    return np.stack(pages) if len(set(shapes)) == 1 else np.zeros(0)


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "4-D": ("v.nii", lambda p: _nifti(p, _noise((9, 8, 7, 3)).astype("i2")), "4 dimensions"),
    "1-D": ("v.nii", lambda p: _nifti(p, _noise((9,)).astype("i2")), "1 dimensions"),
    "colour": ("v.nii", lambda p: _nifti(p, _rgb()), "colour"),
    "itk colour": ("v.mha", _itk_colour, "3 numbers per voxel"),
    "complex": ("v.nii", lambda p: _nifti(p, _noise().astype("c8")), "complex"),
    "NaN": ("v.nii", lambda p: _nifti(p, _with(np.nan)), "1 NaN and 0 infinite"),
    "infinite": ("v.nii", lambda p: _nifti(p, _with(-np.inf)), "0 NaN and 1 infinite"),
    "too large": ("v.nii", lambda p: _nifti(p, _noise() * 1e300), "infinite"),
    "constant": ("v.nii", lambda p: _nifti(p, np.full((9, 8, 7), 7, "i2")), "constant.*7"),
    "labels": ("v.nii.gz", lambda p: _nifti(p, _label_blocks()), "label map"),
    "float labels": ("v.nii", lambda p: _nifti(p, _label_blocks().astype("f4")), "label map"),
    "mask": ("v.nii", lambda p: _nifti(p, (_label_blocks() > 0).astype("u1")), "mask"),
    "label intent": ("v.nii", _with_intent, "intent"),
    "truncated": ("v.nii", _truncated, "could not be read"),
    "truncated gz": ("v.nii.gz", _truncated, "could not be read"),
    "truncated header": ("v.nii", lambda p: _truncated(p, 90), "could not be read"),
    "empty": ("v.nii", lambda p: p.write_bytes(b""), "0 bytes"),
    "missing": ("v.nii", Path.exists, "does not exist"),
    "unknown type": ("v.docx", lambda p: p.write_text("text"), "unknown type"),
    "not what it says": ("v.nii", lambda p: p.write_text("no volume" * 90), "could not be read"),
    "broken picture": ("v.png", lambda p: p.write_text("no picture"), "could not be read"),
    "broken nrrd": ("v.nrrd", lambda p: p.write_text("no volume"), "could not be read"),
    "singular": ("v.nii", _zero_column, "singular"),
    "parallel axes": (
        "v.nii",
        lambda p: _nifti(p, _noise().astype("i2"), np.array(
            [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
        "singular",
    ),
    "no voxels": ("v.nii", _zero_axis, "no voxels|could not be read"),
    "pages": ("v.tiff", lambda p: _pages(p, (20, 30), (20, 31)), "2 pages"),
    "film": ("v.png", lambda p: _pages(p, (20, 30), (20, 30)), "PNG of 2 pages"),
    "folder": ("v", lambda p: p.mkdir(), "without DICOM"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_unsuitable_file_is_refused_with_path_and_reason(tmp_path: Path, kind: str) -> None:
    name, write, reason = REFUSED[kind]
    path = tmp_path / name
    write(path)
    with pytest.raises(VolumeError, match=reason) as caught:
        load_volume(path)
    assert str(path) in str(caught.value)


def test_tiny_checkerboard_and_saturated_image_are_no_label_maps(tmp_path: Path) -> None:
    tiny = (np.indices((7, 5, 3)).sum(0) % 2).astype("u1")
    assert load_volume(_nifti(tmp_path / "v.nii", tiny)).sum() == tiny.sum()
    padded = np.zeros((40, 40, 40), dtype="i2")
    padded[10:30, 10:30, 10:30] = np.clip(_noise((20, 20, 20), 400), 0, 255)
    assert load_volume(_nifti(tmp_path / "s.nii", padded)).max() == 255


def test_mask_is_binarised_and_may_be_empty(tmp_path: Path) -> None:
    labels = _label_blocks()
    mask = load_mask(_nifti(tmp_path / "m.nii.gz", labels))
    np.testing.assert_array_equal(mask[0].numpy(), labels > 0)
    assert load_mask(_nifti(tmp_path / "e.nii", np.zeros((4, 4, 4), "u1"))).sum() == 0


def test_jpeg_mask_ignores_compression_noise(tmp_path: Path) -> None:
    drawn = np.zeros((64, 64), dtype="u1")
    drawn[20:33, 21:40] = 255
    Image.fromarray(drawn).save(tmp_path / "m.jpg", quality=60)
    mask = load_mask(tmp_path / "m.jpg")
    np.testing.assert_array_equal(mask[0, :, :, 0].numpy(), drawn.T > 0)


@pytest.mark.parametrize("case", [{"label": None}, {}])
def test_absent_mask_is_empty_on_the_image_grid(tmp_path: Path, case: dict[str, None]) -> None:
    image = load_volume(_nifti(tmp_path / "v.nii", _noise().astype("i2")))
    mask = LoadMaskd("label")({"image": image, **case})["label"]
    assert mask.shape == image.shape
    assert mask.sum() == 0
    assert torch.equal(mask.affine, image.affine)


def test_mask_of_other_shape_place_or_content_is_refused(tmp_path: Path) -> None:
    image = load_volume(_nifti(tmp_path / "v.nii", _noise().astype("i2")))
    masks = {
        "shape": _nifti(tmp_path / "o.nii", _noise((9, 8, 6), 2).astype("u1")),
        "voxels away": _nifti(
            tmp_path / "f.nii", _noise(high=2).astype("u1"), np.diag([-1, 1, 1, 1])
        ),
        "exist": tmp_path / "x.nii",
        "4 dimensions": _nifti(tmp_path / "a.nii", _noise((4, 4, 4, 2), 2).astype("u1")),
        "NaN": _nifti(tmp_path / "b.nii", _with(np.nan)),
    }
    for reason, path in masks.items():
        with pytest.raises(VolumeError, match=reason):
            LoadMaskd("label")({"image": image, "label": str(path)})


@pytest.mark.parametrize(
    "name",
    ["FLAIR.nii.gz", "shear.nii.gz", "AIL.nii.gz", "norm.mgz", "T2w.nii.gz", "CT_pitch.nii.gz",
     "chris_t1.nii.gz", "example_ct.nii.gz", "low_res.nii.gz"],
)  # fmt: skip
def test_real_images_load_as_nibabel_reads_them(shared: Path, name: str) -> None:
    path = shared / "data" / "volumes" / name
    volume, reference = load_volume(path), nib.load(path)
    np.testing.assert_array_equal(volume.affine.numpy(), reference.affine)
    np.testing.assert_array_equal(volume[0].numpy(), reference.get_fdata(dtype=np.float32))


def test_real_pictures_are_images_and_real_masks_are_masks(shared: Path) -> None:
    data = shared / "data" / "oct_dme"
    for path in sorted((data / "img").iterdir())[::20]:
        assert load_volume(path).shape[-1] == 1
    mask = load_mask(sorted((data / "mask").iterdir())[0])
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(VolumeError, match="label map"):
        load_volume(shared / "data" / "volumes" / "label_gif.nii.gz")


def test_organ_of_a_few_grey_levels_is_an_image_as_a_picture(tmp_path: Path) -> None:
    levels = np.zeros((64, 64), np.uint8)  # an organ in a window as wide as metal
    levels[8:56, 8:56] = np.kron([[60, 61], [62, 63]], np.ones((24, 24)))
    levels[0, 0] = 255
    Image.fromarray(levels).save(tmp_path / "organ.png")
    assert load_volume(tmp_path / "organ.png").shape == (1, 64, 64, 1)
    Image.fromarray(np.where(levels > 0, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(VolumeError, match="label map"):
        load_volume(tmp_path / "mask.png")


def test_pages_of_a_tiff_are_slices_which_are_b_scans_alone(tmp_path: Path) -> None:
    pages = _pages(tmp_path / "scans.tiff", (20, 30), (20, 30), (20, 30))
    volume = load_volume(tmp_path / "scans.tiff")
    np.testing.assert_array_equal(volume[0].numpy(), pages.T)  # (W, H, 3)
    assert StudyModalityd("image", "retina_oct")({"image": volume})["image"] is volume
    for modality in ("brain_mri", "liver_ct"):
        with pytest.raises(VolumeError, match="3 pages"):
            StudyModalityd("image", modality)({"image": volume})
    with pytest.raises(VolumeError, match="raise the limit"):
        load_volume(tmp_path / "scans.tiff", max_voxels=1000)


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.AnalyzeImage])
def test_header_and_data_in_two_files_are_one_volume(tmp_path: Path, kind: Any) -> None:
    values = _noise().astype("i2")
    nib.save(kind(values, np.diag([-2.0, 2.0, 3.0, 1.0])), tmp_path / "pair.img")
    volume = load_volume(tmp_path / "pair.hdr")
    np.testing.assert_array_equal(volume[0].numpy(), values)
    np.testing.assert_allclose(np.abs(np.diag(volume.affine)), [2, 2, 3, 1])
    before = input_digest(tmp_path / "pair.hdr")
    data = bytearray((tmp_path / "pair.img").read_bytes())
    data[-1] ^= 1
    (tmp_path / "pair.img").write_bytes(data)
    assert input_digest(tmp_path / "pair.hdr") != before
