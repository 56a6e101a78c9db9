"""Prompts that nobody marked, cut where their content says: cuts move with the text, and what comes again is a chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine import tiny
from tests.kv.chunked import chunk_engine, expected, linker_of
from tests.kv.test_linking import all_free, run

from hasten.engine.kv.base import ReuseKey
from hasten.engine.kv.boundaries import WINDOW, Boundaries
from hasten.engine.kv.mpic import MPIC
from hasten.engine.kv.plain_chunks import PlainChunks
from hasten.engine.loop import Engine
from hasten.engine.request import Request, SamplingParams
from hasten.engine.technique import ConfigError

LONG = 600


def words(seed: int, count: int, high: int = 40) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(seed).integers(0, high, count).astype(np.int32)


def naive(tokens: list[int], mean: int) -> list[int]:
    """The cuts, token by token, from the definition."""
    one = Boundaries(mean)
    cuts = [0]
    for end in range(1, len(tokens) + 1):
        size = end - cuts[-1]
        if size < one.least:
            continue
        folded = 0
        for place, token in enumerate(tokens[end - WINDOW : end]):
            folded ^= _turned(_scrambled(token), 64 * place // WINDOW)
        if folded % (mean - one.least) == 0 or size == one.most:
            cuts.append(end)
    return cuts


def _scrambled(token: int) -> int:
    mask = (1 << 64) - 1
    found = (token + 1) * 0x9E3779B97F4A7C15 & mask
    found = (found ^ found >> 30) * 0xBF58476D1CE4E5B9 & mask
    found = (found ^ found >> 27) * 0x94D049BB133111EB & mask
    return found ^ found >> 31


def _turned(number: int, by: int) -> int:
    return (number << by | number >> 64 - by) & ((1 << 64) - 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 500), st.integers(2 * WINDOW, 90), st.sampled_from([2, 40, 150000]))
def test_cuts_are_those_of_the_definition(seed: int, count: int, mean: int, high: int) -> None:
    tokens = words(seed, count, high)
    one = Boundaries(mean)
    cuts = one.cut(tokens)
    assert cuts == naive(tokens.tolist(), mean)
    sizes = np.diff(cuts)
    assert ((sizes >= one.least) & (sizes <= one.most)).all() and count - cuts[-1] < one.most


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 300), st.integers(32, 128))
def test_text_in_front_moves_the_cuts_with_the_content(seed: int, front: int, mean: int) -> None:
    text = words(seed, 40 * mean)
    alone = Boundaries(mean).cut(text)
    behind = [cut - front for cut in Boundaries(mean).cut(np.concatenate([words(seed + 1, front), text]))]
    common = sorted(set(alone) & set(behind))
    assert common and common[0] < 20 * mean, "the two never fall into step"
    assert [cut for cut in alone if cut >= common[0]] == [cut for cut in behind if cut >= common[0]]


def test_pieces_are_about_as_long_as_asked() -> None:
    for mean in (64, 256):
        sizes = np.diff(Boundaries(mean).cut(words(0, 400 * mean, 8000)))
        assert 0.8 * mean < sizes.mean() < 1.2 * mean


def test_text_that_gives_no_cut_is_cut_at_the_greatest_length() -> None:
    """Of one token all places hash alike: all cut, or none."""
    boundaries = Boundaries(64)
    found = {tuple(boundaries.cut(np.full(1000, token, np.int32))) for token in range(200)}
    assert found == {tuple(range(0, 1001, 16)), tuple(range(0, 1001, 256))}


def test_only_what_stood_behind_something_else_is_met_again() -> None:
    one, text = Boundaries(64), words(1, 600)
    size = len(text)
    assert one.again(b"a", text, 0) == [] == one.again(b"a", text, 0), "behind the same text the prefix cache finds it"
    longer = np.concatenate([words(2, 50), text])
    found = one.again(b"a", longer, 0)
    assert found and sum(stop - start for start, stop in found) > size // 2
    assert all(start >= 50 for start, _ in found)
    assert one.again(b"b", longer, 0) == [], "another tenant's, or another model's"
    back = one.again(b"a", text, 0)
    assert [text[start:stop].tolist() for start, stop in back] == [longer[start:stop].tolist() for start, stop in found]
    assert one.again(b"a", text, back[1][0]) == back[1:], "what the prefix cache has is left to it"


def test_what_was_met_long_ago_is_forgotten() -> None:
    text, front = words(1, 600), words(2, 50)
    few = Boundaries(64, remembered=3)
    few.again(b"a", text, 0)
    again = few.again(b"a", np.concatenate([front, text]), 0)
    assert len(few._met) == 3 and len(again) < len(Boundaries(64).cut(text)) - 2


def engine_of(repair: Any, mean: int = 48, **settings: Any) -> Engine:
    engine = chunk_engine(repair, max_length=LONG, blocks=400, **settings)
    linker_of(engine).boundaries = Boundaries(mean)
    return engine


def asked(id: str, tokens: Any, chunks: tuple[tuple[int, int], ...] = ()) -> Request:
    return Request(
        id=id, prompt=np.asarray(tokens), sampling=SamplingParams(max_tokens=4, temperature=0.0, seed=1), chunks=chunks
    )


@pytest.mark.parametrize("repair", [MPIC(5), PlainChunks("none")], ids=["mpic", "none"])
def test_the_first_prompt_is_computed_as_ever_the_second_keeps_and_the_third_finds(repair: Any) -> None:
    engine, text = engine_of(repair), words(3, 300)
    linker, key = linker_of(engine), ReuseKey(engine.ledger._fingerprint)

    def ask(id: str, *parts: Any) -> int:
        """How many chunks it had; its answer is that of a request that marks those."""
        prompt = np.concatenate(parts)
        one = asked(id, prompt)
        seen = Boundaries(48)
        seen._met.update(linker.boundaries._met)  # type: ignore[union-attr]
        got = run(engine, one)
        chunks = tuple(
            (start, stop) for start, stop in seen.again(linker._root(key, "pieces"), prompt, 0) if stop < len(prompt)
        )
        assert linker.taken[id] == bool(chunks)
        assert [got[(id, 0)]] == expected(asked(id, prompt, chunks), repair, LONG)
        return len(chunks)

    assert ask("a", words(10, 20), text, words(11, 9)) == 0 and linker.computed == linker.linked == 0
    assert ask("again", words(10, 20), text, words(11, 9)) == 0, "it stands behind the same text"
    kept = ask("b", words(12, 33), text, words(13, 9))
    assert kept >= 3 and linker.computed == kept and linker.linked == 0
    assert ask("c", words(14, 41), text, words(15, 9)) == kept and linker.computed == linker.linked == kept
    assert ask("d", words(16, 61), words(17, 80), words(18, 9)) == 0, "nothing of it was met before"
    all_free(engine)


def test_marks_count_where_there_are_some() -> None:
    engine, text = engine_of(MPIC(5)), words(3, 200)
    for number in range(3):
        one = asked(f"m{number}", np.concatenate([words(number, 30), text, words(9, 5)]), ((30, 60),))
        assert [run(engine, one)[(one.id, 0)]] == expected(one, MPIC(5), LONG)
    assert not linker_of(engine).boundaries._met  # type: ignore[union-attr]


def test_it_is_off_unless_asked_for_and_refused_where_it_cannot_be(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path)
    plain = tiny.engine(path, with_=("mpic",))
    assert plain.engine.ledger.linker is not None and plain.engine.ledger.linker.boundaries is None
    cutting = tiny.engine(path, with_=("mpic",), kv__boundaries=64)
    found = cutting.engine.ledger.linker
    assert found is not None and found.boundaries is not None and (found.boundaries.least, found.boundaries.most) == (16, 256)
    for with_, changes, why in (
        ((), {"kv__boundaries": 64}, "needs a repair"),
        (("mpic",), {"kv__boundaries": 64, "executor__deterministic": True}, "cannot run together"),
        (("mpic",), {"kv__boundaries": 63}, "boundaries"),
        ((), {"kv__repair": "flashforge"}, "repairs no chunks"),
        ((), {"kv__repair": "prefix-tree"}, "repairs no chunks"),
    ):
        with pytest.raises(ConfigError, match=why):
            tiny.engine(path, with_=with_, **changes)
