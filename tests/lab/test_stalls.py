"""What the claims about batching rules measure with."""

from __future__ import annotations

import os

import numpy as np
import pytest

from hasten.engine.events import Kind
from hasten.lab.bench.metrics import requests, summary
from hasten.lab.claims import capacities, stalls
from hasten.lab.claims.effective import SMOOTHING, effective, kept
from hasten.lab.claims.sarathi_serve import rereads
from hasten.lab.claims.sides import Side
from hasten.lab.claims.virtual import Virtual
from hasten.lab.workloads.base import Workload
from hasten.lab.workloads.transform import scale_load

SIDES = (Side("whole", ("whole-prompts",)), Side("splitfuse", ("splitfuse:tokens=256",)))


@pytest.fixture(scope="module")
def virtual() -> Virtual:
    return Virtual(SIDES, common=("scheduling.max_rows=32",))


def uniform(requests: int, rate: float, output: float, seed: int) -> Workload:
    return stalls.uniform(requests, rate, 200, 3000, output, seed)


def test_clients_in_turn_send_one_request_at_a_time() -> None:
    work = stalls.closed(3, 4, 200, 3000, 60.0, seed=2)
    assert len(work) == 12
    for client in range(3):
        mine = [r for r in work if r.id.startswith(f"{client},")]
        assert [r.parents for r in mine] == [(), *((r.id,) for r in mine[:-1])]
    assert all(200 <= r.prompt_tokens <= 3000 and r.output_tokens >= 8 for r in work)


def test_clients_ask_one_after_the_other_and_long_prompts_come_meanwhile() -> None:
    work = stalls.steady_and_long(3, 500, 4, 1.5, 100, 200, seed=1)
    long = stalls.long_ones(work)
    assert long.sum() == 4
    for client in range(3):
        mine = [r for r in work if r.id.startswith(f"client {client},")]
        assert sum(r.output_tokens for r in mine) == 500
        assert [r.parents for r in mine] == [(), *((r.id,) for r in mine[:-1])]
    prompts = [r for r, is_long in zip(work, long, strict=True) if is_long]
    assert all(100 <= r.prompt_tokens <= 200 for r in prompts)
    gaps = np.diff([r.arrival_s for r in prompts])
    assert (gaps > 0.4 * 1.5).all() and (gaps < 1.6 * 1.5).all()


@pytest.mark.parametrize("side", ["whole", "splitfuse"])
@pytest.mark.parametrize("gap_ms", [9, 12, 20])
def test_effective_throughput_counts_who_was_kept_up_with(virtual: Virtual, side: str, gap_ms: int) -> None:
    run = virtual.replay(side, uniform(40, 20.0, 60.0, 3))
    table, prompt_rate = requests(run), 20_000.0
    columns, expected = run.columns, []
    for number in range(40):
        mine = (columns["kind"] == Kind.TOKENS) & (columns["sequence"] == run.sequence[number])
        average, good = None, bool(table.ttft_s[number] <= table.prompt_tokens[number] / prompt_rate)
        for gap in np.diff(columns["time_s"][mine]):
            average = gap if average is None else (1 - SMOOTHING) * average + SMOOTHING * gap
            good &= bool(average <= gap_ms / 1e3 + 1e-12)
        expected.append(good)
    found = kept(run, prompt_rate, gap_ms / 1e3)
    assert found.tolist() == expected
    assert effective(run, prompt_rate, gap_ms / 1e3) == sum(expected) / summary(run)["duration_s"]


def test_capacity_is_where_the_objective_is_lost(virtual: Virtual) -> None:
    def work(count: int) -> Workload:
        return uniform(count, 10.0, 128.0, 5)

    def keeps(tbt_s: float, rate: float) -> tuple[bool, bool]:
        run = virtual.replay("whole", scale_load(work(max(20, round(5 * rate))), rate))
        late = requests(run).queue_s[len(run.workload) // 2 :]
        return summary(run)["gap_p99_s"] <= tbt_s, float(np.median(late)) <= capacities.QUEUE_S

    rate = capacities.capacity(virtual, "whole", work, 5.0, 0.1, 5.0, 0.1)
    assert rate > 0 and all(keeps(0.1, rate))
    endless = capacities.capacity(virtual, "whole", work, 5.0, 60.0, 5.0, 0.1)
    assert keeps(60.0, 2 * endless) == (True, False), "without an objective the queue is the limit"
    assert capacities.capacity(virtual, "whole", work, 5.0, 1e-6, 5.0, 0.1) == 0


def test_passes_vary_less_when_they_are_filled(virtual: Virtual) -> None:
    crowd = stalls.at_once(uniform(90, 1.0, 40.0, 2))
    assert stalls.variation(virtual.replay("splitfuse", crowd)) < 0.15 < 0.8 < stalls.variation(virtual.replay("whole", crowd))


def test_small_pieces_read_keys_again() -> None:
    for prompt, chunk in ((1000, 100), (1000, 300), (50, 100), (4096, 1)):
        naive = sum(start for start in range(0, prompt, chunk))
        assert rereads(prompt, chunk) == naive
    assert rereads(4000, 200) == pytest.approx(4000**2 / (2 * 200), rel=0.06)


@pytest.mark.skipif(not os.environ.get("HASTEN_DATA"), reason="HASTEN_DATA is not set")
def test_traces_are_successive_and_fit() -> None:
    one, two = capacities.trace(50, 100), capacities.trace(50, 150)
    assert len(one) == len(two) == 50
    assert not {r.id for r in one} & {r.id for r in two}
    assert all(r.prompt_tokens + r.output_tokens < capacities.CONTEXT for r in one)
