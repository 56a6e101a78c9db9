"""What is kept of past outputs: whose, how much, and what is drafted from it."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decoding.proposers import tree
from tests.engine.fake import make_engine
from tests.engine.test_loop import request

from hasten.engine.decoding.suffix_tree import PAGE_COSTS, Outputs, SuffixTree, key_of
from hasten.engine.events import Event, Kind
from hasten.engine.request import AppContext
from hasten.engine.sequence import Finish

HERE = ("", "", "")


def sequence(tokens: list[int], prompt: int = 1, id: int = 0, finish: Finish | None = None, **placed: Any) -> Any:
    asked = replace(request("r", tokens[:prompt]), **placed)
    array = np.array(tokens, dtype=np.int32)
    return SimpleNamespace(
        id=id,
        request=asked,
        tokens=array,
        length=len(array),
        prompt_length=prompt,
        output_length=len(array) - prompt,
        finish=finish,
    )


def ended(proposer: SuffixTree, seq: Any, finish: Finish = Finish.STOP) -> None:
    seq.finish = finish
    proposer.learn(Event(0.0, Kind.FINISHED if finish.ok else Kind.FAILED, seq.id), seq, None)  # type: ignore[arg-type]


def draft(proposer: SuffixTree, seq: Any) -> tuple[list[int], list[int]]:
    budget = proposer.lookahead(seq)
    [made] = proposer.propose([seq], [budget], None)
    if made is None:
        assert budget == 0
        return [], []
    assert made.parents is not None
    return made.tokens.tolist(), made.parents.tolist()


def test_the_likeliest_branches_are_drafted_first() -> None:
    proposer = tree(shortest=2, least=0.2, most=6)
    for tail in ([4, 5, 6], [4, 5, 7], [4, 5, 7], [8, 9, 9]):
        ended(proposer, sequence([0, 1, 2, 3, 3, 3, 3, *tail]))
    tokens, parents = draft(proposer, sequence([0, 1, 2, 3, 3, 3, 3]))
    # 4 and 5 at 3/4, 7 at 1/2, then at 1/4 each, by token: 6 and the other branch.
    assert tokens[:3] == [4, 5, 7] and parents[:3] == [-1, 0, 1]
    assert sorted(zip(tokens[3:], parents[3:], strict=True)) == [(6, 1), (8, -1), (9, 4)] or set(tokens[3:]) == {6, 8, 9}
    assert draft(tree(shortest=2), sequence([0, 1, 2, 3, 3, 3, 3])) == ([], [])
    strict = tree(shortest=2, least=0.6)
    for tail in ([4, 5, 6], [4, 5, 7], [4, 5, 7], [8, 9, 9]):
        ended(strict, sequence([0, 1, 2, 3, 3, 3, 3, *tail]))
    assert draft(strict, sequence([0, 1, 2, 3, 3, 3, 3])) == ([4, 5], [-1, 0])


def test_no_more_is_drafted_than_occurred_before() -> None:
    proposer = tree(shortest=2)
    ended(proposer, sequence(list(range(30))))
    assert draft(proposer, sequence([99, 5], id=1)) == ([], []), "one token is too little"
    assert draft(proposer, sequence([99, 5, 6], id=2)) == ([7, 8], [-1, 0])
    assert draft(proposer, sequence([99, 5, 6, 7], id=3)) == ([8, 9, 10], [-1, 0, 1])


@pytest.mark.parametrize(
    "placed",
    [{"tenant": "b"}, {"cache_salt": "x"}, {"app": AppContext(application="other")}],
    ids=["tenant", "salt", "application"],
)
def test_nothing_of_one_shows_to_another(placed: dict[str, Any]) -> None:
    proposer = tree()
    ended(proposer, sequence([1, 2, 3, 4, 5]))
    assert draft(proposer, sequence([1, 2, 3], id=1))[0]
    assert draft(proposer, sequence([1, 2, 3], id=1, **placed)) == ([], [])
    ended(proposer, sequence([1, 2, 3, 6, 7], **placed))
    assert draft(proposer, sequence([1, 2, 3], id=2, **placed))[0] == [6, 7]
    assert 6 not in draft(proposer, sequence([1, 2, 3], id=3))[0]


def test_only_what_ended_well_is_kept() -> None:
    proposer = tree()
    for finish in (Finish.CANCELLED, Finish.ERROR, Finish.REJECTED):
        ended(proposer, sequence([1, 2, 3, 4, 5]), finish)
    assert proposer.outputs.tokens == 0
    ended(proposer, sequence([1, 2, 3, 4, 5]), Finish.LENGTH)
    assert proposer.outputs.tokens == PAGE_COSTS + 5


def test_an_output_is_learned_while_another_runs() -> None:
    proposer = tree()
    ended(proposer, sequence([0, 1, 2, 3, 4]))
    running = sequence([9, 1, 2], id=7)
    assert draft(proposer, running)[0] == [3, 4]
    ended(proposer, sequence([0, 8, 2, 5, 6], id=1))  # splits what the running one stands at
    assert draft(proposer, running)[0] == [3, 4]
    running = sequence([9, 1, 2, 5], id=7)
    assert draft(proposer, running)[0] == [6]
    proposer = tree()
    ended(proposer, sequence([0, 1, 2, 3, 4]))
    assert draft(proposer, sequence([9, 2], id=7))[0] == [3]
    ended(proposer, sequence([0, 8, 2, 5, 6], id=1))  # 2 ends at more places than 1 2 now
    assert draft(proposer, sequence([9, 2, 5], id=7))[0] == [6]


KEYS = st.tuples(st.sampled_from(["", "a", "b"]), st.just(""), st.sampled_from(["x", "y"]))


@settings(max_examples=60, deadline=None)
@given(
    added=st.lists(st.tuples(KEYS, st.integers(1, 400)), max_size=60),
    most=st.integers(4 * PAGE_COSTS, 1500),
)
def test_no_more_than_asked_is_kept_and_the_oldest_goes(added: list[tuple[Any, int]], most: int) -> None:
    outputs = Outputs(most)
    for number, (key, length) in enumerate(added):
        outputs.add(key, np.full(length, number, dtype=np.int32))
        pages = [page for those in outputs._of.values() for page in those]
        assert outputs.tokens == sum(page.tokens for page in pages) <= most
        assert set(pages) == set(outputs._pages) and all(outputs._of.values())
        newest = outputs.of(key)[-1]
        assert number in newest.automaton._next[0], "what came last is there"
        assert list(outputs._pages)[-1] is newest


def test_the_bound_is_one_of_memory() -> None:
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        outputs = Outputs(20_000)
        sizes = []
        for number in range(60):
            outputs.add(("", "", f"app {number % 7}"), rng.integers(0, 5000, 1000, dtype=np.int32))
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(sizes) < 20_000 * 600
    assert max(sizes[40:]) < 1.1 * max(sizes[:40]), "it does not grow for ever"


def test_the_engine_tells_it_what_is_over() -> None:
    proposer = tree()
    engine = make_engine(proposer=proposer)
    asked = replace(request("r", list(range(20)), max_tokens=10, n=2, temperature=1.0), tenant="t")
    engine.add(asked)
    engine.run()
    (page,) = proposer.outputs.of(key_of(asked))
    assert page.tokens == PAGE_COSTS + 2 * (16 + 10)
    assert not proposer.outputs.of(HERE)
