"""Prefixes taken out and put back, round trips of their KV, and the throttled link that they are fetched over."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from hasten.engine.kv.bitstream.native import PATH
from hasten.engine.kv.bitstream.streaming import GivenUp
from hasten.engine.llm import LLM
from hasten.engine.request import SamplingParams
from hasten.lab.bench import kv_coding, kv_streaming
from hasten.lab.bench import kv_rounding as rounding
from hasten.lab.bench.kv_prefix import PrefixLab
from hasten.lab.bench.kv_quality import Questions
from hasten.lab.bench.throttled import MEGABIT, SLICE, SocketLink, ThrottledServer, Trace

WORDS = "The number of the quiet river is 7350. The keeper of the golden kettle came from the north, and said so. " * 6


@pytest.fixture(scope="module")
def lab() -> Iterator[PrefixLab]:
    llm = LLM("builtin-draft", set_=["kv.memory_bytes=16777216", "model.dtype=bfloat16"])
    yield PrefixLab(llm)
    llm.engine.executor.close()


@pytest.fixture
def tokens(lab: PrefixLab) -> Iterator[list[int]]:
    lab.forget()
    yield lab.llm.tokenizer.encode(WORDS)
    lab.forget()


def test_what_is_planted_is_what_was_read(lab: PrefixLab, tokens: list[int]) -> None:
    cached, half = lab.whole(len(tokens) - 20), lab.whole(len(tokens) // 2)
    lab.compute(tokens[:cached])
    whole, second = lab.read(tokens[:cached]), lab.read(tokens[:cached], half)
    exact = lab.nats(tokens, cached)
    lab.forget()
    with pytest.raises(LookupError):
        lab.read(tokens[:cached])
    lab.plant(tokens[:half], [plane[: half // lab.size] for plane in whole])
    lab.plant(tokens[:cached], second, half)
    assert all(np.array_equal(a, b) for a, b in zip(whole, lab.read(tokens[:cached]), strict=True))
    assert lab.nats(tokens, cached) == pytest.approx(exact, abs=0.05)
    done = lab.llm.generate([tokens], SamplingParams(max_tokens=1, temperature=0))[0]
    assert done.reused == cached
    lab.forget()
    lab.books.pool.audit()


def test_nats_are_those_of_the_engine(lab: PrefixLab, tokens: list[int]) -> None:
    cached = lab.whole(len(tokens) - 20)
    done = lab.llm.generate([tokens], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))[0]
    assert done.prompt_logprobs is not None
    scores = [-one.logprob for one in done.prompt_logprobs[cached + 1 :] if one is not None]
    lab.compute(tokens[:cached])
    assert lab.nats(tokens, cached) == pytest.approx(sum(scores), abs=0.2)
    assert lab.nats(tokens, cached, last=5) == pytest.approx(sum(scores[-5:]), abs=0.1)


def test_round_trips_lose_by_their_bits(lab: PrefixLab, tokens: list[int]) -> None:
    if not PATH.exists():
        pytest.skip("the library of entropy coding is not built")
    cached = lab.whole(len(tokens) - 20)
    lab.compute(tokens[:cached])
    planes = lab.read(tokens[:cached])
    values = np.concatenate([rounding.rows_of(plane).ravel() for plane in planes])

    def tried(trip: rounding.RoundTrip) -> tuple[float, float]:
        back, nbytes = trip(planes)
        error = np.concatenate([rounding.rows_of(plane).ravel() for plane in back]) - values
        return float(np.square(error).mean() / values.var()), 8 * nbytes / values.size

    (e8, b8), (e4, b4), (e2, b2) = tried(rounding.int8), tried(rounding.int4), tried(rounding.int2)
    ours, bits = tried(rounding.bitstream(lab.cos_sin, 0, tokens=lab.size * 2))
    assert e8 < 1e-4 < e4 < 0.02 < e2 and (b8, b4, b2) == (8.5, 5, 3)
    assert ours < e2 / 4 and bits < b4  # heads and statistics of so short a prefix included
    assert tried(rounding.plain) == (0, 16)


def test_answers_and_likelihoods_through_round_trips(lab: PrefixLab) -> None:
    asked = Questions(lab, {"recall:pairs=12": 3, "tracing:length=400": 2}, 1, 0, lambda what, done: None)
    plain, coarse = asked.through(rounding.plain), asked.through(rounding.int2)
    assert {task: len(right) for task, right in plain.right.items()} == {"recall:pairs=12": 3, "tracing:length=400": 2}
    assert plain.right == asked.through(rounding.plain).right
    assert coarse.bytes_a_token == asked.weighed(rounding.int2) == plain.bytes_a_token * 3 / 16
    assert len(asked.asked) > 5  # and texts
    assert coarse.nats > plain.nats + 0.05 and coarse.perplexity > plain.perplexity


# -- the link -----------------------------------------------------------------------------------------------------------


def test_a_trace_takes_its_time() -> None:
    trace = Trace([(1, 100), (2, 1000)])
    assert (trace.rate(0.5), trace.rate(1.5), trace.rate(3.2)) == (100, 1000, 100)
    assert trace.after(0.5, 50) == pytest.approx(1.0)
    assert trace.after(0.5, 550) == pytest.approx(1.5)
    assert trace.after(2.0, 1000 + 100 + 500) == pytest.approx(4.5)  # to the end, and into the second round
    assert Trace.drawn(3).steps == Trace.drawn(3).steps != Trace.drawn(4).steps
    assert all(2 * MEGABIT <= rate <= 1000 * MEGABIT for _, rate in Trace.drawn(3).steps)
    with pytest.raises(ValueError, match="some bandwidth"):
        Trace([(1, 0)])


@pytest.fixture
def server() -> Iterator[ThrottledServer]:
    payloads = {"small": [b"a" * 1000, b"b" * 10], "large": [bytes(20 * SLICE), b"c"]}
    server = ThrottledServer(payloads, Trace([(0.3, 100 * SLICE), (100, 10 * SLICE)]))
    yield server
    server.close()


def test_a_link_is_as_fast_as_its_trace(server: ThrottledServer) -> None:
    link = SocketLink(server.address)
    server.restart(0.0)
    assert link.get(1, "small", lambda so_far: True) == b"b" * 10
    server.restart(0.2)  # ten slices in 0.1 s, ten in 1 s
    began = time.perf_counter()
    assert link.get(0, "large", lambda so_far: True) == bytes(20 * SLICE)
    assert 1.0 <= time.perf_counter() - began < 2.0
    link.close()


def test_a_transfer_given_up_leaves_the_link_usable(server: ThrottledServer) -> None:
    link = SocketLink(server.address)
    server.restart(1.0)
    began = time.perf_counter()
    with pytest.raises(GivenUp):
        link.get(0, "large", lambda so_far: time.perf_counter() - began < 0.2)
    assert link.get(0, "small", lambda so_far: True) == b"a" * 1000
    assert time.perf_counter() - began < 1.5
    link.close()
    server.close()
    with pytest.raises(OSError):
        SocketLink(server.address).get(0, "small", lambda so_far: True)


def test_a_stored_prompt_comes_in_every_form(lab: PrefixLab, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    if not PATH.exists():
        pytest.skip("the library of entropy coding is not built")
    monkeypatch.setattr(kv_streaming, "CHUNK", lab.size)
    prompt = kv_streaming.StoredPrompt(lab, tokens, 8, Trace([(1, 1000 * MEGABIT)]))
    try:
        assert prompt.chunks == lab.whole(len(tokens) - 8) // lab.size
        for name in kv_streaming.FIXED:
            run = prompt.run([name], 0.0)
            assert run.streamed.options == [name] * prompt.chunks and not run.streamed.failed
            assert run.streamed.nbytes == (0 if name == "text" else sum(map(len, prompt.payloads[name])))
        run = prompt.run(["raw", "level 0", "text"], 0.0, deadline_s=60.0)
        assert set(run.streamed.options) <= {"raw", "text"}  # there is time, so nothing is lost
    finally:
        prompt.close()


def test_the_coder_is_near_the_entropy() -> None:
    if not PATH.exists():
        pytest.skip("the library of entropy coding is not built")
    assert 0 < kv_coding.overhead() < 1
