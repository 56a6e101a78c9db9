"""Saturation search and alternating comparison, on systems whose answers are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.runs import Life, run_of

from hasten.engine.technique import ConfigError
from hasten.lab.bench.compare import alternate, compare
from hasten.lab.bench.figures import FIGURES, best, present, show
from hasten.lab.bench.metrics import summary
from hasten.lab.bench.run import Run
from hasten.lab.bench.saturation import Probe, search, throughput
from hasten.lab.bench.targets import config_of
from hasten.lab.workloads.base import Workload


@given(limit=st.floats(0.01, 1e4), below=st.floats(1e-6, 16), tolerance=st.sampled_from([0.02, 0.1, 0.5]))
def test_the_search_brackets_the_limit(limit: float, below: float, tolerance: float) -> None:
    asked: list[float] = []
    start = limit * below

    def measure(rate: float) -> Probe:
        asked.append(rate)
        return Probe(rate, 1.0 if rate <= limit else 0.5)

    found = search(measure, start, tolerance=tolerance, most=64)
    assert found.rate <= limit < found.fails_at <= found.rate * (1 + tolerance) * (1 + 1e-9)
    assert [probe.rate for probe in found.probes] == sorted(asked)


def test_a_search_that_finds_no_end_says_so() -> None:
    assert search(lambda rate: Probe(rate, 1.0), 1.0, most=5).fails_at == float("inf")
    hopeless = search(lambda rate: Probe(rate, 0.0), 1.0)
    assert (hopeless.rate, hopeless.fails_at) == (0.0, 1 / 16), "slower and slower takes longer and longer"
    with pytest.raises(ValueError, match="above 0"):
        search(lambda rate: Probe(rate, 0.0), 0.0)


def test_throughput_is_of_all_at_once() -> None:
    run = run_of([Life(commits=[(1.0, 4)], end_s=1.0), Life(due_s=0.5, commits=[(4.0, 4)], end_s=4.0)])
    seen: list[Workload] = []

    def replay(workload: Workload) -> Run:
        seen.append(workload)
        return run

    assert throughput(replay, run.workload) == pytest.approx(0.5)
    assert {request.arrival_s for request in seen[0]} == {0.0} and len(seen[0]) == 2
    with pytest.raises(ConfigError, match=r"1 of 2 requests failed.*too busy"):
        throughput(lambda workload: dataclasses.replace(run, errors={1: "too busy"}), run.workload)


def test_rounds_alternate_and_stay_paired() -> None:
    order: list[str] = []
    done: list[int] = []

    def side(name: str, number: int) -> str:
        order.append(f"{name}{number}")
        return f"{name}{number}"

    pairs = alternate(lambda n: side("a", n), lambda n: side("b", n), 3, done.append)
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert pairs == [("a0", "b0"), ("a1", "b1"), ("a2", "b2")] and done == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="one round"):
        alternate(len, len, 0)  # type: ignore[arg-type]


def test_ratios_pair_the_runs_of_a_round() -> None:
    # The machine slows down threefold: the sides' medians drift, their ratio does not.
    rounds = [({"ttft_p50_s": drift, "failed": 0.0}, {"ttft_p50_s": drift / 2, "failed": 0.0}) for drift in (1.0, 2.0, 3.0)]
    by_key = {one.figure.key: one for one in compare(rounds)}
    ttft = by_key["ttft_p50_s"]
    assert ttft.ratio is not None and (ttft.ratio.middle, ttft.ratio.low, ttft.ratio.high) == (0.5, 0.5, 0.5)
    assert (ttft.a.middle, ttft.a.low, ttft.a.high) == (2.0, 1.0, 3.0) and ttft.better == "b"
    assert by_key["failed"].ratio is None and by_key["failed"].better == ""


def test_a_side_is_ahead_only_if_it_always_is() -> None:
    rounds = [({"requests_per_s": 1.0}, {"requests_per_s": 2.0}), ({"requests_per_s": 1.0}, {"requests_per_s": 0.9})]
    assert compare(rounds)[0].better == ""
    assert compare(rounds[:1])[0].better == "b"


def test_a_figure_missing_anywhere_is_not_compared() -> None:
    assert compare([({"queue_p50_s": 1.0}, {})]) == []


def test_every_figure_of_a_summary_is_known_or_left_out_on_purpose() -> None:
    lives = [Life(scheduled_s=0.1, commits=[(1.0, 1), (2.0, 3)], end_s=2.0, facts={"workflow": "w"})]
    run = run_of(lives, steps=[(1.0, 3)], total_blocks=4, cpu_s=1.0, peak_memory_bytes=1)
    known = {figure.key for figure in FIGURES}
    assert set(summary(run)) - known == {
        "completed", "duration_s", "gap_p999_s", "valid", "workflow_mean_s", "workflow_p95_s",
    }  # fmt: skip
    assert [figure.key for figure in present([{"goodput": 1.0, "failed": 0.0}])] == ["failed", "goodput"]


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.0004, "s", "400 µs"), (0.1234, "s", "123 ms"), (0.0, "s", "0 ms"), (12.3456, "s", "12.35 s"), (123.4, "s", "123 s"),
        (0.5, "share", "50.0%"), (3 * 2**30, "bytes", "3.00 GiB"), (1234.5, "/s", "1234 /s"), (1234567, "", "1,234,567"),
        (None, "s", "–"), (float("nan"), "s", "–"), (0.98765, "index", "0.988"),
    ],
)  # fmt: skip
def test_values_read_well(value: float | None, unit: str, said: str) -> None:
    assert show(value, unit) == said


def test_the_best_value_is_marked_only_where_there_is_one() -> None:
    by_key = {figure.key: figure for figure in FIGURES}
    assert best(by_key["ttft_p50_s"], [2.0, 1.0, None]) == [False, True, False]
    assert best(by_key["goodput"], [0.5, 0.5]) == [False, False]
    assert best(by_key["kv_mean"], [0.1, 0.2]) == [False, False]


def test_a_side_is_plain_or_techniques_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tuned.toml"
    file.write_text("[scheduling]\nmax_rows = 17\n[kv]\nblock_size = 32\n[techniques.whole-prompts]\n")
    config = config_of(str(file), None, [], ["kv.block_size=16"])
    assert config.scheduling.max_rows == 17 and config.kv.block_size == 16 and "whole-prompts" in config.techniques
    assert config.scheduling.batching == config_of("whole-prompts", None, [], []).scheduling.batching
    assert config_of("plain", "m", [], []).model.path == "m"
    with pytest.raises(ConfigError, match="No such file"):
        config_of(str(tmp_path / "missing.toml"), None, [], [])
