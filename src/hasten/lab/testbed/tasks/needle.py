"""A needle in real text: one fact somewhere in pages of essays or articles (Kamradt, 2023), or several asked for at once.

With `needles` above `queries` the others are distractors of the same form (as in RULER, Hsieh et al., 2024).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import Example, Lesson, Split, Task, Wordings, conversation
from hasten.lab.testbed.tasks.facts import ASKED, SEPARATOR, Fact, budget, facts, hide, interview, question, values

MOST_NEEDLES = 16
SHORTEST = 64
TOKENS_A_NEEDLE = 28
TOKENS_A_QUESTION = 40
SEVERAL = Wordings.of(ASKED, ("the {what} of the {keys}", "the {what} for the {keys}"))


@dataclass(frozen=True)
class Needle(Task):
    """length: tokens of the prompt. needles: facts hidden in it. queries: how many are asked for in one question.
    depth: where the (single) needle lies, from 0, the beginning, to 1, the end; -1: anywhere."""

    name = "needle"
    about = "facts hidden in pages of real text"
    metrics = ("correct", "found")

    length: int = 2048
    needles: int = 1
    queries: int = 1
    depth: float = -1.0

    def __post_init__(self) -> None:
        if not 1 <= self.needles <= MOST_NEEDLES:
            raise ValueError(f"needle: needles must be between 1 and {MOST_NEEDLES}, got {self.needles}")
        if not 1 <= self.queries <= self.needles:
            raise ValueError(f"needle: queries must be between 1 and the {self.needles} needles, got {self.queries}")
        least = SHORTEST + TOKENS_A_NEEDLE * (self.needles + self.queries)
        if self.length < least:
            raise ValueError(f"needle: {self.needles} needles need a length of {least} tokens at least, got {self.length}")
        if self.depth != -1 and not (0 <= self.depth <= 1 and self.needles == 1):
            raise ValueError(f"needle: depth is for one needle, from 0 to 1, or -1 for anywhere; got {self.depth}")

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        context, hidden = self._context(rng, split, material, self.length)
        asked = rng.sample(hidden, self.queries)
        text = _question(rng, split, asked)
        expected = [fact.value for fact in asked]
        return conversation(f"{context}\n\n{text}", _answer(asked), expected=expected, max_tokens=32 * self.queries)

    def score(self, example: Example, output: str) -> dict[str, float]:
        """correct: all values in the order asked; found: the share of them in their places."""
        expected, given = example.expected, values(output)
        found = sum(a == b for a, b in zip(expected, given, strict=False)) / len(expected)
        return {"correct": float(expected == given), "found": found}

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        """Several questions about one context."""
        rounds = rng.randint(1, min(4, self.needles))
        context, hidden = self._context(rng, "train", material, self.length - (rounds - 1) * self.queries * TOKENS_A_QUESTION)
        asked = [rng.sample(hidden, rng.randint(1, self.queries)) for _ in range(rounds)]
        return interview(context, [(_question(rng, "train", some), _answer(some)) for some in asked])

    def easier(self, rng: random.Random, tokens: int) -> Needle:
        needles = rng.choice((1, 1, 2, 4, 8)) if tokens >= 1024 else rng.choice((1, 1, 2, 4))
        queries = rng.randint(1, min(4, needles)) if rng.random() < 0.4 else 1
        least = SHORTEST + (TOKENS_A_NEEDLE + TOKENS_A_QUESTION) * (needles + 4 * queries)
        return Needle(max(least, rng.randint(tokens // 4, tokens)), needles, queries)

    def _context(self, rng: random.Random, split: Split, material: Material, length: int) -> tuple[str, list[Fact]]:
        hidden = facts(rng, split, self.needles)
        said = [fact.stated for fact in hidden]
        filler = material.filler(rng, split, budget(material, length, *said, _question(rng, split, hidden[: self.queries])))
        if self.depth < 0:
            return hide(rng, said, filler), hidden
        at = round(self.depth * len(filler))
        return " ".join([*filler[:at], *said, *filler[at:]]), hidden


def _question(rng: random.Random, split: Split, asked: Sequence[Fact]) -> str:
    if len(asked) == 1:
        return question(rng, split, asked[0])
    keys = ", the ".join(fact.key for fact in asked[:-1]) + f" and the {asked[-1].key}"
    return SEVERAL.pick(rng, split).format(what=asked[0].what, keys=keys)


def _answer(asked: Sequence[Fact]) -> str:
    return SEPARATOR.join(fact.quoted for fact in asked)


TASK = Needle
