"""What goes wrong with guesses stays with guesses: the answers are those without any, and everybody gets a turn."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
from tests.constraints import world
from tests.decoding.proposers import held, lookup, tree
from tests.engine.fake import make_engine
from tests.engine.test_loop import gather, request

from hasten.engine.decoding.chain import Chain
from hasten.engine.decoding.suffix_tree import key_of
from hasten.engine.events import ENDS, Event, Kind
from hasten.engine.frontend import Frontend
from hasten.engine.outputs import TokenDelta
from hasten.engine.scheduling.frames import Frames
from hasten.engine.scheduling.frames import Options as FramesOptions
from hasten.engine.scheduling.stall_free import Options as StallFreeOptions
from hasten.engine.scheduling.stall_free import StallFree
from hasten.engine.scheduling.whole_prompts import WholePrompts
from hasten.engine.sequence import Draft, Sequence

LETTER = 1


class Guesses:
    """So many tokens for everybody, right or wrong."""

    def __init__(self, count: int = 4) -> None:
        self.count = count

    def lookahead(self, sequence: Sequence) -> int:
        return self.count

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: Any) -> list[Draft | None]:
        return [Draft(np.full(budget, LETTER, dtype=np.int32)) for budget in budgets]


class Forgets(Guesses):
    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: Any) -> list[Draft | None]:
        return super().propose(sequences, budgets, last)[1:]


class Stumbles(Guesses):
    """Over one of the sequences, at every look."""

    def lookahead(self, sequence: Sequence) -> int:
        if sequence.request.id == "r1":
            raise RuntimeError("no idea")
        return self.count


def answers(proposer: Any) -> tuple[dict[str, Any], Any]:
    engine = make_engine(proposer=proposer)
    for i in range(3):
        engine.add(request(f"r{i}", [i, 2, 3], max_tokens=12))
    out = gather(engine.run())
    engine.ledger.audit()
    return out, engine


@pytest.mark.parametrize("proposer", [Forgets(), Stumbles()], ids=["too few drafts", "a look that fails"])
def test_a_proposer_that_fails_changes_no_answer(proposer: Guesses) -> None:
    plain, _ = answers(None)
    got, engine = answers(proposer)
    assert got == plain and not engine.events.counts[Kind.PLAN_REFUSED]


def test_one_that_stumbles_is_still_heard_on_others() -> None:
    _, engine = answers(Stumbles())
    assert engine.events.counts[Kind.DRAFTED] > 10


def test_a_constraint_that_breaks_over_a_guess_breaks_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request("r", [1, 2, 3], max_tokens=20, constraint=world.GRAMMAR)

    def run(proposer: Any) -> dict[str, Any]:
        engine = world.engine(forced=False, proposer=proposer)
        engine.add(asked)
        return gather(engine.run())

    plain = run(None)
    engine = world.engine(forced=False, proposer=Guesses())
    engine.add(asked)
    state = type(engine.decoding.constraint.start(asked))

    def breaks(self: Any) -> Any:
        raise RuntimeError("this back end cannot fork")

    monkeypatch.setattr(state, "fork", breaks)
    assert gather(engine.run()) == plain


class Bad(Guesses):
    learns_from = ENDS

    def learn(self, event: Event, sequence: Sequence | None, view: Any) -> Iterable[int]:
        raise RuntimeError("I forgot how")


def test_one_that_cannot_learn_keeps_nobody_from_it() -> None:
    others = [lookup(), tree()]
    answers(Chain([Bad(0), *others]))
    assert [held(proposer) for proposer in others] == [0, 0], "they have cleaned up"
    assert others[1].outputs.tokens > 0


def test_dropped_pages_are_gone_whoever_stood_in_them() -> None:
    """A sequence may wait long, and look again never: what it has seen of others must not stay for that."""
    proposer = tree(tokens=600)
    first = request("a", list(range(20)), max_tokens=4)
    proposer.outputs.add(key_of(first), np.arange(100, dtype=np.int32))
    engine = make_engine(proposer=proposer)
    engine.add(first)
    while not proposer._places:
        engine.step()
    (page,) = proposer.outputs.of(key_of(first))
    assert any(page in place.pages for place in proposer._places.values())
    automaton = weakref.ref(page.automaton)
    del page
    for _ in range(8):
        proposer.outputs.add(("", "", "other"), np.arange(200, dtype=np.int32))
    gc.collect()
    assert automaton() is None
    engine.run()
    assert held(proposer) == 0


def test_a_stop_string_takes_its_guesses_with_it() -> None:
    frontend = Frontend(world.tokenizer())
    asked = request("r", [1], max_tokens=20, stop=("b",))
    frontend.open(asked)
    a, b, c = (world.LETTERS.index(letter) for letter in "abc")
    delta, _ = frontend.feed(TokenDelta("r", 0, [a, b, c, c], [], drafted=3, accepted=3))
    assert delta is not None and len(delta.tokens) == 2
    assert (delta.drafted, delta.accepted) == (3, 2), "of those that are delivered"


@pytest.mark.parametrize(
    "batching",
    [StallFree(StallFreeOptions()), WholePrompts(), Frames(FramesOptions())],
    ids=["stall-free", "whole-prompts", "frames"],
)
def test_guesses_take_nobodys_turn(batching: Any) -> None:
    engine = make_engine(blocks=400, tokens=30, rows=16, batching=batching, proposer=Guesses(20))
    for i in range(16):
        engine.add(request(f"r{i}", [i % 9, 2], max_tokens=40))
    turns: list[tuple[int, int]] = []
    while engine.unfinished:
        decoding = sum(seq.decoding for seq in engine.ledger.sequences.values())
        before = engine.events.counts[Kind.TOKENS]
        engine.step()
        turns.append((decoding, engine.events.counts[Kind.TOKENS] - before))
    assert turns[3][0] == 16 and engine.events.counts[Kind.DRAFTED] > 0, "nobody's prompt waits for guesses either"
    assert all(served == 16 for decoding, served in turns if decoding == 16)
