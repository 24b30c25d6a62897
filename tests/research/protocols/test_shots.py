from __future__ import annotations

import pytest

from mcmiad_monai.research.protocols.shots import choose_shots


def test_shots_are_seeded_normal_and_of_different_patients() -> None:
    cases = [{"case": f"c{k}", "patient": f"p{k // 3}", "anomalous": k % 3 == 0} for k in range(12)]
    four = choose_shots(cases, 4, seed=0)
    assert len({case["patient"] for case in four}) == 4
    assert not any(case["anomalous"] for case in four)
    assert four == choose_shots(cases, 4, seed=0)
    assert any(choose_shots(cases, 4, seed=s) != four for s in range(1, 4))
    assert len({case["case"] for case in choose_shots(cases, 8, seed=1)}) == 8
    with pytest.raises(ValueError, match="9 normal images were asked for; there are 8"):
        choose_shots(cases, 9, seed=0)
