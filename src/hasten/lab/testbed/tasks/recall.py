"""Key-value recall: some pairs are stated, bare or scattered through a running text, and the value of one is asked for.

The associative recall of Arora et al. ("Zoology", 2023) in words: keys take several tokens and share them with each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import Example, Lesson, Split, Task, conversation
from hasten.lab.testbed.tasks.facts import LINES, SENTENCES, Fact, budget, facts, hide, interview, question, values

MOST_PAIRS = 64
TOKENS_A_PAIR = 26
TOKENS_A_BARE_PAIR = 20
TOKENS_A_QUESTION = 40
MOST_QUESTIONS = 8


@dataclass(frozen=True)
class Recall(Task):
    """pairs: 1 to 64. length: tokens of the prompt, running text between the pairs; 0: the pairs alone."""

    name = "recall"
    about = "the value of one of several keys"

    pairs: int = 16
    length: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= MOST_PAIRS:
            raise ValueError(f"recall: pairs must be between 1 and {MOST_PAIRS}, got {self.pairs}")
        if self.length and self.length < TOKENS_A_PAIR * self.pairs:
            least = TOKENS_A_PAIR * self.pairs
            raise ValueError(f"recall: {self.pairs} pairs need a length of {least} tokens at least (or 0), got {self.length}")

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        context, stated = self._context(rng, split, material, self.length)
        asked = rng.choice(stated)
        text = f"{context}\n\n{question(rng, split, asked)}"
        return conversation(text, asked.quoted, expected=asked.value, max_tokens=32)

    def score(self, example: Example, output: str) -> dict[str, float]:
        return {"correct": float(values(output) == [example.expected])}

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        """Several questions about one context."""
        most = questions(self.pairs)
        asked = rng.randint((most + 1) // 2, most)
        length = max(0, self.length - TOKENS_A_QUESTION * (asked - 1))
        context, stated = self._context(rng, "train", material, length)
        return interview(context, [(question(rng, "train", f), f.quoted) for f in rng.sample(stated, asked)])

    def easier(self, rng: random.Random, tokens: int) -> Recall:
        pairs = int(2 ** rng.uniform(1, 6))
        while pairs > 1 and pairs * TOKENS_A_BARE_PAIR + questions(pairs) * TOKENS_A_QUESTION > tokens:
            pairs = pairs * 3 // 4
        length = rng.randint(TOKENS_A_PAIR * pairs, max(TOKENS_A_PAIR * pairs, tokens)) if rng.random() < 0.6 else 0
        return Recall(pairs, length)

    def _context(self, rng: random.Random, split: Split, material: Material, length: int) -> tuple[str, list[Fact]]:
        wordings = SENTENCES if length or rng.random() < 0.5 else LINES
        stated = facts(rng, split, self.pairs, wordings.pick(rng, split))
        said = [fact.stated for fact in stated]
        if not length:
            return ("\n" if wordings is LINES else " ").join(said), stated
        filler = material.filler(rng, split, budget(material, length, *said, question(rng, split, stated[0])))
        return hide(rng, said, filler), stated


def questions(pairs: int) -> int:
    """How many a lesson asks at most. Few about lists of middling size, so that a short window holds one."""
    return min(pairs, MOST_QUESTIONS // 2 if 6 < pairs < 20 else MOST_QUESTIONS)


TASK = Recall
