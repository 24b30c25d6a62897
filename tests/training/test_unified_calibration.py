"""One model, several modalities: each has thresholds of its own, and heatmaps in their unit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kept_features import kept_features
from monai.data import MetaTensor
from small_heads import small_detector

from mcmiad_monai.calibration import (
    Calibration,
    UnifiedCalibration,
    calibration_for,
    conformal_threshold,
    heat_unit,
)
from mcmiad_monai.data.feature_store import SliceRecord
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.inference.inferer import SLICE_SCORES, SliceHeatmapInferer
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import empty_encoder
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.networks.text_prior import encode_hashing
from mcmiad_monai.training.calibrating import (
    CalibrationError,
    calibrate,
    calibrate_each,
    normal_rows,
)
from mcmiad_monai.training.method import Method
from mcmiad_monai.training.packaging import Packager
from mcmiad_monai.training.score_choice import ScoreChooser

BRAIN = Calibration(
    pixel_threshold=0.5,
    pixel_false_positive_rate=0.005,
    slice_threshold=1.25,
    volume_threshold=math.inf,
    false_positive_rate=0.05,
    normal_pixels=123456,
    normal_slices=80,
    normal_volumes=18,
    normal_patients=18,
)
LIVER = replace(BRAIN, pixel_threshold=2.0, slice_threshold=0.75, volume_threshold=3.0)
UNIFIED = UnifiedCalibration({"brain_mri": BRAIN, "liver_ct": LIVER})
RATE = 0.01
SIZE = 28


def stored(calibration: Calibration | UnifiedCalibration) -> dict[str, Any]:
    """As a package or the metadata of a bundle brings it back."""
    content: dict[str, Any] = json.loads(json.dumps(calibration.to_dict(), allow_nan=False))
    return content


def test_each_modality_has_its_own_thresholds_and_unit() -> None:
    assert UNIFIED.pixel_threshold == 2.0  # the network's own unit is the largest
    for name, own, unit in (("brain_mri", BRAIN, 0.25), ("liver_ct", LIVER, 1.0)):
        assert calibration_for(stored(UNIFIED), name) == own
        assert heat_unit(stored(UNIFIED), name) == pytest.approx(unit)


@pytest.mark.parametrize("modality", ["retina_oct", None, ""])
def test_modality_without_thresholds_is_refused_and_told_which_there_are(modality: Any) -> None:
    for read in (calibration_for, heat_unit):
        with pytest.raises(ValueError, match=r"no thresholds for .*\['brain_mri', 'liver_ct'\]"):
            read(stored(UNIFIED), modality)


@pytest.mark.parametrize("modality", ["brain_mri", None])
def test_model_of_one_modality_is_calibrated_in_itself(modality: Any) -> None:
    assert calibration_for(stored(BRAIN), modality) == BRAIN
    assert heat_unit(stored(BRAIN), modality) == 1.0


def test_model_without_calibration_has_neither_thresholds_nor_a_unit() -> None:
    assert calibration_for({}, "brain_mri") is None
    assert heat_unit({}, None) == 1.0


def test_summary_has_a_line_for_each_modality() -> None:
    assert UNIFIED.summary().split("\n") == [
        f"brain_mri: {BRAIN.summary()}",
        f"liver_ct: {LIVER.summary()}",
    ]


def volume_of(modality: str | None) -> MetaTensor:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.uniform(0.1, 1, (1, 1, 20, 18, 4)).astype("f4"))
    return MetaTensor(values, meta={} if modality is None else {"modality": modality})


def network(images: torch.Tensor) -> torch.Tensor:
    return images**2 + 0.5


def test_heatmap_and_slice_scores_are_in_the_unit_of_the_study() -> None:
    plain = SliceHeatmapInferer(size=32)(volume_of(None), network)
    unified = SliceHeatmapInferer(size=32, calibration=stored(UNIFIED))
    for modality, factor in (("brain_mri", 4.0), ("liver_ct", 1.0)):
        heat = unified(volume_of(modality), network)
        torch.testing.assert_close(heat.as_tensor(), plain.as_tensor() * factor)
        scores, expected = heat.meta[SLICE_SCORES], plain.meta[SLICE_SCORES] * factor
        torch.testing.assert_close(scores, expected)
    for modality in ("retina_oct", None):
        with pytest.raises(ValueError, match="no thresholds for"):
            unified(volume_of(modality), network)
    single = SliceHeatmapInferer(size=32, calibration=stored(LIVER))
    assert torch.equal(single(volume_of(None), network), plain)


@pytest.fixture(scope="module")
def detector() -> MCMIADDetector:
    return small_detector(empty_encoder("test_efficientnet", grid=7, pool="area"))


def kept(*parts: tuple[str, float, int]) -> FeatureDataset:
    """Held-out slices of (modality, scale of its features, slices); the last slice is anomalous."""
    blocks, masks, records = [], [], []
    for modality, scale, count in parts:
        rng = np.random.default_rng(count)
        level = scale * np.exp(0.3 * rng.normal(size=(count, 1, 1, 1)))
        blocks.append(level * rng.normal(size=(count, 120, 7, 7)))
        blocks[-1][-1] *= 50
        masks.append(rng.random((count, 1, SIZE, SIZE)) < 0.6)
        records += [
            SliceRecord(f"{modality}{i // 3}", i, i == count - 1, f"p{i // 6}", modality)
            for i in range(count)
        ]
    foreground = torch.from_numpy(np.concatenate(masks))
    return kept_features(np.concatenate(blocks), records=records, foreground=foreground, size=SIZE)


@pytest.fixture(scope="module")
def both() -> FeatureDataset:
    return kept(("brain_mri", 1.0, 61), ("liver_ct", 3.0, 43))


def maps_of(
    detector: MCMIADDetector, dataset: FeatureDataset, rows: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Heatmaps (n, S, S) and where they count."""
    with torch.no_grad():
        maps = detector.heatmap_from_features(dataset.batch(rows), dataset.foreground(rows))
    return maps[:, 0].numpy(), dataset.foreground(rows)[:, 0].numpy()


def shares_above(
    detector: MCMIADDetector, dataset: FeatureDataset, modality: str, unit: float
) -> list[float]:
    """Of each patient, the share of normal pixels above 1.0."""
    rows = normal_rows(dataset, modality)
    maps, inside = maps_of(detector, dataset, rows)
    patients = np.array([dataset.records[row].patient for row in rows])
    each = [maps[patients == p][inside[patients == p]] for p in np.unique(patients)]
    return [float(np.mean(pixels / unit > 1)) for pixels in each]


OPTIONS = {"pixel_false_positive_rate": RATE, "false_positive_rate": 0.2}


@pytest.mark.parametrize("order", [["brain_mri", "liver_ct"], ["liver_ct", "brain_mri"]])
def test_each_modality_has_its_stated_rate_of_normal_pixels_above_one(
    detector: MCMIADDetector, both: FeatureDataset, order: list[str]
) -> None:
    found = calibrate_each(detector, both, order, unified=True, **OPTIONS)
    assert isinstance(found, UnifiedCalibration)
    units = {}
    for name in ("brain_mri", "liver_ct"):
        shares = np.array(shares_above(detector, both, name, heat_unit(stored(found), name)))
        assert np.sum(shares <= RATE) == len(shares) // 2 + 1  # the median patient and below
        rows = normal_rows(both, name)
        assert found.modalities[name].normal_pixels == both.foreground(rows).sum()
        units[name] = found.modalities[name].pixel_threshold
    # without thresholds of their own, one of the two would be drowned in false positives
    assert units["liver_ct"] > 2 * units["brain_mri"]
    assert float(detector.heat_scale) == pytest.approx(found.pixel_threshold)
    assert found.pixel_threshold == found.modalities["liver_ct"].pixel_threshold


def test_slice_and_volume_thresholds_are_in_the_unit_of_their_modality(
    detector: MCMIADDetector, both: FeatureDataset
) -> None:
    found = calibrate_each(detector, both, ["brain_mri", "liver_ct"], unified=True, **OPTIONS)
    assert isinstance(found, UnifiedCalibration)
    for name, calibration in found.modalities.items():
        rows = normal_rows(both, name)
        maps, inside = maps_of(detector, both, rows)
        scores, patients, studies = [], [], {}
        for row, one, mask in zip(rows, maps, inside, strict=True):
            pixels = np.sort(one[mask].astype(np.float64)) / heat_unit(stored(found), name)
            # 0.5 · maximum + 0.3 · mean + 0.2 · mean of the top five
            score = 0.5 * pixels[-1] + 0.3 * pixels.mean() + 0.2 * pixels[-5:].mean()
            record = both.records[row]
            scores.append(score)
            patients.append(record.patient)
            studies[record.case] = (max(score, studies.get(record.case, (0,))[0]), record.patient)
        expected = conformal_threshold(scores, 0.2, groups=patients)
        assert calibration.slice_threshold == pytest.approx(expected, rel=1e-4)
        volumes, groups = zip(*studies.values(), strict=True)  # top 5 % of 3 slices is one slice
        expected = conformal_threshold(volumes, 0.2, groups=groups)
        assert calibration.volume_threshold == pytest.approx(expected, rel=1e-4)
        assert calibration.normal_slices == len(rows)
        assert calibration.normal_patients == len(set(patients))


def test_modalities_do_not_touch_each_other(detector: MCMIADDetector, both: FeatureDataset) -> None:
    together = calibrate_each(detector, both, ["brain_mri", "liver_ct"], unified=True, **OPTIONS)
    assert isinstance(together, UnifiedCalibration)
    liver = calibrate(detector, both, modality="liver_ct", **OPTIONS)
    assert liver == together.modalities["liver_ct"]
    alone = kept(("brain_mri", 1.0, 61))
    expected = calibrate(detector, alone, **OPTIONS)
    assert expected == together.modalities["brain_mri"]
    for dataset in (alone, both):  # a modality that was not trained has no part
        found = calibrate_each(detector, dataset, ["brain_mri"], unified=False, **OPTIONS)
        assert found == expected
        assert float(detector.heat_scale) == pytest.approx(found.pixel_threshold)


def test_unified_model_of_one_modality_has_no_thresholds_for_others(
    detector: MCMIADDetector,
) -> None:
    alone = kept(("brain_mri", 1.0, 61))
    found = calibrate_each(detector, alone, ["brain_mri"], unified=True, **OPTIONS)
    assert calibration_for(stored(found), "brain_mri") is not None
    with pytest.raises(ValueError, match="no thresholds for 'liver_ct'"):
        calibration_for(stored(found), "liver_ct")


def packager(
    detector: MCMIADDetector,
    folder: Path,
    training: FeatureDataset,
    held_out: FeatureDataset,
    **options: Any,
) -> Packager:
    checkpoints: Any = SimpleNamespace(best="best.pt", load_network=lambda _: {"best_epoch": 4})
    method = Method()
    return Packager(
        detector=detector,
        prior=encode_hashing(["healthy"], dim=32),
        checkpoints=checkpoints,
        training_data=training,
        calibration_data=held_out,
        path=folder / "model.pt",
        training={"modality": "unified"},
        method=method,
        chooser=ScoreChooser(method=method, cases=[], validation=held_out, modality="unified"),
        **OPTIONS,
        **options,
    )


def test_training_without_held_out_normals_of_a_modality_is_refused_before_it_starts(
    detector: MCMIADDetector, tmp_path: Path, both: FeatureDataset
) -> None:
    packager(detector, tmp_path, both, both).check()
    only_brain = kept(("brain_mri", 1.0, 61))
    packager(detector, tmp_path, only_brain, both).check()
    with pytest.raises(CalibrationError, match="normal slices of liver_ct in the validation"):
        packager(detector, tmp_path, both, only_brain).check()
    anomalous = kept(("brain_mri", 1.0, 61), ("liver_ct", 3.0, 1))  # its one slice is anomalous
    with pytest.raises(CalibrationError, match="liver_ct"):
        packager(detector, tmp_path, both, anomalous).check()
    assert not list(tmp_path.iterdir())


def test_package_and_metadata_carry_the_thresholds_of_every_modality(
    detector: MCMIADDetector, tmp_path: Path, both: FeatureDataset
) -> None:
    detector.encoder.provenance.setdefault("weights", "random")
    metadata = tmp_path / "metadata.json"
    metadata.write_text('{"name": "kept"}')
    packager(detector, tmp_path, both, both, metadata=metadata).run()
    loaded = load_package(tmp_path / "model.pt", modality="unified")
    assert loaded.trained_with["modalities"] == ["brain_mri", "liver_ct"]
    for name in ("brain_mri", "liver_ct"):
        shares = shares_above(loaded, both, name, heat_unit(loaded.calibration, name))
        assert np.mean(np.array(shares) <= RATE) >= 0.5
        assert max(shares) > RATE
    told = json.loads(metadata.read_text())
    assert told["name"] == "kept"
    for name, thresholds in told["calibration"]["modalities"].items():
        carried = calibration_for(loaded.calibration, name)
        assert carried is not None
        assert thresholds == carried.to_dict(scores=False)
        assert len(carried.slice_scores) == carried.normal_slices
        above = np.mean(np.array(carried.slice_scores) > carried.slice_threshold)
        assert above <= OPTIONS["false_positive_rate"]
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "brain_mri: pixel threshold" in card
    assert "liver_ct: pixel threshold" in card


def test_names_of_studies_stay_out_of_the_package_and_the_metadata(
    detector: MCMIADDetector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    detector.encoder.provenance.setdefault("weights", "random")
    (tmp_path / "metadata.json").write_text("{}")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(10, 120, 7, 7))
    features[3] = 9 * rng.random((120, 7, 7))
    records = [SliceRecord(f"case_{i}", 0, False, f"name_{i}", "brain_mri") for i in range(10)]
    data = kept_features(features, records=records, size=SIZE)
    paths = {"metadata": tmp_path / "metadata.json", "studies_path": tmp_path / "studies.csv"}
    packager(detector, tmp_path, data, data, **paths).run()
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "case_3" not in card
    listed = (tmp_path / "odd_studies.csv").read_text()
    for part in ("training", "held-out"):
        assert f"{part},case_3," in listed
        assert f"odd healthy study among the {part} ones: case_3" in caplog.text
    carried = load_package(tmp_path / "model.pt", modality="unified").trained_with
    assert carried["odd_studies"] == {"training": 1, "held-out": 1}
    for file in ("model.pt", "metadata.json"):
        assert b"case_3" not in (tmp_path / file).read_bytes()
