"""Cache-Craft in real models: exact where it must be, mended elsewhere, refused where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.engine import tiny
from tests.kv.marked import marked
from tests.kv.test_chunks_real import DOCUMENTS, TEXT, close, first_token, pieces_of, request, requests, spoil

from hasten.engine.context_linking import ContextLinker
from hasten.engine.events import Kind
from hasten.engine.request import Request
from hasten.engine.technique import ConfigError


def linker_of(built: tiny.Built) -> ContextLinker:
    linker = built.engine.ledger.linker
    assert isinstance(linker, ContextLinker)
    return linker


def same_tokens(plain: tiny.Built, other: tiny.Built, asked: list[Request]) -> None:
    """Up to where two of the plain engine's logits are too close to call."""
    got = tiny.run(other, asked)
    for one in asked:
        want = tiny.run(plain, [Request(id=one.id, prompt=one.prompt, sampling=one.sampling)])
        for index in range(one.sampling.n):
            mine, scores = tiny.tokens(got[(one.id, index)]), [s for d in want[(one.id, index)] for s in d.logprobs]
            for token, theirs, score in zip(mine, tiny.tokens(want[(one.id, index)]), scores, strict=True):
                assert score is not None
                if token != theirs:
                    assert score.top[0][1] - score.top[1][1] <= 1e-4 * abs(score.top[0][1])
                    break


def greedy() -> list[Request]:
    return [request(one.id, *pieces_of(one), n=one.sampling.n) for one in requests() if one.chunks]


@pytest.mark.parametrize(("memory", "chunk"), [(4 << 20, 512), (26 * 16 * 2 * 2 * 2 * 16 * 4, 19)])
def test_everything_computed_again_is_plain_prefill(tmp_path: Path, memory: int, chunk: int) -> None:
    path = tiny.folder(tmp_path)
    plain = tiny.engine(path, kv__reuse=None)
    busy = tiny.engine(
        path, with_=("cache-craft:share=1", f"stall-free:chunk={chunk}"), kv__memory_bytes=memory, kv__block_size=16,
        scheduling__max_tokens=chunk + 8, kv__host_bytes=1 << 20 if chunk == 19 else 0,
    )  # fmt: skip
    spoil(busy)
    for _ in range(2):
        same_tokens(plain, busy, greedy())
    assert linker_of(busy).computed > 0 and linker_of(busy).linked == 0
    if chunk == 19:
        counts = busy.engine.events.counts
        assert counts[Kind.SWAPPED] + counts[Kind.PREEMPTED] > 0, "the test should press on memory"


def test_what_stands_behind_the_same_is_exact_without_mending(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path)
    plain = tiny.engine(path, kv__reuse=None)
    built = spoil(tiny.engine(path, with_=("cache-craft",), kv__block_size=16))
    # The texts at the beginning are of one size, and the same: so chunks stand at the same positions.
    first = marked("a", DOCUMENTS, TEXT[0], 0, TEXT[1], 3, TEXT[2], max_tokens=8, temperature=0.0, logprobs=2, ignore_eos=True)
    same_tokens(plain, built, [first])
    other = request("b", TEXT[0], 0, TEXT[1], 3, TEXT[3], 1, TEXT[2])
    computed = linker_of(built).computed
    same_tokens(plain, built, [other])
    assert linker_of(built).mended_tokens == 0 and linker_of(built).linked == 2 and linker_of(built).computed == computed + 1


def test_behind_others_mending_brings_it_nearer_the_plain_engine(tmp_path: Path) -> None:
    """Mean difference of the first token's log-probabilities over many orders; none mended is the farthest, all is none."""
    path = tiny.folder(tmp_path)
    plain = tiny.engine(path, kv__reuse=None)
    orders = [(3, 0, 1), (1, 3, 0), (0, 1, 3), (1, 0, 3), (0, 3, 1)]
    asked = [request(f"r{i}", TEXT[0], *order, TEXT[3], max_tokens=1, logprobs=20) for i, order in enumerate(orders)]
    wanted = [first_token(plain, Request(id=one.id, prompt=one.prompt, sampling=one.sampling)) for one in asked]

    def distance(options: str) -> float:
        built = spoil(tiny.engine(path, with_=(f"cache-craft:variants=1{options}",), kv__block_size=16))
        first_token(built, request("warm", TEXT[0], 0, 1, 3, TEXT[3], max_tokens=1))
        total = 0.0
        for one, want in zip(asked, wanted, strict=True):
            got = first_token(built, one)
            both = got.keys() & want.keys()
            assert len(both) > 5
            total += sum(abs(got[token] - want[token]) for token in both) / len(both)
        return total

    none, some, most, everything = (distance(f":share={share}") for share in (0, 0.5, 0.9, 1))
    assert everything <= 1e-4 < most < none and some < none
    assert distance("") < none


def test_a_recorded_step_measures_too(tmp_path: Path) -> None:
    """Steps of few rows run as recorded calls, but for those that measure."""
    path = tiny.folder(tmp_path)
    one = request("a", [5], 2, TEXT[2], max_tokens=4)
    fast, slow = (tiny.engine(path, with_=("cache-craft",), executor__native=native) for native in (True, False))
    assert close(first_token(fast, one), first_token(slow, one), 1e-4)
    kept = [next(iter(linker_of(built).store)).notes for built in (fast, slow)]
    assert kept[0] is not None and kept[1] is not None and kept[0].cci == pytest.approx(kept[1].cci)
    assert fast.engine.executor._plans, "the answer's steps are recorded"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("with_", "changes", "why"),
    [
        ((), {"executor__deterministic": True}, "deterministic=true"),
        (("kv-int8",), {}, "does no link"),
        (("tiered",), {}, "in the pool only"),
        (("mpic",), {}, "both decide kv.repair"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, with_: tuple[str, ...], changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        tiny.engine(tiny.folder(tmp_path, head_dim=64), with_=("cache-craft", *with_), kv__block_size=32, **changes)
    assert "cache-craft" in str(raised.value)
