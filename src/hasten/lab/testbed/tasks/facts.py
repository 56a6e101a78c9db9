"""Facts that recall tasks state and ask about: `the number of the amber falcon is 4821`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hasten.lab.testbed import words
from hasten.lab.testbed.document import END_OF_TURN, turn
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import ANSWERING, Lesson, Piece, Split, Wordings, final_answer

STATED = (
    "Now {}.",
    "Here {}.",
    "Note that {}.",
    "Remember that {}.",
    "We know that {}.",
    "By the way, {}.",
    "Someone said that {}.",
)
"""Frames of statements."""
SENTENCES = Wordings.of(
    ("{}.", *STATED),
    (
        "the {what} of the {key} is {value}",
        "the {what} for the {key} is {value}",
        "the {key} has the {what} {value}",
        "the {what} of the {key} was {value}",
        "the {key} got the {what} {value}",
        "the {what} that belongs to the {key} is {value}",
        "the {key} goes with the {what} {value}",
        "the {what} given to the {key} is {value}",
        "for the {key}, the {what} is {value}",
        "whoever wants the {key} needs the {what} {value}",
        "the {key} needs {value} as its {what}",
    ),
)
LINES = Wordings.of(
    ("{}", "- {}", "* {}", "+ {}", "> {}", "| {} |"),
    (
        "{key}: {value}",
        "{key} = {value}",
        "{key} -> {value}",
        "{key} => {value}",
        "{key} | {value}",
        "{key}, {value}",
        "{key} {value}",
    ),
)
ASKED = ("What is {}?", "Tell me {}.", "Please give {}.", "Find {}.", "What was {}?", "I need {}.", "Look up {}.")
"""Frames of questions."""
QUESTIONS = Wordings.of(
    ASKED,
    (
        "the {what} of the {key}",
        "the {what} for the {key}",
        "the {what} that belongs to the {key}",
        "the {what} belonging to the {key}",
    ),
)
SEPARATOR = "; "
KEYS: tuple[Callable[[random.Random], str], ...] = (words.pair, words.pair, words.code)
VALUES: tuple[tuple[str, Callable[[random.Random], str]], ...] = (
    ("number", lambda rng: words.number(rng, 4)),
    ("number", lambda rng: words.number(rng, rng.randint(2, 6))),
    ("word", lambda rng: rng.choice(words.NOUNS)),
    ("code", words.code),
)


@dataclass(frozen=True)
class Fact:
    """The value of a key, what sort of value it is, and the wording that states it."""

    what: str
    key: str
    value: str
    wording: str

    def put(self, wording: str) -> str:
        """The fact, or a question about it, in the given words."""
        text = wording.format(what=self.what, key=self.key, value=self.value)
        return text[0].upper() + text[1:] if text[-1] in ".?" else text

    @property
    def stated(self) -> str:
        """The fact as it is told."""
        return self.put(self.wording)

    @property
    def quoted(self) -> str:
        """The answer to a question about it: how it was stated, from the key to the value. A small model that quotes has to
        find its place and to go on; one that gives the bare value has to do it all in a single step. The article makes the
        key's first token the one that it is in the question."""
        return self.put("The {key}" + self.wording.partition("{key}")[2].partition("{value}")[0] + "{value}")


def facts(rng: random.Random, split: Split, count: int, wording: str | None = None) -> list[Fact]:
    """Facts of one sort about different keys; values may repeat. Each has a wording of its own, unless one is given."""
    key, (what, value) = rng.choice(KEYS), rng.choice(VALUES)
    return [Fact(what, k, value(rng), wording or SENTENCES.pick(rng, split)) for k in words.distinct(rng, count, key)]


def values(answer: str) -> list[str]:
    """The values in an answer: the last word of every part."""
    return [(part.split() or [""])[-1].rstrip(".") for part in final_answer(answer).split(SEPARATOR)]


def hide(rng: random.Random, said: Sequence[str], filler: Sequence[str]) -> str:
    """Sentences in their order, at random places between the sentences of a running text."""
    places = sorted(rng.randint(0, len(filler)) for _ in said)
    text = list(filler)
    for place, sentence in reversed(list(zip(places, said, strict=True))):
        text.insert(place, sentence)
    return " ".join(text)


def interview(context: str, asked: Sequence[tuple[str, str]]) -> Lesson:
    """A conversation about a context: pairs of question and answer, the answers to be learnt."""
    pieces: list[Piece] = []
    for number, (question, answer) in enumerate(asked):
        opening = turn("user", f"{context}\n\n{question}" if number == 0 else question)
        pieces.append(Piece(("\n" if number else "") + opening + ANSWERING, False))
        pieces.append(Piece(answer + END_OF_TURN, True))
    return tuple(pieces)


def budget(material: Material, length: int, *texts: str) -> int:
    """Tokens left for filler in a prompt of `length` tokens that holds these texts too."""
    return length - 24 - sum(material.count(text) for text in texts)


def question(rng: random.Random, split: Split, fact: Fact) -> str:
    """A question about a fact."""
    return fact.put(QUESTIONS.pick(rng, split))
