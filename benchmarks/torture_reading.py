"""Studies that are to be found and read rightly: layouts, names, series, headers, masks."""

from __future__ import annotations

import bz2
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torture_base import scores_in
from torture_dicom import write_series
from torture_look import Looked
from torture_model import INFER, head, nifti


def stray_slice(look: Looked) -> None:
    """All studies found, the stray slice found or named."""
    image, affine = head()
    for number in range(3):
        nifti(look.source / f"p{number}.nii.gz", image, affine)
    write_series(look.source, image[:, :, 6:7], affine, name="stray")
    done, cases = look.cases()
    look.one.expect(len(cases) in (3, 4), f"{len(cases)} studies of 4: {done.last}")
    other = look.folder / "in2"
    for number in (1, 2):
        write_series(other / f"pat{number}", image, affine, series=str(number))
    write_series(other, image[:, :, 6:7], affine, name="stray", series="3")
    done, cases = look.cases(source=other)
    look.one.expect(len(cases) in (2, 3), f"{len(cases)} studies of 3: {done.last}")
    look.one.note(f"{len(cases)} of 3")


def _values(look: Looked, truth: np.ndarray, folder: Path) -> None:
    """Compare the values as they are read with the truth, in any orientation."""
    from mcmiad_monai.transforms.volume import load_volume

    found = np.sort(np.asarray(load_volume(folder)).ravel().astype(float))
    worst = np.abs(found - np.sort(truth.ravel().astype(float))).max()
    look.one.expect(worst < 1e-2, f"values differ by up to {worst:.4g}")
    look.one.note("values are right")


def signs(look: Looked) -> None:
    """Pixel representation differs between slices: values are right."""
    image, affine = head()
    image -= 400
    image[:, :, 0] = np.abs(image[:, :, 0])
    _values(look, image, write_series(look.source, image, affine, signed=lambda k: k > 0))


def slopes(look: Looked) -> None:
    """Slope differs between slices: values are right."""
    image, affine = head()
    image = image / image.max() * 12
    image[:, :, 0] = 0
    scale = 12 / 4095
    write_series(look.source, image, affine, slope=lambda k: (scale if k else 1.0, 0.0))
    _values(look, np.rint(image / scale) * scale, look.source)


def intercepts(look: Looked) -> None:
    """Intercept differs between slices: values are right."""
    image, affine = head()
    image -= 1024
    image[:, :, 0] = np.maximum(image[:, :, 0], 0)
    write_series(
        *(look.source, image, affine), modality="CT", slope=lambda k: (1.0, -1024.0 if k else 0.0)
    )
    _values(look, image, look.source)


def _same_place(look: Looked, path: Path) -> None:
    """ITK lays the heatmap over the image, and nibabel as well."""
    import SimpleITK as sitk  # noqa: N813

    done = look.infer()
    if not look.one.expect(done.code == 0, done.last):
        return
    case = next(iter(scores_in(look.out)))
    heat = look.out / case / f"{case}_heatmap.nii.gz"
    images = [sitk.ReadImage(str(p)) for p in (path, heat)]
    for what in ("GetOrigin", "GetSpacing", "GetDirection"):
        found, expected = (np.array(getattr(i, what)()) for i in (images[1], images[0]))
        apart = np.abs(found - expected).max()
        look.one.expect(apart < 1e-3, f"ITK: {what[3:].lower()} differs by {apart:.4g}")
    both = [nib.load(p) for p in (heat, path)]
    units = [i.header.get_xyzt_units() for i in both]
    look.one.expect(units[0] == units[1], f"units are {units[0]}, those of the image {units[1]}")
    affines = np.abs(both[0].affine - both[1].affine).max()
    look.one.expect(affines < 1e-3, f"nibabel: affines differ by {affines:.4g}")
    look.one.note("same place in ITK and nibabel")


def _stored(look: Looked, change: Callable[[Any, np.ndarray], Any]) -> None:
    image, affine = head()
    path = nifti(look.source / "study.nii.gz", image, affine)
    stored = nib.load(path)
    stored = nib.Nifti1Image(np.asarray(stored.dataobj), stored.affine, stored.header)
    stored = change(stored, affine) or stored
    nib.save(stored, path)
    _same_place(look, path)


def two_frames(look: Looked) -> None:
    """Qform and sform differ: heatmap lies on the image in all readers."""

    def change(stored: Any, affine: np.ndarray) -> None:
        moved = affine.copy()
        moved[:3, 3] += [20, -15, 8]
        stored.set_qform(moved, 1)
        stored.set_sform(affine, 2)

    _stored(look, change)


def no_codes(look: Looked) -> None:
    """Both codes 0: heatmap lies on the image in all readers."""

    def change(stored: Any, _: np.ndarray) -> None:
        stored.set_qform(None, 0)
        stored.set_sform(None, 0)

    _stored(look, change)


def micrometres(look: Looked) -> None:
    """Units are micrometres: heatmap lies on the image in all readers."""

    def change(stored: Any, affine: np.ndarray) -> Any:
        small = affine.copy()
        small[:3] *= 1000
        other = nib.Nifti1Image(np.asarray(stored.dataobj), small)
        other.header.set_xyzt_units("micron")
        return other

    _stored(look, change)


def tilted(look: Looked) -> None:
    """Tilted gantry: a result that ITK reads, or a word on it."""
    import SimpleITK as sitk  # noqa: N813

    image, affine = head()
    affine[:3, 2] = [0, 1.8, 6.0]
    write_series(look.source / "tilt", image, affine)
    done = look.infer()
    readable = 0
    for path in look.out.glob("*/*heat*"):
        try:
            sitk.ReadImage(str(path))
            readable += 1
        except RuntimeError:
            continue
    told = any(word in done.told.lower() for word in ("shear", "tilt", "itk"))
    look.one.expect(done.code == 0 and bool(readable or told), f"unreadable in ITK: {done.last}")
    look.one.note("readable in ITK" if readable else "the user is told")


def own_outputs(look: Looked) -> None:
    """Earlier outputs in sub-folders: not read as studies."""
    look.of.good(look.source / "pat1", "flair")
    look.of.good(look.source / "pat2", "flair")
    for patient in ("pat1", "pat2"):
        out = look.source / patient / "heatmaps"
        command = ("infer", look.source / patient, "--bundle", look.of.bundle, "--out", out)
        look.bench.run(*command, *INFER)
    done, cases = look.cases()
    look.one.expect(len(cases) == 2, f"{len(cases)} studies of 2: {done.last}")
    look.one.note("2 studies")


def bids(look: Looked) -> None:
    """BIDS: found by --image-name, patient from sub-."""
    image, affine = head()
    for subject in (1, 2, 3):
        for session in (1, 2):
            stem = f"sub-0{subject}_ses-{session}"
            for kind in ("FLAIR", "T1w"):
                place = look.source / f"sub-0{subject}" / f"ses-{session}" / "anat"
                nifti(place / f"{stem}_{kind}.nii.gz", image, affine)
    done, cases = look.cases("--image-name", "FLAIR")
    look.one.expect(len(cases) == 6, f"{len(cases)} studies of 6: {done.last}")
    patients = {case.get("patient") for case in cases}
    expected = {"sub-01", "sub-02", "sub-03"}
    look.one.expect(patients in (expected, {p[4:] for p in expected}), f"patients: {patients}")
    look.one.note("6 studies of 3 patients")


def nnunet(look: Looked) -> None:
    """nnU-Net's imagesTr and labelsTr: found with their masks."""
    image, affine = head()
    for number in (1, 2):
        nifti(look.source / "imagesTr" / f"case_{number:03d}_0000.nii.gz", image, affine)
        nifti(look.source / "labelsTr" / f"case_{number:03d}.nii.gz", image > 900, affine, np.uint8)
    _, cases = look.cases()
    pairs = [case for case in cases if case["label"]]
    look.one.expect(len(cases) == len(pairs) == 2, f"{len(cases)} studies, {len(pairs)} masks")
    look.one.note("2 studies with masks")


def dicom_names(look: Looked) -> None:
    """DICOMDIR, .dicom, without extension, without preamble: found."""
    image, affine = head()
    place = look.source / "cd" / "DICOM" / "PAT0" / "SE0"
    write_series(place, image, affine, suffix="", name="IM")
    (look.source / "cd" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    write_series(look.source / "ext", image, affine, suffix=".dicom", series="2")
    write_series(look.source / "bare", image, affine, suffix="", preamble=False, series="3")
    done, cases = look.cases()
    look.one.expect(len(cases) == 3, f"{len(cases)} studies of 3: {done.last}")
    done = look.infer()
    look.one.expect(done.code == 0 and len(scores_in(look.out)) == 3, done.last)
    look.one.note("3 studies")


def soft_mask(look: Looked) -> None:
    """Soft mask: lesion is half of its maximum and more, or refused."""
    from scipy.ndimage import gaussian_filter

    image, affine = head()
    hard = image > 900
    soft = gaussian_filter(hard.astype(float), 1.0)
    soft[soft < 1e-4] = 0
    nifti(look.source / "les" / "image.nii.gz", image, affine)
    nifti(look.source / "les" / "mask.nii.gz", soft, affine, np.float32)
    command = ("evaluate", look.source, "--bundle", look.of.bundle, "--out", look.out, *INFER)
    done = look.bench.run(*command)
    table = look.out / "studies.csv"
    if done.code == 0 and table.exists():
        names, values = (line.split(",") for line in table.read_text().split("\n")[:2])
        found, half = int(values[names.index("lesion_voxels")]), int((soft >= soft.max() / 2).sum())
        look.one.expect(found <= half, f"{found} voxels are lesion, of {half} above half")
    look.one.expect(done.clean and done.code in (0, 1, 2), done.last)
    look.one.note("at least half counts" if done.code == 0 else done.last)


def not_read(look: Looked) -> None:
    """Files that are not read are named."""
    image, affine = head()
    stored = nib.load(nifti(look.source / "ok.nii.gz", image, affine))
    (look.source / "x.nii.bz2").write_bytes(bz2.compress(stored.to_bytes()))
    nib.save(nib.Nifti1Pair(image.astype(np.int16), affine), look.source / "pair.img")
    done = look.bench.run("cases", look.source, "--explain")
    for name in ("x.nii.bz2", "pair"):
        look.one.expect(name in done.told, f"{name} is not named: {done.last}")
    done = look.bench.run("infer", look.source, "--bundle", look.of.bundle, "--out", look.out)
    look.one.expect("x.nii.bz2" in done.told, "infer does not name x.nii.bz2")
    look.one.note("named")


READING: dict[str, Callable[[Looked], None]] = {
    "stray DICOM slice": stray_slice,
    "series: pixel representation": signs,
    "series: slope": slopes,
    "series: intercept": intercepts,
    "header: qform and sform": two_frames,
    "header: no codes": no_codes,
    "header: micrometres": micrometres,
    "series: tilted gantry": tilted,
    "own outputs in the input": own_outputs,
    "BIDS": bids,
    "nnU-Net": nnunet,
    "DICOM names": dicom_names,
    "soft mask": soft_mask,
    "files that are not read": not_read,
}
