"""Scoring predictions of lengths: what a perfect predictor gets, and what a wrong one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hasten.cli.lengths import app
from hasten.engine.request import Request
from hasten.engine.scheduling.lengths.saved import Arrays, Learning
from hasten.lab.bench.lengths import LEVELS, Example, _place, examples, of_all, score
from hasten.lab.workloads import jsonl
from hasten.lab.workloads.base import TimedRequest, Workload
from hasten.lab.workloads.generate import poisson


class Knows(Learning):
    """Predicts a fixed distribution, conditioned on what was produced."""

    def __init__(self, lengths: np.ndarray) -> None:
        super().__init__()
        self.lengths = np.sort(lengths)
        self.learned: list[int] = []

    def observe(self, request: Request, output: int, *, ended: bool) -> None:
        self.learned.append(output)

    def predict(self, request: Request, produced: int) -> np.ndarray:
        left = self.lengths[self.lengths > produced] - produced
        return np.quantile(left, (np.arange(64) + 0.5) / 64) if len(left) else np.array([1.0])

    def state(self) -> tuple[dict[str, Any], Arrays]:
        return {}, {"lengths": self.lengths}

    def restore(self, meta: dict[str, Any], arrays: Arrays) -> None:
        self.lengths = arrays["lengths"]


def known(outputs: list[int]) -> list[Example]:
    requests = [TimedRequest(id=str(i), arrival_s=0.0, prompt_tokens=8, output_tokens=o) for i, o in enumerate(outputs)]
    return examples(Workload(name="known", requests=requests))


def test_the_true_distribution_is_calibrated_and_a_wrong_one_is_not() -> None:
    random = np.random.default_rng(0)
    drawn = np.rint(random.lognormal(5, 1, 2000)).astype(int) + 1
    truth = np.rint(random.lognormal(5, 1, 5000)) + 1
    right = score(Knows(truth), [], known(drawn.tolist()))
    wrong = score(Knows(truth / 2), [], known(drawn.tolist()))
    assert set(right) == {0, 32, 128}
    for after in right:
        assert right[after].coverage_error < 0.025
        assert wrong[after].coverage_error > 0.1 and wrong[after].pinball > right[after].pinball
    assert right[0].asked == 2000 and right[128].asked == int((drawn > 128).sum())


def test_one_length_is_calibrated_too() -> None:
    found = score(Knows(np.full(10, 7.0)), [], known([7] * 50))[0]
    assert np.allclose(found.observed, LEVELS) and found.pinball == 0


def test_places_in_a_distribution() -> None:
    sample = np.array([1.0, 2.0, 2.0, 5.0])
    assert _place(sample, 2.0) == (0.25, 0.75)
    assert _place(sample, 0.5) == (0.0, 0.125) and _place(sample, 9.0) == (0.875, 1.0)
    low, high = _place(sample, 4.0)
    assert low == high == pytest.approx((3 - 0.5 + 2 / 3) / 4)


def test_outputs_are_learned_after_they_were_asked_about() -> None:
    predictor = Knows(np.arange(1.0, 50.0))
    score(predictor, known([3, 4]), known([5] * 30))
    assert predictor.learned == [3, 4] + [5] * 30


def test_blank_requests_say_nothing() -> None:
    requests = [TimedRequest(id="a", arrival_s=0, prompt_tokens=5, output_tokens=2, application="x", stage="y", tenant="z")]
    (found,) = of_all(examples(Workload(name="one", requests=requests)))
    assert (found.request.app.application, found.request.app.stage, found.request.tenant, found.output) == ("", "", "", 2)


def test_commands(tmp_path: Path) -> None:
    import orjson

    trace = tmp_path / "mine.jsonl"
    jsonl.write(poisson(requests=120, prompt=20, output=30, longest=200), trace)
    shown = CliRunner().invoke(app, ["show", str(trace), "--json", "--plot", str(tmp_path / "plot.png")])
    assert shown.exit_code == 0, shown.output
    rows = orjson.loads(shown.stdout)
    assert {row["predictor"] for row in rows} == {
        "histogram of all", "length-histogram", "length-similarity", "length-quantiles",
    }  # fmt: skip
    assert all(0 <= row["coverage_error"] < 0.5 and row["pinball"] > 0 for row in rows)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    table = CliRunner().invoke(app, ["show", str(trace)])
    assert table.exit_code == 0 and "length-quantiles" in table.output and "Pinball loss" in table.output
    kept = tmp_path / "kept"
    for _ in range(2):
        assert CliRunner().invoke(app, ["learn", str(trace), str(kept)]).exit_code == 0
    from tests.scheduling.learning import ask, make

    assert make("length-histogram", file=kept)._learned == 240  # type: ignore[attr-defined]
    assert make("length-histogram", file=kept).predict(ask(), 0) is not None
    other = CliRunner().invoke(app, ["learn", str(trace), str(kept), "--with", "length-quantiles"])
    assert other.exit_code == 2 and "was written by length-histogram" in " ".join(other.output.replace("│", " ").split())
    few = CliRunner().invoke(app, ["show", f"{trace}[0:10]"])
    assert few.exit_code == 2


def test_a_limit_hides_lengths_and_changes_nothing_else() -> None:
    from hasten.lab.claims.sides import Side
    from hasten.lab.claims.virtual import Virtual

    work = poisson(rate=20.0, requests=30, prompt=100, output=20, longest=300)
    plain, hidden = (Virtual([Side("plain")], limit=limit).replay("plain", work) for limit in (None, 1000))
    for name, column in plain.columns.items():
        assert np.array_equal(hidden.columns[name], column), name
    blind, told = (
        Virtual([Side("srpt", ("srpt",), ("scheduling.max_rows=1",))], limit=limit).replay("srpt", work)
        for limit in (1000, None)
    )
    assert not np.array_equal(blind.columns["sequence"], told.columns["sequence"]), "with its own limit each tells its length"
