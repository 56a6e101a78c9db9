"""Capped swaps: at most so many a step, never into the tier's reserve, and whoever is left out goes first."""

from __future__ import annotations

from typing import Any

import pytest
from tests.engine.fake import alone, make_engine
from tests.scheduling.asks import asking

from hasten.engine.config import EngineConfig
from hasten.engine.scheduling.base import Direction, StepPlan, Transfer, Work, WorkKind
from hasten.engine.scheduling.capped_swaps import CappedSwaps, Options
from hasten.engine.sequence import State
from hasten.engine.technique import ConfigError


class Watched(CappedSwaps):
    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.given: list[tuple[list[Transfer], int]] = []

    def plan(self, view: Any, plan: StepPlan, short: int) -> list[Transfer]:
        transfers = super().plan(view, plan, short)
        if transfers:
            self.given.append((transfers, view.host_room))
        return transfers


@pytest.mark.parametrize("host_blocks", [0, 12, 60])
def test_pressure_moves_few_at_a_time_and_everybody_gets_what_is_theirs(host_blocks: int) -> None:
    policy = Watched(Options(swaps=2, watermark=0.25, swap_from=1))
    engine = make_engine(blocks=16, host_blocks=host_blocks, rows=8, reuse=False, residency=policy)
    made = [asking(f"r{i}", prompt=8 + i, tokens=40) for i in range(7)]
    for one in made:
        engine.add(one)
    got: dict[str, list[int]] = {}
    steps = 0
    while engine.unfinished:
        for delta in engine.step():
            got.setdefault(delta.request_id, []).extend(delta.tokens)
        engine.ledger.audit()
        steps += 1
        assert steps < 2000
    assert all(got[one.id] == alone(one)[0] for one in made)
    assert policy.given
    for transfers, room in policy.given:
        out = [t for t in transfers if t.direction is Direction.OUT]
        assert len(out) <= 2 and sum(t.direction is Direction.IN for t in transfers) <= 2
        assert not out or room - sum(len(t.sequence.view.blocks or t.sequence.stored) for t in out) >= 0
    moved = {t.direction for transfers, _ in policy.given for t in transfers}
    assert (Direction.OUT in moved) == (host_blocks > 0)


def running(count: int, host_blocks: int) -> tuple[Any, list[Any]]:
    engine = make_engine(blocks=40, host_blocks=host_blocks, rows=16, reuse=False, chunk=64, max_length=150)
    for number in range(count):
        engine.add(asking(f"r{number}", prompt=12, tokens=100))
    engine.step()
    while not all(seq.decoding for seq in engine.ledger.sequences.values()):
        engine.step()
    return engine, list(engine.ledger.sequences.values())


def test_whoever_is_left_out_yields_first_and_for_waiting_ones_nobody_else() -> None:
    engine, seqs = running(6, 60)
    view = engine._planner
    policy = CappedSwaps(Options(swaps=4, swap_from=1))
    engine.add(asking("new", prompt=60))
    engine._inbox.empty_into(engine.ledger)
    (waiting,) = [seq for seq in view.sequences if seq.state is State.WAITING]
    plan = StepPlan([Work(seq, 1, WorkKind.DECODE) for seq in seqs[1:]] + [Work(waiting, 60, WorkKind.PREFILL)])
    transfers = policy.plan(view, plan, 30)
    assert [(t.sequence, t.direction) for t in transfers] == [(seqs[0], Direction.OUT)]


def test_the_tier_keeps_its_reserve_and_the_rest_is_recomputed() -> None:
    engine, seqs = running(6, 12)
    view = engine._planner
    plan = StepPlan([Work(seqs[0], 1, WorkKind.DECODE)])
    blocks = len(seqs[-1].view.blocks)
    policy = CappedSwaps(Options(swaps=4, swap_from=1, watermark=1 - 1.5 * blocks / 12))
    transfers = policy.plan(view, plan, 100)
    assert [t.direction for t in transfers] == [Direction.OUT] + [Direction.DROP] * 3
    assert [t.sequence for t in transfers] == seqs[:1:-1][:4], "the worst rank first"


def test_what_a_prompt_takes_in_this_step_is_not_kept_for_it_again() -> None:
    engine, seqs = running(3, 60)
    engine.ledger.swap_out(seqs[0])
    while seqs[0].state is not State.SWAPPED:
        engine.ledger.settle(wait=True)
    engine.add(asking("new", prompt=140))
    engine._inbox.empty_into(engine.ledger)
    view = engine._planner
    (waiting,) = view.in_state(State.WAITING)
    plan = StepPlan([Work(seq, 1, WorkKind.DECODE) for seq in seqs[1:]] + [Work(waiting, 140, WorkKind.PREFILL)])
    need = view.blocks_needed(waiting, 140)
    assert len(seqs[0].stored) + 2 <= view.free_blocks - need <= need, "enough for who comes back, not for the prompt twice"
    transfers = CappedSwaps(Options(reserve=0)).plan(view, plan, view.short(plan))
    assert [(t.sequence, t.direction) for t in transfers] == [(seqs[0], Direction.IN)]


def test_bad_knobs_are_refused() -> None:
    for knob, message in (
        ("swaps=0", "swaps must be at least 1"),
        ("swap_from=-1", "swap_from must be"),
        ("watermark=1", "watermark must be a share"),
        ("reserve=-0.1", "reserve must be a share"),
    ):
        with pytest.raises(ConfigError, match=message):
            EngineConfig.build(with_=[f"capped-swaps:{knob}"]).make("capped-swaps")
