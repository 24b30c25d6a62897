"""What headers say of patients is not written; names of studies are in results alone."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name in its manual)
from dicom_slices import write_dicom

from mcmiad_monai.cli.parser import main
from mcmiad_monai.data.feature_store import SliceRecord, nameless_index

#: In the header of every DICOM file, and in those of NIfTI.
MARK = "Xq7Doe"
#: Beginning of the names of the studies' files and folders, which a user chose.
NAME = "wk9study"
TAGS = {
    "0010|0010": f"{MARK}^Jane",
    "0010|4000": f"{MARK} comment",
    "0008|103e": f"{MARK} flair",
    "0008|1030": f"{MARK} head",
    "0008|0050": f"{MARK}7",
    "0008|0080": f"{MARK} hospital",
}
#: What may have names of studies.
RESULTS = ("scores.json", "scores.csv", "studies.csv", "metrics.json")


def head(seed: int, lesion: bool = False) -> np.ndarray:
    """An ellipsoid with texture, (40, 48, 10)."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 48, 10)), indexing="ij"))
    inside = (grid**2).sum(0) < 0.9
    values = 300 + 80 * np.random.default_rng(seed).random(inside.shape) + 100 * grid[0]
    values[18:24, 20:28, 4:7] += 400 * lesion
    return np.asarray(values * inside, dtype=np.int16)


def write_series(folder: Path, volume: np.ndarray) -> None:
    """A DICOM series with a patient in every header."""
    folder.mkdir(parents=True)
    for k in range(volume.shape[2]):
        image = sitk.GetImageFromArray(volume[:, :, k].T)
        tags = {
            **TAGS,
            "0010|0020": f"{MARK}{folder.name}",
            "0008|0060": "MR",
            "0020|000d": "1.2.3",
            "0020|000e": f"1.2.3.{abs(hash(folder.name)) % 10**6}",
            "0020|0032": f"0\\0\\{3 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "3",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        write_dicom(image, folder / f"{k}.dcm")


def write_nifti(path: Path, volume: np.ndarray) -> None:
    """A NIfTI file with a patient in its header."""
    image = nib.Nifti1Image(volume, np.diag([1.0, 1.0, 3.0, 1.0]))
    image.header["descrip"], image.header["db_name"] = MARK, MARK
    nib.save(image, path)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hospital")
    for n in range(3):
        write_series(root / "train" / f"{NAME}{n}", head(n))
        (root / "val").mkdir(exist_ok=True)
        write_nifti(root / "val" / f"{NAME}{n + 3}.nii.gz", head(n + 3))
    (root / "val" / f"{NAME}broken.nii.gz").write_bytes(b"no image")
    write_series(root / "test" / f"{NAME}t", head(20, lesion=True))
    return root


def found(root: Path, text: str) -> set[str]:
    """Paths below a folder, from there, of files that hold a text, or have it in their names."""
    files = [path for path in root.rglob("*") if path.is_file()]
    assert files
    return {
        path.relative_to(root).as_posix()
        for path in files
        if text.encode() in path.read_bytes() or text in path.name
    }


def test_no_file_and_no_message_has_what_a_header_says_of_a_patient(
    studies: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    small = ["weights=random", "text_prior=hashing", "encoder_name=test_efficientnet"]
    small += ["max_epochs=1", "dim=16", "heads=2", "hidden=16", "rounds=1", "coreset=50"]
    small += ["cache=disk", "export=false", "slice_range=[0.3,0.8]"]
    train = ["-v", "train", str(studies), "--out", str(bundle), "--tracking", "mlflow"]
    assert main([*train, *(part for line in small for part in ("--set", line))]) == 0
    for command in ("infer", "evaluate"):
        line = [command, str(studies), "--bundle", str(bundle), "--out", str(out / command)]
        assert main(["-v", *line, "--device", "cpu"]) == 0
    # two series in one folder are told apart without their descriptions
    mixed = tmp_path / "mixed" / "both"
    write_series(mixed, head(1))
    for path in (studies / "test" / f"{NAME}t").iterdir():
        (mixed / f"b{path.name}").write_bytes(path.read_bytes())
    line = ["infer", str(mixed), "--bundle", str(bundle), "--out", str(tmp_path / "m")]
    assert main([*line, "--device", "cpu"]) == 1
    told = capsys.readouterr()
    assert "2 DICOM series" in told.err
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert MARK not in told.out + told.err + logged
    for folder in (bundle, out, tmp_path / "m"):
        assert not found(folder, MARK)
    assert "mlruns" in {path.name for path in bundle.rglob("*")}
    assert any(path.name == "index.json" for path in bundle.rglob("*"))
    assert {Path(name).name for name in found(bundle, NAME)} == {"memory_studies.csv"}
    assert all(n.startswith("infer/") or n.endswith(RESULTS) for n in found(out, NAME))


def test_kept_features_have_numbers_for_names() -> None:
    records = [SliceRecord("b", 3, True, "mrs b", "brain_mri")]
    index = nameless_index(records, {"a": "/home/a is damaged"}, [{"case": "a"}, {"case": "b"}])
    assert json.loads(json.dumps(index)) == {
        "slices": [[1, 3, True, "brain_mri"]],
        "failures": [0],
    }
