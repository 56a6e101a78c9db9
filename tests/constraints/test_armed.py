"""Constraints that begin after an event."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tests.constraints.test_engine import answers
from tests.constraints.world import END, VOCABULARY, parts, policy, text_of, tokenizer
from tests.engine.test_loop import request

from hasten.engine.decoding.constraints.armed import Armed
from hasten.engine.decoding.constraints.compiling import After
from hasten.engine.decoding.constraints.policy import MOST_WATCHES
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.request import BadRequest

CHOICES = ("true", "false", "null")
PIECES = parts().tokenizer.pieces.table(VOCABULARY)


def started(event: str) -> Armed:
    made, one = policy(), request("r", [1], constraint=After(event, ConstraintSpec.of_choices(CHOICES)))
    made.prepare(one)
    state = made.start(one)
    assert isinstance(state, Armed)
    return state


def legal(state: Armed) -> set[int]:
    mask = np.full(2, 0x5A5A5A5A, dtype=np.int32)
    state.fill(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:VOCABULARY]
    return set(np.flatnonzero(bits).tolist())


def allowed(event: bytes, said: bytes) -> set[int]:
    """By the definition, from the whole text."""
    at = said.find(event)
    if at < 0:
        return {
            token
            for token, piece in enumerate(PIECES)
            if token != END and ((found := (said + piece).find(event)) < 0 or found + len(event) == len(said + piece))
        }
    rest = said[at + len(event) :]
    found = {
        token for token, piece in enumerate(PIECES) if piece and any(one.encode().startswith(rest + piece) for one in CHOICES)
    }
    return found | ({END} if rest.decode() in CHOICES else set())


@pytest.mark.parametrize("event", ["}", '":', "ll", "aba", "0010", '{"a'])
def test_masks_are_those_of_the_definition(event: str) -> None:
    rng = random.Random(event)
    for _ in range(20):
        state, said, tokens = started(event), b"", 0
        while tokens < 40:
            now = legal(state)
            assert now == allowed(event.encode(), said), said
            assert state.ended == (END in now)
            for token in set(range(VOCABULARY)) - now - {END}:
                with pytest.raises(ValueError, match="token"):
                    state.fork().advance(token)
            useful = [t for t in now if PIECES[t] and any(letter in event.encode() for letter in PIECES[t])]
            token = rng.choice(useful if useful and rng.random() < 0.7 else sorted(now))
            if token == END:
                break
            other = state.fork()
            other.advance(token)
            if rng.random() < 0.3:  # there and back
                further = sorted(legal(other) - {END})
                steps = 1
                if further:
                    other.advance(rng.choice(further))
                    steps = 2
                other.rollback(steps)
                assert legal(other) == now
                other.advance(token)
            state, said, tokens = other, said + PIECES[token], tokens + 1


@pytest.mark.parametrize("forced", [False, True])
def test_what_follows_the_event_obeys(forced: bool) -> None:
    spec = After("}", ConstraintSpec.of_choices(CHOICES))
    asked = [request(f"r{i}", [i], max_tokens=60, temperature=1.0, seed=i, constraint=spec) for i in range(12)]
    got, _ = answers(asked, forced=forced)
    complete = 0
    for tokens in got.values():
        text = text_of(tokens)
        assert (tokens[-1] == END) == (text.partition("}")[2] in CHOICES)
        complete += tokens[-1] == END
    assert complete >= 6


def test_an_event_needs_a_text() -> None:
    for event, why in (("", "empty"), ("a\ud800", "half a character")):
        with pytest.raises(BadRequest, match=why):
            policy().prepare(request("r", [1], constraint=After(event, ConstraintSpec.of_choices(CHOICES))))


def test_what_cannot_be_done_changes_nothing() -> None:
    state = started("}")
    state.advance(PIECES.index(b"a"))
    for count in (2, 3):
        with pytest.raises(ValueError, match=f"{count} tokens cannot be undone"):
            state.rollback(count)
    with pytest.raises(ValueError, match="before the text '}'"):
        state.advance(END)
    state.rollback(1)
    state.advance(PIECES.index(b"}"))
    state.advance(PIECES.index(b"null"))
    with pytest.raises(ValueError, match="cannot be undone"):
        state.rollback(3)
    assert state.ended
    state.rollback(2)
    assert legal(state) == allowed(b"}", b"")


def test_the_latest_events_are_kept() -> None:
    made = policy()
    for i in range(MOST_WATCHES + 5):
        made.prepare(request("r", [1], constraint=After(f"{i}}}", ConstraintSpec.of_choices(CHOICES))))
    assert len(made._watches) == MOST_WATCHES and f"{MOST_WATCHES}}}" in made._watches and "0}" not in made._watches


def test_the_text_of_special_tokens_is_an_event_too() -> None:
    state = started("<end>")
    assert END not in legal(state), "what ends the text is withheld until the constraint is met"
    assert tokenizer().token_bytes(END) == b"<end>"
