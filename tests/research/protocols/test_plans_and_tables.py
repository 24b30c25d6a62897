from __future__ import annotations

from typing import Any

import pytest

from mcmiad_monai.research.protocols.laboratory import Experiment
from mcmiad_monai.research.protocols.plans import ablations, experiments
from mcmiad_monai.research.protocols.published import (
    TABLE_1_PAPER,
    TABLE_1_UNIFIED,
    TABLE_4,
    TABLE_SETS,
)
from mcmiad_monai.research.protocols.scores import SCORES, score_name, scores_of
from mcmiad_monai.research.protocols.tables import (
    Results,
    published,
    spread,
    table_1,
    table_2,
    table_4,
)
from mcmiad_monai.training.method import Method, preset

ALL = ("brain", "liver", "resc", "oct2017")


def report(
    name: str, figures: dict[str, tuple[float | None, float | None]], *, seed: int = 0
) -> dict[str, Any]:
    """A finished experiment with these image and pixel AUROCs of sets, whatever the score."""
    method = Method()
    scores = {
        which: {score: {"image_auroc": image, "pixel_auroc": pixel} for score in SCORES}
        for which, (image, pixel) in figures.items()
    }
    return {
        "experiment": {"name": name, "seed": seed, "shots": None, "score": score_name(method)},
        "results": {which: {"scores": figures} for which, figures in scores.items()},
        "parameters": 2_960_404,
    }


def test_tables_share_their_runs() -> None:
    plans = experiments(ALL, Method(), seeds=[0, 1, 2])
    folders = [plan.folder for plan in plans]
    assert len(set(folders)) == len(folders)
    base = [p for p in plans if p.name == "w/ CLIP fusion"]
    assert len(base) == 3 * 4
    unified = [p for p in plans if p.name == "unified"]
    assert [p.sets for p in unified] == [("liver", "brain", "resc")] * 3
    one_shot = [p for p in plans if p.shots == 1]
    assert {p.sets for p in one_shot} == {(name,) for name in ALL}


@pytest.mark.parametrize(("tables", "count"), [([1], 5), ([2], 4), ([3], 4), ([1, 2, 4], 5 + 24)])
def test_only_what_a_table_needs_is_run(tables: list[int], count: int) -> None:
    assert len(experiments(ALL, Method(), tables=tables, seeds=[0])) == count


def test_ablations_change_one_thing_each() -> None:
    method = Method()
    variants = ablations(method, {"other": "weights.safetensors"})
    assert not variants["w/o CLIP fusion"].head["use_text_fusion"]
    assert variants["prior of 15 prompts"].head == {"fusion_mode": "prompts"}
    assert variants["no jitter"].head == {"jitter_scale": 0.0}
    assert variants["encoder other"].weights == "weights.safetensors"
    assert method not in variants.values()
    assert len({str(v) for v in variants.values()}) == len(variants)


def test_folder_tells_options_apart_and_not_names() -> None:
    first, *_ = experiments(["brain"], Method(), tables=[1], seeds=[0])
    same, *_ = experiments(["brain"], Method(), tables=[4], seeds=[0])
    other, *_ = experiments(["brain"], Method(max_epochs=99), tables=[1], seeds=[0])
    assert first.folder == same.folder
    assert first.folder != other.folder
    assert first.folder.startswith("brain_seed0_")


def test_experiments_of_the_paper_are_found_by_the_names_that_they_always_had() -> None:
    paper = Experiment(name="x", sets=("brain",), method=Method())
    assert paper.folder == "brain_seed0_33444fb65b"
    few = Experiment(name="x", sets=("brain",), method=Method(pool="area"), shots=1)
    assert few.folder == "brain_1shot_seed0_85dd4abe8b"
    parts = [Method(parts="both", score=score) for score in ("head", "auto", "memory-cosine")]
    folders = {Experiment(name="x", sets=("brain",), method=method).folder for method in parts}
    assert len(folders | {paper.folder}) == 4


def test_ablations_of_a_memory_are_those_of_the_encoder() -> None:
    memory = Method(parts="memory", score="auto")
    variants = ablations(memory, {"other": "weights.safetensors"})
    assert list(variants) == ["area pooling", "encoder other"]


def test_unknown_tables_and_no_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[5\]"):
        experiments(ALL, Method(), tables=[1, 5])
    with pytest.raises(ValueError, match="one seed"):
        experiments(ALL, Method(), seeds=[])


def test_unknown_options_of_a_method_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'epochs' is no option.* Did you mean max_epochs"):
        Method().with_options(epochs=3)
    with pytest.raises(ValueError, match="both, mse or cos"):
        Method(score_terms="S")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        Method(max_epochs=0)
    with pytest.raises(ValueError, match=r"'papers' is not known; choose one of .*'paper'"):
        preset("papers")


def test_score_that_no_table_names_is_reported_under_a_name_of_its_own() -> None:
    assert score_name(Method()) == "S_MSE + S_cos (Eq. 6)"
    assert score_name(preset("default", score="head", top_k=0.01)) == "S_cos"
    other = Method(mse_weight=0.3)
    assert scores_of(other)[score_name(other)] == other.score_options()
    assert list(SCORES) == [name for name in scores_of(other) if name != score_name(other)]


def test_scores_are_those_of_the_parts_that_a_method_has() -> None:
    head = list(SCORES)
    assert list(scores_of(preset("default"))) == [*head, "memory-cosine", "memory-l2"]
    assert score_name(preset("default")) == "score of the method"  # it is chosen after training
    one = Method(parts="memory", score="memory-cosine")
    assert list(scores_of(one)) == ["memory-cosine"]
    assert score_name(one) == "memory-cosine"
    smoothed = Method(parts="both", score="memory-l2", smooth_sigma=6.0)
    assert list(scores_of(smoothed)) == [*head, "memory-l2", "score of the method"]


def test_published_averages_are_those_of_the_paper() -> None:
    # but for 96.0, which the paper prints as 96.1
    assert [published(TABLE_1_PAPER, TABLE_SETS, k) for k in (0, 1)] == [
        "82.3",
        "96.0",
    ]  # it prints 96.1
    printed = {"DRAEM": (60.0, 54.1), "UniAD": (78.5, 96.4), "DiAD": (80.4, 95.9)}
    for name, pair in printed.items():
        for which in (0, 1):
            assert float(published(TABLE_1_UNIFIED[name], TABLE_SETS, which)) == pytest.approx(
                pair[which], abs=0.051
            )


@pytest.mark.parametrize(
    ("values", "text"), [([], "–"), ([50.04], "50.0"), ([10, 20, 30], "20.0 ± 10.0")]
)
def test_spread_is_mean_and_standard_deviation(values: list[float], text: str) -> None:
    assert spread(values) == text


def test_table_1_averages_over_the_papers_sets_alone() -> None:
    figures = {
        "liver": (0.7, 0.9),
        "brain": (0.8, 0.9),
        "resc": (0.9, 0.9),
        "oct2017": (0.1, None),
    }
    table = table_1(Results([report("w/ CLIP fusion", figures)]))
    rows = {row[0]: row[-1] for row in table.rows[:6]}
    assert rows["Average"] == "80.0"
    assert rows["Retina (OCT2017)"] == "10.0"
    assert table.rows[-2][-1] == "–"  # pixels of OCT2017
    assert table.markdown().count("\n|") == len(table.rows) + 2


def test_average_of_an_incomplete_benchmark_is_left_open() -> None:
    table = table_1(Results([report("w/ CLIP fusion", {"brain": (0.8, 0.9)})]))
    assert {row[0]: row[-1] for row in table.rows}["Average"] == "–"


def test_table_2_counts_parameters() -> None:
    reports = [
        report("w/ CLIP fusion", {name: (0.8, 0.9)}, seed=s) for name in TABLE_SETS for s in (0, 1)
    ]
    assert table_2(Results(reports)).rows[-1] == ("ours", "2.96", "85.0 ± 0.0")


def test_table_4_has_no_rows_of_scores_that_were_not_measured() -> None:
    found = report("w/ CLIP fusion", {"brain": (0.8, 0.9)})
    found["results"]["brain"]["scores"] = {"memory-l2": {"image_auroc": 0.7, "pixel_auroc": None}}
    rows = [row for row in table_4(Results([found])).rows if row[0].startswith("score ")]
    assert rows == [("score memory-l2", "–", "–", "70.0", "–")]


def test_table_4_is_a_mean_over_sets_seed_by_seed() -> None:
    reports = [
        report("w/o CLIP fusion", {name: (value, 0.5)}, seed=seed)
        for seed, shift in ((0, 0.0), (1, 0.1))
        for name, value in (("brain", 0.6 + shift), ("liver", 0.8 + shift))
    ]
    row = table_4(Results(reports)).rows[0]
    assert row[1:3] == tuple(map(str, TABLE_4["w/o CLIP fusion"]))
    assert row[3] == "75.0 ± 7.1"
