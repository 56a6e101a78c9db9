"""Sums and differences of several numbers, answered at once or after written steps.

The steps are those of paper: each addition column by column from the units up, the carry written out, so that every token
is copied or looked up. Such steps are what lets a small model add ("Show Your Work: Scratchpads for Intermediate
Computation with Language Models", Nye et al., 2021). For 47 + 85 - 9:

    47+85
    7+5+0=12     digit + digit + carry; the sum always has two digits, the first is the next carry
    4+8+1=13
    =132
    132-9
    2-9-0+10=3   digit - digit - borrowed; + 10 where the next column must lend
    3-0-1+0=2
    1-0-0+0=1
    =123
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from hasten.lab.testbed.document import END_OF_TURN
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.sums import THINK_FIRST
from hasten.lab.testbed.tasks.base import Example, Lesson, Piece, Split, Task, conversation
from hasten.lab.testbed.tasks.sum_wordings import Terms, ask

MOST_OPERANDS = 6
MOST_DIGITS = 3
LESSON_TOKENS = 400
WITH_STEPS = 0.75

LINE = re.compile(r"(?P<sum>\d+(?:[+-]\d+)+)?(?:=(?P<result>\d+))?")


@dataclass(frozen=True)
class Arithmetic(Task):
    """operands: 2 to 6 numbers, joined by + and - from left to right, never below zero on the way. digits: 1 to 3, the most
    an operand has. steps: whether they are asked for. "steps" scores whether every written line is right; none at all
    scores 0 where they are asked for and 1 elsewhere."""

    name = "arithmetic"
    about = "sums and differences of several numbers"
    metrics = ("correct", "steps")

    operands: int = 3
    digits: int = 2
    steps: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.operands <= MOST_OPERANDS:
            raise ValueError(f"arithmetic: operands must be between 2 and {MOST_OPERANDS}, got {self.operands}")
        if not 1 <= self.digits <= MOST_DIGITS:
            raise ValueError(f"arithmetic: digits must be between 1 and {MOST_DIGITS}, got {self.digits}")

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        return self._ask(rng, split, material, self.steps)

    def score(self, example: Example, output: str) -> dict[str, float]:
        thought, thinks, _ = output.partition("</think>")
        lines = thought.replace("<think>", "").split() if thinks else []
        right = all_right(lines) if lines else not self.steps
        return super().score(example, output) | {"steps": float(right)}

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        """Separate short conversations, three quarters of them with steps, up to 400 tokens; at least one."""
        pieces: list[Piece] = []
        room = LESSON_TOKENS
        while True:
            example = self._ask(rng, "train", material, rng.random() < WITH_STEPS)
            prompt, answer = ("\n" if pieces else "") + example.prompt, example.answer + END_OF_TURN
            room -= material.count(prompt) + material.count(answer)
            if pieces and room < 0:
                return tuple(pieces)
            pieces += [Piece(prompt, False), Piece(answer, True)]

    def easier(self, rng: random.Random, tokens: int) -> Arithmetic:
        """Any number of operands and digits up to this task's own."""
        return Arithmetic(rng.randint(2, self.operands), rng.randint((self.digits + 1) // 2, self.digits), self.steps)

    def _ask(self, rng: random.Random, split: Split, material: Material, steps: bool) -> Example:
        terms = self._terms(rng)
        result = str(sum(terms))
        answer = f"<think>\n{written(terms)}\n</think>\n\n{result}" if steps else result
        system = THINK_FIRST if steps else None
        room = material.count(answer) + 16
        return conversation(ask(rng, split, terms), answer, system=system, expected=result, max_tokens=room)

    def _terms(self, rng: random.Random) -> Terms:
        total = 0
        terms = []
        for _ in range(self.operands):
            operand = rng.randrange(1, 10**self.digits)
            terms.append(-operand if operand <= total and rng.random() < 0.5 else operand)
            total += terms[-1]
        return tuple(terms)


def written(terms: Terms) -> str:
    """The steps, a line each."""
    total = terms[0]
    lines = []
    for term in terms[1:]:
        lines += [f"{total}{term:+}", *_columns(total, term), f"={total + term}"]
        total += term
    return "\n".join(lines)


def _columns(total: int, term: int) -> Iterator[str]:
    top, bottom = str(total)[::-1], str(abs(term))[::-1]
    carry = 0
    for a, b in itertools.zip_longest(map(int, top), map(int, bottom), fillvalue=0):
        if term > 0:
            yield f"{a}+{b}+{carry}={a + b + carry:02}"
            carry = int(a + b + carry >= 10)
        else:
            lent = 10 if a < b + carry else 0
            yield f"{a}-{b}-{carry}+{lent}={a - b - carry + lent}"
            carry = int(lent > 0)


def all_right(lines: list[str]) -> bool:
    """Whether each line holds: a sum with its result, or a sum alone that a later line `=result` closes."""
    opened: int | None = None
    for line in lines:
        match = LINE.fullmatch(line)
        if not match:
            return False
        value = sum(map(int, re.findall(r"[+-]?\d+", match["sum"]))) if match["sum"] else None
        if match["result"] is None:
            if opened is not None:
                return False
            opened = value
        elif value is not None:
            if int(match["result"]) != value:
                return False
        elif int(match["result"]) == opened:
            opened = None
        else:
            return False
    return opened is None


TASK = Arithmetic
