"""Histograms by application and stage: how groups lean on larger ones, and what is forgotten."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from tests.scheduling.learning import ask, make, teach

from hasten.engine.scheduling import length_histogram


def median(predictor: object, **about: object) -> float:
    return float(np.median(predictor.predict(ask("new", **about), 0)))  # type: ignore[attr-defined, arg-type]


def test_an_unknown_stage_is_like_its_application_and_an_unknown_application_like_all() -> None:
    predictor = make("length-histogram")
    teach(predictor, [20] * 100, app="a", stage="s")
    teach(predictor, [900] * 300, app="b", stage="s")
    assert median(predictor, app="a", stage="other") < 25
    assert median(predictor, app="b", stage="other") > 800
    assert median(predictor, app="c") > 800, "most outputs of all are those of b"


def test_a_few_outputs_move_a_group_off_the_larger_one() -> None:
    predictor = make("length-histogram")
    teach(predictor, [900] * 300, app="a", stage="long")
    medians = [median(predictor, app="a", stage="new")]
    for _ in range(4):
        teach(predictor, [10] * 4, app="a", stage="new")
        medians.append(median(predictor, app="a", stage="new"))
    assert medians[0] > 800 and medians[-1] < 12
    assert all(b <= a for a, b in pairwise(medians))


def test_the_least_recent_group_is_forgotten() -> None:
    predictor = make("length-histogram")
    for number in range(length_histogram.GROUPS):
        teach(predictor, [5], app=f"app{number}", stage="s")
    groups = predictor.groups()  # type: ignore[attr-defined]
    assert len(groups) == length_histogram.GROUPS and () in groups
    assert ("app0",) not in groups and (f"app{length_histogram.GROUPS - 1}", "s") in groups


def test_an_answer_is_refreshed_as_outputs_come() -> None:
    predictor = make("length-histogram", half_life=20)
    teach(predictor, [10] * 2000)
    assert median(predictor) < 12
    teach(predictor, [700] * 100)
    assert median(predictor) > 600
