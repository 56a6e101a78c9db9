"""Random arrivals for any scheduling parts: everybody gets what they would get alone, and no block is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from tests.engine.fake import alone, make_engine

from hasten.engine.events import Kind
from hasten.engine.loop import Engine
from hasten.engine.outputs import TokenDelta
from hasten.engine.request import SLO, Request, SamplingParams

JOBS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 25), st.sampled_from([1, 1, 1, 3]), st.integers(0, 5), st.integers(0, 3)),
    min_size=1,
    max_size=9,
)
"""Prompt, output, sequences, steps until the next arrival, priority; of each request."""


def request(id: str, prompt: int = 5, output: int = 4, priority: int = 0, n: int = 1, tpot_s: float | None = None) -> Request:
    sampling = SamplingParams(max_tokens=output, temperature=0.8 if n > 1 else 0.0, seed=1, n=n)
    tokens = (np.arange(prompt) + len(id) + ord(id[-1])) % 37
    return Request(id=id, prompt=tokens, sampling=sampling, priority=priority, slo=SLO(tpot_s=tpot_s))


def ends(engine: Engine) -> list[str]:
    """Run until all have ended, with the books checked after each step; the requests in order of their ends."""
    out: list[TokenDelta] = []
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
    assert all(delta.error is None for delta in out)
    return [delta.request_id for delta in out if delta.last]


def check(jobs: list[tuple[int, int, int, int, int]], cancelled: set[int] = frozenset(), **parts: Any) -> Engine:  # type: ignore[assignment]
    """Replay `jobs` on an engine made of `parts` (see `make_engine`), cancel some after the last arrival, and compare."""
    engine = make_engine(max_length=96, **parts)
    made, out, steps = [], [], 0
    for i, (prompt, output, n, wait, priority) in enumerate(jobs):
        made.append(request(f"r{i}", prompt, output, priority, n))
        engine.add(made[-1])
        for _ in range(wait):
            out += engine.step()
    for i in cancelled:
        engine.cancel(f"r{i}")
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
        steps += 1
        assert steps < 5000, "the engine does not come to an end"
    got: dict[str, dict[int, list[int]]] = {}
    for delta in out:
        assert delta.error is None, delta.error
        got.setdefault(delta.request_id, {}).setdefault(delta.index, []).extend(delta.tokens)
    for i, one in enumerate(made):
        whole = alone(one, max_length=96)
        for k, tokens in got[one.id].items():
            assert tokens == (whole[k][: len(tokens)] if i in cancelled else whole[k])
    pool = engine.ledger.books.pool
    assert pool.available == pool.blocks, "blocks are still held after the last request"
    assert engine.events.counts[Kind.PLAN_REFUSED] == 0
    return engine
