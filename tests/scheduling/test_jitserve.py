"""The parts of JITServe together: exact under any arrivals, alike in shortcuts of simulation, and nobody waits for ever."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from tests.engine.fake import alone, make_engine
from tests.engine.test_steady import engine as simulated
from tests.scheduling.asks import asking, ends

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.request import SLO, AppContext, Request, SamplingParams
from hasten.engine.scheduling import capped_swaps, frames, goodput_density
from hasten.engine.technique import ConfigError

SLOS = (
    SLO(),
    SLO(ttft_s=0.05, tpot_s=0.02),
    SLO(tpot_s=0.01),
    SLO(deadline_s=0.4),
    SLO(deadline_s=3.0),
    SLO(ttft_s=0.5, tpot_s=0.1, deadline_s=2.0),
)


def parts(frame: int = 4, **knobs: Any) -> dict[str, Any]:
    return {
        "order": goodput_density.GoodputDensity(goodput_density.Options(frame=frame)),
        "batching": frames.Frames(frames.Options(frame=frame, **{"chunk": 16, "shrink": 1, **knobs})),
        "residency": capped_swaps.CappedSwaps(capped_swaps.Options(swap_from=8, swaps=2)),
    }


@example(  # one row: whoever makes way for a member that then gets no memory must go on itself
    jobs=[
        (5, 8, 2, SLO(ttft_s=0.5, tpot_s=0.1, deadline_s=2.0), "", 5, None),
        (8, 24, 3, SLO(deadline_s=0.4), "v", 0, None),
        (11, 26, 3, SLO(ttft_s=0.5, tpot_s=0.1, deadline_s=2.0), "v", 6, None),
        (27, 10, 1, SLO(deadline_s=0.4), "v", 6, None),
    ],
    blocks=12,
    host=0,
    shape=(39, 1, 27),
    frame=1,
    pool=1.0,
    reuse=False,
)
@settings(
    max_examples=25,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    jobs=st.lists(
        st.tuples(
            st.integers(1, 50),
            st.integers(1, 30),
            st.sampled_from([1, 1, 1, 2, 3]),
            st.sampled_from(SLOS),
            st.sampled_from(["", "", "v", "w"]),
            st.integers(0, 6),
            st.sampled_from([None, None, None, 1, 5]),
        ),
        min_size=1,
        max_size=10,
    ),
    blocks=st.integers(12, 40),
    host=st.sampled_from([0, 8, 40]),
    shape=st.tuples(st.integers(8, 70), st.integers(1, 8), st.integers(1, 40)),
    frame=st.integers(1, 9),
    pool=st.sampled_from([1.0, 1.5, 3.0]),
    reuse=st.booleans(),
)
def test_any_schedule_gives_what_each_request_gets_alone(
    jobs: list[Any], blocks: int, host: int, shape: tuple[int, int, int], frame: int, pool: float, reuse: bool
) -> None:
    tokens, rows, chunk = shape
    engine = make_engine(
        blocks=blocks, host_blocks=host, tokens=tokens, rows=rows, reuse=reuse, max_length=96,
        **parts(frame, chunk=chunk, pool=pool),
    )  # fmt: skip
    made: list[Request] = []
    out, cancelled = [], set()
    for number, (prompt, count, n, slo, workflow, wait, cancel) in enumerate(jobs):
        sampling = SamplingParams(max_tokens=count, temperature=0.8 if n > 1 else 0.0, seed=number, n=n)
        app = AppContext(application="app", workflow=workflow)
        made.append(Request(id=f"r{number}", prompt=np.arange(prompt) % 37, sampling=sampling, slo=slo, app=app))
        engine.add(made[-1])
        for step in range(wait):
            out += engine.step()
            engine.clock.sleep(0.01)
            engine.ledger.audit()
            if step == cancel:
                engine.cancel(made[-1].id)
                cancelled.add(made[-1].id)
    steps = 0
    while engine.unfinished:
        out += engine.step()
        engine.clock.sleep(0.01)
        engine.ledger.audit()
        steps += 1
        assert steps < 3000, "the engine does not come to an end"
    got: dict[tuple[str, int], list[int]] = {}
    for delta in out:
        assert delta.error is None, delta.error
        got.setdefault((delta.request_id, delta.index), []).extend(delta.tokens)
    for one in made:
        for index, whole in enumerate(alone(one, max_length=96)):
            mine = got.get((one.id, index), [])
            assert mine == (whole[: len(mine)] if one.id in cancelled else whole)
    pool_ = engine.ledger.books.pool
    assert pool_.available == pool_.blocks
    assert engine.events.counts[Kind.PLAN_REFUSED] == 0, "a plan was refused"


def drive(engine: Any, seed: int) -> dict[str, np.ndarray]:
    """Replay random requests with objectives; the events."""
    random = np.random.default_rng(seed)
    waiting = []
    at = 0.0
    for number in range(24):
        at += float(random.choice([0.0, random.exponential(0.3)]))
        waiting.append(
            Request(
                id=str(number),
                prompt=random.integers(1, 900, int(random.integers(1, 90))),
                sampling=SamplingParams(max_tokens=int(random.integers(1, 110)), temperature=0, ignore_eos=True, seed=number),
                slo=SLOS[random.integers(len(SLOS))],
                app=AppContext(application="app", workflow=str(random.choice(["", "v", "w"]))),
                arrival_s=at,
            )
        )
    while waiting or engine.unfinished:
        while waiting and waiting[0].arrival_s <= engine.clock.now():
            engine.add(waiting.pop(0))
        next_s = waiting[0].arrival_s if waiting else float("inf")
        if engine.unfinished:
            engine.step(next_s)
        else:
            engine.clock.sleep(next_s - engine.clock.now())
    engine.ledger.audit()
    return engine.events.columns()


@pytest.mark.parametrize("seed", range(0, 24, 3))
def test_steps_taken_together_leave_the_same_events(seed: int) -> None:
    with_ = (f"jitserve,goodput-density:frame={5 + seed},frames:frame={7 + seed}:shrink=2:pool=1.5,capped-swaps:swap_from=16",)
    blocks, host = (40, 400)[seed % 2], (0, 60)[seed // 2 % 2]
    settings_: Any = {"kv__host_bytes": 1} if host else {}
    events = drive(simulated(False, blocks, with_, host, **settings_), seed)
    expected = drive(simulated(True, blocks, with_, host, **settings_), seed)
    for name, column in expected.items():
        assert np.array_equal(events[name], column), name


def test_the_preset_names_its_parts_and_leaves_lengths_to_others() -> None:
    config = EngineConfig.build(with_=["jitserve,frames:frame=20,capped-swaps:swaps=2"])
    found = config.scheduling
    assert (found.order, found.batching, found.residency) == ("goodput-density", "frames", "capped-swaps")
    assert config.make("frames")._options.frame == 20
    with pytest.raises(ConfigError, match="both decide"):
        EngineConfig.build(with_=["jitserve,whole-prompts"])
    EngineConfig.build(with_=["jitserve,length-limit"])


@pytest.mark.parametrize("patience_s", [None, 3.0])
def test_nobody_waits_for_ever_where_patience_has_an_end(patience_s: float | None) -> None:
    """One that is hopeless from the start, among others of which a worthier one arrives at every step."""
    engine = make_engine(rows=2, reuse=False, patience_s=patience_s, **parts(frame=3, pool=1.0))
    engine.add(asking("hopeless", SLO(deadline_s=1e-3), prompt=40, tokens=5, arrival_s=-5.0))
    ended: list[str] = []
    for number in range(120):
        engine.add(asking(f"r{number}", SLO(ttft_s=500.0, tpot_s=9.0), tokens=6))
        ended += ends(engine.step())
        engine.clock.sleep(0.1)
        if "hopeless" in ended:
            break
    assert ("hopeless" in ended) == (patience_s is not None)
    if patience_s is not None:
        # Patience, a frame until it is a member, its prompt in chunks, its tokens, and steps it may have lost to a full one.
        assert number * 0.1 <= patience_s + 0.1 * (3 + 3 + 5 + 6)
