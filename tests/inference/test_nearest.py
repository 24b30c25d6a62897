"""Which normal place is nearest: the right cell of oblique, flipped and cropped studies."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, ornt_transform
from oblique import oblique_affine
from small_heads import small_detector

from mcmiad_monai import load
from mcmiad_monai.inference.nearest import NoMemoryError, share_above
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import empty_encoder
from mcmiad_monai.networks.memory import NormalMemory, prepare
from mcmiad_monai.networks.package import save_package
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.transforms import slice_batch

CODES = ["LPS", "PIR", "SLA", "RAI"]
GRID = 7
SHAPE = (70, 90, 14)
#: Box of the head, off the middle of the image, and a lesion in it, of an array in LPS.
HEAD = ((30, 66), (12, 60), (1, 13))
LESION = (55, 20, 5)
NORMAL_STUDY = 4


def head(*, lesion: bool = False) -> nib.Nifti1Image:
    """A noisy head; no part of it is like another."""
    rng = np.random.default_rng(0)
    values = np.zeros(SHAPE, np.float32)
    box = tuple(slice(*ends) for ends in HEAD)
    coarse = np.kron(rng.random((9, 12, 12)), np.ones((4, 4, 1)))
    values[box] = 200 + 100 * coarse + rng.random(coarse.shape)
    if lesion:
        x, y, z = LESION
        values[x - 3 : x + 4, y - 3 : y + 4, z] = 900
    return nib.Nifti1Image(values, oblique_affine("LPS"))


def turned(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    return image.as_reoriented(ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(codes)))


def voxel_of(image: nib.Nifti1Image, lps: tuple[int, ...]) -> tuple[int, ...]:
    """Where a voxel of the array in LPS lies in a turned image."""
    world = oblique_affine("LPS") @ [*lps, 1]
    return tuple(np.rint(np.linalg.solve(image.affine, world)[:3]).astype(int).tolist())


def save_model(path: Path, view: str, sources: dict[str, float], **held_out: Any) -> Path:
    """A model whose memory has every token of the head, by cell."""
    encoder = empty_encoder("test_efficientnet", grid=GRID, pool="area")
    training = {
        "modality": "brain_mri",
        "method": {"field_of_view": view, "context": 3},
        "memory": {"held_out_distances": held_out},
    }
    score = AnomalyScore(terms="cos", sources=sources)
    detector = MCMIADDetector(encoder, small_detector(encoder).head, score)
    save_package(path, detector, calibration={}, provenance={"training": training})
    image = load(path, device="cpu", engine="torch").prepare({"image": head(), "case": "head"})
    slices = range(*HEAD[2])
    with torch.no_grad():
        features = encoder(slice_batch(image["image"], list(slices), axis=2, context=3))
    spread = features.transpose(0, 1).flatten(1)
    mean, std = spread.mean(1), spread.std(1)
    cells = torch.cartesian_prod(
        torch.tensor([NORMAL_STUDY]), torch.tensor(list(slices)), torch.arange(GRID**2)
    )
    memories = {}
    for name in held_out:
        kept = prepare(features, mean, std, name, (len(mean),))
        memories[name] = NormalMemory.of_tokens(
            kept, mean=mean, std=std, distance=name, origin=cells
        )
    detector.set_memories(memories)
    save_package(path, detector, calibration={}, provenance={"training": training})
    return path


@pytest.fixture(scope="module", params=["whole", "foreground"])
def predictor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp(request.param) / "model.pt"
    save_model(path, request.param, {"memory-cosine": 1.0}, cosine=[0.01 * n for n in range(101)])
    return load(path, device="cpu", engine="torch")


@pytest.mark.parametrize("codes", CODES)
def test_a_place_of_a_normal_study_is_found_again_whatever_its_orientation(
    predictor: Any, codes: str
) -> None:
    image = turned(head(), codes)
    prediction = predictor(image)
    view = predictor.prepare({"image": head(), "case": "head"})["image"]
    for lps in [(34, 57, 3), (60, 16, 10), (50, 30, 6)]:
        found = prediction.nearest_normal(at=voxel_of(image, lps))
        assert found.at == voxel_of(image, lps)
        assert (found.study, found.slice) == (NORMAL_STUDY, lps[2])
        assert found.distance < 0.002
        assert found.share_of_normals > 0.99
        plane = np.array(view.shape[1:3])
        seen = [*(found.position * plane - 0.5), found.slice, 1]
        back = np.linalg.solve(oblique_affine("LPS"), view.affine.numpy() @ seen)
        assert (np.abs(back[:2] - lps[:2]) <= plane / GRID / 2 + 0.01).all()


@pytest.mark.parametrize("codes", CODES[1:3])
def test_the_hottest_place_is_the_lesion_and_far_from_all_normals(
    predictor: Any, codes: str
) -> None:
    image = turned(head(lesion=True), codes)
    prediction = predictor(image)
    hottest = prediction.nearest_normal()
    world = image.affine @ [*hottest.at, 1]
    x, y, z = np.linalg.solve(oblique_affine("LPS"), world)[:3]
    plane = predictor.prepare({"image": head(), "case": "head"})["image"].shape[1:3]
    assert abs(x - LESION[0]) < plane[0] / GRID + 1  # heat is as fine as a cell
    assert abs(y - LESION[1]) < plane[1] / GRID + 1
    assert abs(z - LESION[2]) < 1.1  # the next slices have it as a neighbour
    there = prediction.nearest_normal(at=voxel_of(image, LESION))
    away = prediction.nearest_normal(at=voxel_of(image, (34, 57, 5)))
    assert there.distance > 5 * away.distance


def test_normals_with_a_distance_are_counted_by_quantiles() -> None:
    quantiles = np.quantile(np.arange(1001) / 1000, np.linspace(0, 1, 101)).tolist()
    for distance in (0.0, 0.123, 0.5, 0.987, 1.0):
        assert share_above(distance, quantiles) == pytest.approx(1 - distance, abs=1e-6)
    assert share_above(1.5, quantiles) == 0
    assert share_above(0.2, [0.2, 0.2, 0.2, 0.4, 0.8]) == 1


@pytest.mark.parametrize("name", ["cosine", "l2"])
def test_the_memory_is_that_of_the_score(name: str, tmp_path: Path) -> None:
    sources = {"head": 1.0, f"memory-{name}": 1.0}
    save_model(tmp_path / "model.pt", "whole", sources, cosine=[0.0, 2.0], l2=[0.0, 99.0])
    prediction = load(tmp_path / "model.pt", device="cpu", engine="torch")(head(lesion=True))
    assert prediction.nearest_normal().memory == name


def test_threads_find_the_same(predictor: Any) -> None:
    prediction = predictor(head(lesion=True))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: prediction.nearest_normal(), range(8)))
    assert len(set(found)) == 1


def test_places_that_were_not_looked_at_are_refused(predictor: Any) -> None:
    prediction = predictor(head())
    for at in [(2, 2, 6), (50, 30, 0), (50, 30, 14), (-1, 30, 6)]:
        with pytest.raises(ValueError, match="did not look at voxel"):
            prediction.nearest_normal(at=at)


def test_a_model_without_a_memory_says_how_to_get_one(tmp_path: Path) -> None:
    save_model(tmp_path / "model.pt", "whole", {"head": 1.0})
    prediction = load(tmp_path / "model.pt", device="cpu", engine="torch")(head())
    with pytest.raises(NoMemoryError, match="mcmiad train --score memory-cosine"):
        prediction.nearest_normal()
