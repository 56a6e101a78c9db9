"""The sides of a claim on the virtual clock, and a point for real."""

from __future__ import annotations

import pytest

from hasten.lab.claims.sides import Side
from hasten.lab.claims.virtual import Point, Virtual, real_point
from hasten.lab.workloads.base import Workload
from hasten.lab.workloads.generate import poisson

SIDES = (Side("chunks"), Side("whole", ("whole-prompts",)))


def work(number: int) -> Workload:
    return poisson(rate=20.0, requests=24, prompt=200, output=8, longest=1024, seed=number)


def test_sides_run_on_the_same_arrivals_with_fresh_engines() -> None:
    seen: list[str] = []
    sides = Virtual(SIDES, attend=lambda name, engine: seen.append(f"{name} {engine.unfinished}"))
    rounds = list(sides.rounds(work, 2, lambda what, share: None))
    assert seen == ["chunks 0", "whole 0"] * 2
    for number, runs in enumerate(rounds):
        assert list(runs) == ["chunks", "whole"]
        assert all(run.simulated and run.workload.requests == work(number).requests for run in runs.values())
    assert sides.saturation("chunks", work(0)) > 20.0


def test_a_side_whose_requests_fail_is_no_side() -> None:
    sides = Virtual([Side("short", set_=("model.max_length=64",))])
    with pytest.raises(RuntimeError, match=r"short: \d+ requests of poisson failed, the first"):
        sides.replay("short", work(0))


def test_a_point_compares_what_was_measured_with_what_was_predicted() -> None:
    point = Point(1.0, {"a": {"x": [2.0, 4.0]}, "b": {"x": [1.0, 1.0]}}, {"a": {"x": [2.2, 4.0]}, "b": {"x": [1.0, 2.0]}})
    assert point.ratios("a", "b", "x") == [2.0, 4.0]
    assert point.error("x") == pytest.approx(0.05)
    assert point.error_of_ratio("a", "b", "x") == pytest.approx((0.1 + 0.5) / 2)


def test_a_real_point_measures_and_predicts_every_side() -> None:
    point = real_point(
        SIDES,
        lambda number: poisson(rate=20.0, requests=6, prompt=30, output=6, longest=200, seed=number),
        ["ttft_mean_s", "e2e_p99_s"],
        lambda what, share: None,
        rounds=1,
        common=("executor.threads=1", "model.max_length=256"),
        calibration_s=0.2,
    )
    assert point.rate > 0
    for found in (point.measured, point.predicted):
        assert set(found) == {"chunks", "whole"}
        assert all(len(values) == 1 and values[0] > 0 for figures in found.values() for values in figures.values())
