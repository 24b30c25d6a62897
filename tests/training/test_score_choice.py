from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mcmiad_monai.data.feature_store import FeatureBlock, SliceRecord, pack
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.networks.score import SOURCES, AnomalyScore
from mcmiad_monai.training import score_choice
from mcmiad_monai.training.method import Method
from mcmiad_monai.training.score_choice import (
    ScoreChooser,
    candidates,
    choice_table,
    choose_score,
    labelled_rows,
    simplest,
    split_patients,
)
from mcmiad_monai.training.score_figures import SourceMaps, figures_of, source_units

GRID, SIZE = 8, 32
OPEN = Method(
    parts="both", score="auto", symmetry=None, smooth_sigma=None, image_score=None, encoder_name="x"
)


class Channels(nn.Module):
    """Stands for a detector: each channel of the features is the map of one source."""

    def __init__(self) -> None:
        super().__init__()
        self.score = AnomalyScore()
        self.encoder: Any = None

    def source_maps(
        self, features: Tensor, names: Iterable[str], _intensity: Tensor | None = None
    ) -> dict[str, Tensor]:
        return {name: features[:, SOURCES.index(name), None] for name in names}


def images(
    good: Iterable[str], *, patients: int = 6, masks: bool = True, modality: str = "retina_oct"
) -> FeatureDataset:
    """Two images a patient, normal and anomalous; the maps of good sources show the lesion."""
    rng = np.random.default_rng(0)
    features = rng.uniform(0.1, 1, (2 * patients, len(SOURCES), GRID, GRID))
    lesion = torch.zeros(2 * patients, 1, SIZE, SIZE, dtype=torch.bool)
    records = []
    for i in range(2 * patients):
        anomalous = bool(i % 2)
        records.append(SliceRecord(f"c{i}", i, anomalous, f"p{i // 2}", modality))
        for source in good:
            features[i, SOURCES.index(source)] *= 0.1
        if anomalous:
            row, column = rng.integers(1, GRID - 3, 2)
            lesion[i, :, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8] = masks
            for source in good:
                features[i, SOURCES.index(source), row : row + 2, column : column + 2] = 2.0
    block = FeatureBlock(
        records, features.astype(np.float16), pack(torch.ones_like(lesion)), pack(lesion), SIZE
    )
    return FeatureDataset.from_blocks([block], encoder=cast(Any, None))


def choose(data: FeatureDataset, method: Method = OPEN, modality: str = "retina_oct") -> Any:
    return choose_score(cast(Any, Channels()), data, candidates(method, modality))


@pytest.mark.parametrize("good", SOURCES)
def test_the_source_that_shows_the_lesions_is_chosen(good: str) -> None:
    choice = choose(images([good]))
    assert list(choice.options["sources"]) == [good]
    best = max(choice.table, key=lambda row: row.pixel_ap)
    assert good in best.sources
    assert best.pixel_ap > 0.8
    assert (choice.images, choice.patients) == (12, 6)


def test_without_masks_the_image_auroc_decides() -> None:
    choice = choose(images(["memory-l2"], masks=False))
    assert list(choice.options["sources"]) == ["memory-l2"]
    assert np.isnan(choice.table[0].pixel_ap)
    assert "| – | – |" in "\n".join(choice_table(choice))


def test_real_labels_choose_the_image_score_and_synthetic_anomalies_do_not() -> None:
    data = images(["memory-l2"])
    features, middle = data._blocks[0].features, SOURCES.index("memory-l2")
    features[1::2, middle] += 0.1  # diffuse: more on average
    features[::2, middle, 0, 0] = 8.0  # normal images have a hot corner
    options = candidates(OPEN.with_options(score="memory-l2"), "retina_oct")
    for by_labels, expected in ((True, "mean"), (False, "hottest")):
        choice = choose_score(cast(Any, Channels()), data, options, by_labels=by_labels)
        assert choice.options["image_score"] == expected


def test_maps_have_to_rank_images_too() -> None:
    data = images(["memory-cosine", "memory-l2"])
    features = data._blocks[0].features
    features[::2, SOURCES.index("memory-l2")] *= 10  # normal images are hotter all over
    assert list(choose(data).options["sources"]) == ["memory-cosine"]
    row = {tuple(r.sources): r for r in choose(data).table}[("memory-cosine",)]
    best = max(row.image_auroc.values())
    assert row.criterion == pytest.approx((row.pixel_ap + best) / 2)


def test_of_equals_the_simplest_is_taken() -> None:
    data = images(SOURCES)
    choice = choose(data)
    assert choice.options["sources"] == {"memory-cosine": 1.0}
    assert choice.options["symmetry"] == 0
    assert simplest([1, 2], {1: 0.5, 2: 0.5 + 0.9 * score_choice.MARGIN}.get, lambda i: i) == 1  # type: ignore[arg-type]
    assert simplest([1, 2], {1: 0.5, 2: 0.5 + 1.1 * score_choice.MARGIN}.get, lambda i: i) == 2  # type: ignore[arg-type]
    assert simplest([1, 2], {1: float("nan"), 2: 0.1}.get, lambda i: i) == 2  # type: ignore[arg-type]


def test_what_the_method_names_is_not_searched() -> None:
    everything = candidates(OPEN, "brain_mri")
    assert len(everything) == 9 * 2 * 2 * 4
    assert {o["symmetry"] for o in candidates(OPEN, "retina_oct")} == {0.0}
    memory = OPEN.with_options(parts="memory")
    assert {tuple(o["sources"]) for o in candidates(memory, "brain_mri")} == {
        ("memory-cosine",),
        ("memory-l2",),
        ("intensity",),
        ("memory-cosine", "intensity"),
        ("memory-l2", "intensity"),
    }
    on_flair = {tuple(o["sources"]) for o in candidates(memory, "brain_mri", by_labels=False)}
    assert ("memory-cosine", "intensity") in on_flair  # lesions are bright there
    assert ("intensity",) not in on_flair  # sees no dark lesion
    for modality in ("liver_ct", "retina_oct", "unified"):
        without_labels = candidates(memory, modality, by_labels=False)
        assert not any("intensity" in o["sources"] for o in without_labels)
    named = OPEN.with_options(score="memory-l2", symmetry=0.2, smooth_sigma=1.0, image_score="mean")
    assert candidates(named, "brain_mri") == [
        {
            "sources": {"memory-l2": 1.0},
            "symmetry": 0.2,
            "smooth_sigma": 1.0,
            "image_score": "mean",
        }
    ]
    fixed = candidates(OPEN.with_options(image_score="mean"), "brain_mri")
    assert {o["image_score"] for o in fixed} == {"mean"}
    assert len(fixed) == 36


def test_units_are_medians_over_patients_and_ignore_an_odd_one() -> None:
    data = images([], patients=5)
    features = data._blocks[0].features
    read = SourceMaps(cast(Any, Channels()), data, list(SOURCES))
    before = source_units(read, range(len(data)))
    features[0] *= 50  # the normal image of one patient
    after = source_units(read, range(len(data)))
    features[2:] *= 4
    scaled = source_units(read, range(len(data)))
    for name in SOURCES:
        assert after[name] == pytest.approx(before[name], rel=0.2)
        assert scaled[name] == pytest.approx(4 * after[name], rel=0.02)
        assert 0.8 < before[name] <= 1.01  # near the top of uniform maps


def test_figures_are_those_of_the_maps_themselves() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    data = images(["head"])
    read = SourceMaps(cast(Any, Channels()), data, ["head"], batch_size=5)
    way = {"sources": {"head": 1.0}, "symmetry": 0.4, "smooth_sigma": 2.0}
    [found] = figures_of(read, range(len(data)), [way], ["hottest", "mean"])
    rows = list(range(len(data)))
    score = AnomalyScore(**cast(Any, way), image_score="hottest")
    heat = score.place(data.batch(rows)[:, :1], data.foreground(rows))
    truth = data.lesion(rows)
    assert found.pixel_ap == pytest.approx(
        average_precision_score(truth.flatten(), heat.flatten()), abs=2e-3
    )
    assert found.pixel_auroc == pytest.approx(
        roc_auc_score(truth.flatten(), heat.flatten()), abs=1e-3
    )
    labels = [r.anomalous for r in data.records]
    by_image = score.slice_score(heat, data.foreground(rows))
    assert found.image_auroc["hottest"] == pytest.approx(roc_auc_score(labels, by_image))


def test_modalities_weigh_alike() -> None:
    brain, retina = images(["head"], modality="brain_mri"), images([])
    both = FeatureDataset.join({"brain_mri": brain, "retina_oct": retina})
    way = {"sources": {"head": 1.0}, "symmetry": 0.0, "smooth_sigma": 0.0}

    def figures(data: FeatureDataset) -> Any:
        read = SourceMaps(cast(Any, Channels()), data, ["head"])
        return figures_of(read, range(len(data)), [way], ["mean"])[0]

    each = [figures(brain).pixel_ap, figures(retina).pixel_ap]
    assert figures(both).pixel_ap == pytest.approx(np.mean(each))
    assert abs(each[0] - each[1]) > 0.2


def record(patient: int, *, anomalous: bool) -> SliceRecord:
    return SliceRecord(f"c{patient}", 0, anomalous, f"p{patient}", "retina_oct")


def test_patients_are_divided_where_each_half_has_enough_for_its_thresholds() -> None:
    few = [record(i, anomalous=False) for i in range(37)]
    assert split_patients(few) == (None, None)
    many = [record(i, anomalous=False) for i in range(39)]
    many += [record(i, anomalous=True) for i in range(30, 60)]
    deciding, others = split_patients(many, seed=1)
    assert deciding is not None
    assert others is not None
    assert len(others) == 19
    assert not deciding & others
    assert deciding | others == {r.patient for r in many}
    assert {f"p{i}" for i in range(39, 60)} <= deciding  # thresholds have no use for them
    assert split_patients(many[::-1], seed=1) == (deciding, others)


def test_labels_need_ten_images_of_five_patients_of_each_kind() -> None:
    normal = [record(i, anomalous=False) for i in range(10)]
    anomalous = [record(20 + i % 5, anomalous=True) for i in range(10)]
    assert labelled_rows(normal + anomalous) == list(range(20))
    assert labelled_rows(normal + anomalous[:9]) == []
    assert labelled_rows(normal[:9] + anomalous) == []
    assert labelled_rows(normal + [record(20 + i % 4, anomalous=True) for i in range(30)]) == []
    assert (
        labelled_rows(normal + anomalous, frozenset({"p1", *(f"p{i}" for i in range(20, 25))}))
        == []
    )
    many = labelled_rows(normal * 100 + anomalous)
    assert len(many) == score_choice.MOST_IMAGES + 10


class Small(Method):
    """Builds the score without an encoder."""

    def build_score(self, encoder: Any, **options: Any) -> AnomalyScore:
        assert encoder is None
        return AnomalyScore(**options)


SMALL = Small(parts="memory", score="auto", symmetry=None, smooth_sigma=None, image_score=None)


def chooser(validation: FeatureDataset, method: Method = SMALL) -> ScoreChooser:
    cases = [{"case": "c0", "image": "x"}]
    return ScoreChooser(
        method=method, cases=cases, validation=validation, modality="retina_oct", seed=3
    )


def test_labels_decide_where_there_are_enough_and_synthetic_anomalies_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def synthetic(*_: Any, **options: Any) -> FeatureDataset:
        asked.append(options["seed"])
        return images(["memory-cosine"])

    monkeypatch.setattr(score_choice, "synthetic_dataset", synthetic)
    for patients, good, by_labels in ((12, "memory-l2", True), (6, "memory-cosine", False)):
        detector = cast(Any, Channels())
        choice = chooser(images(["memory-l2"], patients=patients))
        choice.run(detector)
        assert list(detector.score.sources) == [good]
        assert choice.chosen["by_labels"] is by_labels
        assert choice.chosen["chosen_on_same_patients"]
        assert choice.threshold_patients is None
        assert choice.choice is not None
        text = "\n".join(choice_table(choice.choice))
        assert f"**{good}" in text
        assert ("synthetic" in text) is not by_labels
        assert "The same patients set the thresholds" in text
        assert text.count("\n| memory-") == (8 if by_labels else 4)
    assert asked == [3]


def test_patients_who_decide_do_not_set_the_thresholds() -> None:
    choice = chooser(images(["memory-l2"], patients=60))
    choice.run(cast(Any, Channels()))
    assert choice.choice is not None
    assert choice.threshold_patients is not None
    assert choice.choice.patients == 30 == len(choice.threshold_patients)
    assert not choice.chosen["chosen_on_same_patients"]
    assert "The same patients" not in "\n".join(choice_table(choice.choice))


def test_a_score_that_the_method_names_is_left_as_it_is() -> None:
    detector = cast(Any, Channels())
    before = detector.score
    choice = chooser(images(["head"], patients=60), SMALL.with_options(score="memory-l2"))
    choice.run(detector)
    assert detector.score is before
    assert choice.chosen == {}
    assert choice.threshold_patients is None


def test_nothing_to_choose_among_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        choose_score(cast(Any, Channels()), images([]), [])
