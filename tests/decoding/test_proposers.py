"""What proposers draft changes no token and leaves nothing behind, whatever else is on."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.constraints import world
from tests.decoding.proposers import KINDS, both, held, lookup
from tests.engine.fake import VOCABULARY, make_engine
from tests.engine.test_loop import gather, request

from hasten.engine.decoding.base import Proposer
from hasten.engine.decoding.chain import Chain, chained
from hasten.engine.events import Kind
from hasten.engine.request import Request
from hasten.engine.sequence import Draft, Sequence

FEW = {1: 9.0, 2: 9.0, 3: 8.0}
"""A bias under which few tokens come, so that much of what comes came before."""


def answers(requests: list[Request], proposer: Proposer | None, **knobs: Any) -> tuple[dict[str, Any], Any]:
    """The tokens of each request's sequences, in two rounds of the same, and the engine."""
    engine = make_engine(proposer=proposer, **knobs)
    found: dict[str, Any] = {}
    for number in range(2):
        for one in requests:
            engine.add(one)
        out = []
        while engine.unfinished:
            out += engine.step()
            engine.ledger.audit()
        for id, tokens in gather(out).items():
            found[f"{id}-{number}"] = tokens
    assert engine.ledger.books.available == engine.ledger.books.pool.blocks
    return found, engine


@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    kind=st.sampled_from(sorted(KINDS)),
    prompts=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=40), min_size=1, max_size=5),
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    penalty=st.booleans(),
    blocks=st.integers(16, 60),
    host=st.sampled_from([0, 30]),
    reuse=st.booleans(),
)
def test_tokens_are_those_of_plain_decoding(
    kind: str, prompts: list[list[int]], temperature: float, penalty: bool, blocks: int, host: int, reuse: bool
) -> None:
    requests = [
        request(
            f"r{i}",
            prompt,
            max_tokens=30,
            seed=i,
            n=1 + i % 3,
            temperature=temperature,
            logit_bias=FEW,
            presence_penalty=1.0 if penalty else 0.0,
            frequency_penalty=0.3 if penalty else 0.0,
            repetition_penalty=1.2 if penalty else 1.0,
        )
        for i, prompt in enumerate(prompts)
    ]
    plain, _ = answers(requests, None, blocks=64)
    proposer = KINDS[kind]()
    got, engine = answers(requests, proposer, blocks=blocks, host_blocks=host, reuse=reuse)
    assert got == plain
    assert held(proposer) == 0
    assert engine.events.counts[Kind.DRAFTED] > 0


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_they_save_steps(kind: str) -> None:
    requests = [request("r", [1, 2, 3], max_tokens=60, temperature=0.3, logit_bias=FEW)]
    plain, without = answers(requests, None)
    got, engine = answers(requests, KINDS[kind]())
    assert got == plain and engine.executor.steps < 0.8 * without.executor.steps
    stats = engine.stats()
    assert sum(stats["drafted_by_depth"]) == stats["drafted_total"] >= sum(stats["accepted_by_depth"]) > 0
    assert stats["accepted_by_depth"][0] >= stats["accepted_by_depth"][1]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_grammar_holds(kind: str) -> None:
    requests = [
        request(f"r{i}", [1 + i, 2, 3], max_tokens=40, n=2, temperature=0.8, seed=i, constraint=world.GRAMMAR) for i in range(4)
    ]

    def run(proposer: Proposer | None, forced: bool) -> tuple[dict[str, Any], Any]:
        engine = world.engine(forced=forced, proposer=proposer, blocks=40)
        out = []
        for number in range(2):
            for one in requests:
                engine.add(replace(one, id=f"{one.id}-{number}"))
            out += engine.run()
            engine.ledger.audit()
        return gather(out), engine

    plain, _ = run(None, False)
    for forced in (False, True):
        proposer = KINDS[kind]()
        got, engine = run(proposer, forced)
        assert got == plain and engine.events.counts[Kind.DRAFTED] and held(proposer) == 0


class Storm:
    """Forks until there are 64 branches, injects into some and ends some early; the others go on to their limit."""

    taps: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.branches: dict[int, Sequence] = {}

    def on_commit(self, committed: Seq[tuple[Sequence, int]], result: Any, actions: Any) -> None:
        for seq, _ in committed:
            self.branches.setdefault(seq.id, seq)
            if seq.finish is not None:
                continue
            if seq.index % 7 == 3 and seq.output_length > 15:
                actions.finish(seq)
                continue
            children = actions.fork(seq, min(2, 64 - len(self.branches)))
            self.branches |= {child.id: child for child in children}
            for child in children[1:]:
                actions.inject(child, [child.index % VOCABULARY, 1])


@pytest.mark.parametrize("blocks", [120, 600])
def test_a_storm_of_forks_keeps_the_books(blocks: int) -> None:
    controller, proposer = Storm(), both()
    engine = make_engine(blocks=blocks, tokens=2000, rows=64, host_blocks=20, controller=controller, proposer=proposer)
    engine.add(request("r", [1, 2, 3, 1, 2, 3, 1, 2], max_tokens=25, temperature=0.5, logit_bias=FEW))
    while engine.unfinished:
        engine.step()
        engine.ledger.audit()
    assert len(controller.branches) == 64 and max(seq.output_length for seq in controller.branches.values()) == 25
    assert engine.events.sums[Kind.DRAFTED] > 100
    assert (engine.events.counts[Kind.PREEMPTED] + engine.events.counts[Kind.SWAPPED] > 0) == (blocks < 600)
    assert engine.ledger.books.available == blocks and held(proposer) == 0


def test_a_joined_sequence_is_drafted_for_too() -> None:
    class Join:
        taps: frozenset[int] = frozenset()
        joined: Sequence | None = None

        def on_commit(self, committed: Seq[tuple[Sequence, int]], result: Any, actions: Any) -> None:
            both = [seq for seq, _ in committed if seq.finish is None and seq.output_length >= 6]
            if len(both) == 2 and self.joined is None:
                self.joined = actions.join(both, [1, 2])
                for seq in both:
                    actions.finish(seq)

    def run(proposer: Proposer | None) -> dict[str, Any]:
        engine = make_engine(controller=Join(), proposer=proposer)
        engine.add(request("r", [1, 2, 3], max_tokens=40, n=2, temperature=0.5, logit_bias=FEW))
        tokens = gather(engine.run())["r"]
        assert engine.ledger.books.available == engine.ledger.books.pool.blocks
        return tokens

    proposer = lookup()
    assert len(run(proposer)) == 3 and held(proposer) == 0


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_request_says_how_much_is_drafted(kind: str) -> None:
    def drafted(speculate: int | None) -> list[float]:
        proposer = KINDS[kind]()
        requests = [request("r", [1, 2] * 10, max_tokens=40, temperature=0.3, logit_bias=FEW, speculate=speculate)]
        _, engine = answers(requests, proposer)
        assert held(proposer) == 0
        columns = engine.events.columns()
        return columns["a"][columns["kind"] == Kind.DRAFTED].tolist()

    assert drafted(0) == []
    assert max(drafted(2)) == 2
    assert max(drafted(None)) > 2


def test_cancelled_requests_leave_nothing() -> None:
    proposer = both()
    engine = make_engine(proposer=proposer)
    for turn in range(4):
        engine.add(request("r", [1, 2, 3] * 3, max_tokens=100, n=3, logit_bias=FEW))
        for _ in range(3 + turn):
            engine.step()
        assert held(proposer) > 0
        engine.cancel("r")
        engine.run()
        assert held(proposer) == 0
    assert proposer._proposers[1].outputs.tokens == 0, "what was cut short is no example"


class Says:
    """Has a guess for some, and gives it when asked for those alone."""

    def __init__(self, token: int, whose: set[int]) -> None:
        self.token, self.whose, self.asked = token, whose, list[int]()

    def lookahead(self, sequence: Any) -> int:
        return 2 if sequence.id in self.whose else 0

    def propose(self, sequences: Any, budgets: Any, last: Any) -> list[Draft | None]:
        self.asked = [sequence.id for sequence in sequences]
        return [Draft(np.full(budget, self.token, dtype=np.int32)) for budget in budgets]


def test_the_first_that_has_a_guess_makes_it() -> None:
    first, second = Says(1, {1, 3}), Says(2, {1, 2})
    chain = chained([first, second])
    assert isinstance(chain, Chain) and chained([first]) is first and chained([]) is None
    sequences: list[Any] = [SimpleNamespace(id=id) for id in range(4)]
    assert [chain.lookahead(seq) for seq in sequences] == [0, 2, 2, 2]
    drafts = chain.propose(sequences[1:], [1, 2, 2], None)
    assert [draft.tokens.tolist() for draft in drafts if draft is not None] == [[1], [2, 2], [1, 1]]
    assert (first.asked, second.asked) == ([1, 3], [2])
    first.whose.clear()
    assert [chain.lookahead(seq) for seq in sequences] == [0, 2, 2, 0]
    assert chain.propose(sequences[3:], [2], None) == [None]


def test_a_long_prompt_is_read_in_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.engine.decoding.prompt_lookup.AT_ONCE", 10)
    requests = [request("r", [1, 2, 3, 4] * 10, max_tokens=40, n=2, temperature=0.3, logit_bias=FEW)]
    plain, _ = answers(requests, None)
    proposer = lookup()
    got, engine = answers(requests, proposer)
    assert got == plain and engine.events.counts[Kind.DRAFTED] > 0 and held(proposer) == 0


class Hopeful:
    """Always has many guesses, nearly all of them wrong."""

    def lookahead(self, sequence: Sequence) -> int:
        return 16

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: Any) -> list[Draft | None]:
        return [Draft(np.arange(budget, dtype=np.int32), np.full(budget, -1, dtype=np.int32)) for budget in budgets]


def test_drafts_shrink_before_anybody_loses_memory() -> None:
    # They end with the pool just full, which nobody knows beforehand.
    requests = [replace(request(f"r{i}", [i, *range(19)], max_tokens=60), ends_after=12) for i in range(2)]
    plain, without = answers(requests, None, blocks=8, reuse=False)
    assert without.events.counts[Kind.PREEMPTED] == 0
    got, engine = answers(requests, Hopeful(), blocks=8, reuse=False)
    assert got == plain and engine.events.counts[Kind.PREEMPTED] == 0
    columns = engine.events.columns()
    drafted = columns["a"][columns["kind"] == Kind.DRAFTED].tolist()
    assert len(set(drafted)) > 4, "as much as there is room for"
