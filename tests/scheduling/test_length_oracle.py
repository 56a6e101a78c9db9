"""The oracle knows what a replay knows, and nobody else does."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine.fake import make_engine

from hasten.engine.request import BadRequest, Request, SamplingParams
from hasten.engine.scheduling.length_limit import LengthLimit
from hasten.engine.scheduling.length_oracle import LengthOracle


def request(id: str, ends: int | None, limit: int | None = 50) -> Request:
    return Request(id=id, prompt=np.arange(5), sampling=SamplingParams(max_tokens=limit, temperature=0), ends_after=ends)


def test_an_output_ends_where_the_replay_says_and_only_the_oracle_knows() -> None:
    for lengths, known in ((LengthOracle(), [7, 6, 5]), (LengthLimit(), [50, 49, 48])):
        engine = make_engine(lengths=lengths)
        engine.add(request("a", 7))
        engine._inbox.empty_into(engine.ledger)
        (seq,) = engine.ledger.sequences.values()
        seen = []
        for _ in range(3):
            seen.append(engine._planner.remaining_output(seq).max())
            engine.step()
        assert seen == known
        engine.run()
        assert engine.events.counts is not None and seq.output_length == 7


def test_the_limit_still_holds_and_no_length_is_no_end() -> None:
    engine = make_engine(lengths=LengthOracle())
    engine.add(request("cut", 30, limit=4))
    engine.add(request("free", None, limit=6))
    deltas = engine.run()
    count = {id: sum(len(d.tokens) for d in deltas if d.request_id == id) for id in ("cut", "free")}
    assert count == {"cut": 4, "free": 6}
    with pytest.raises(BadRequest, match="ends_after"):
        request("none", 0)
