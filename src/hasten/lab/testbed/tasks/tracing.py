"""Variable tracing over several hops: `Let tulip be 4821.` ... `Let raven be tulip.` ... What is raven?

Chains of assignments interleave and may be scattered through a running text: the variable tracking of "RULER: What's the
Real Context Size of Your Long-Context Language Models?" (Hsieh et al., 2024).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hasten.lab.testbed import words
from hasten.lab.testbed.document import turn
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.sums import THINK_FIRST
from hasten.lab.testbed.tasks.base import Example, Lesson, Piece, Split, Task, Wordings, conversation
from hasten.lab.testbed.tasks.facts import ASKED, STATED, budget, hide, interview

MOST_HOPS = 4
MOST_CHAINS = 31
LEAST_QUESTIONS, MOST_QUESTIONS = 6, 12
TOKENS_A_STATEMENT = 20
TOKENS_AROUND = 64
WITH_STEPS = 0.75

STATEMENTS = Wordings.of(
    STATED,
    tuple(
        f"{subject} {relation} {{value}}"
        for subject in ("{name}", "the variable {name}", "the name {name}", "item {name}", "the word {name}")
        for relation in ("=", "is", "equals", "has the value", "stands for", ":=")
    ),
)
QUERIES = Wordings.of(
    ASKED,
    ("{name}", "the value of {name}", "the number of {name}", "what {name} stands for"),
)


@dataclass(frozen=True)
class Chain:
    """Variables, of which the first holds the value and each other one refers to the one before it."""

    names: tuple[str, ...]
    value: str
    wording: str

    @property
    def statements(self) -> list[str]:
        sources = (self.value, *self.names)
        return [self.wording.format(name=name, value=source) for name, source in zip(self.names, sources, strict=False)]

    def answer(self, position: int, steps: bool) -> str:
        """What is said of the variable at a position; the steps quote the statements on the way to the value, each from its
        name on: `So raven is tulip, tulip is 4821`."""
        if not steps:
            return self.value
        core = "{name}" + self.wording.partition("{name}")[2].rstrip(".")
        sources = (self.value, *self.names)
        path = ", ".join(core.format(name=self.names[i], value=sources[i]) for i in range(position, -1, -1))
        return f"<think>\nSo {path}\n</think>\n\n{self.value}"


@dataclass(frozen=True)
class Tracing(Task):
    """hops: 1 to 4 references between the asked variable and the one that holds the number. chains: 0 to 31 others, just as
    long. length: tokens of the prompt, running text between the statements; 0: the statements alone. steps: whether the
    chain is written down first."""

    name = "tracing"
    about = "the value of a variable through several references"

    hops: int = 2
    chains: int = 3
    length: int = 1024
    steps: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.hops <= MOST_HOPS:
            raise ValueError(f"tracing: hops must be between 1 and {MOST_HOPS}, got {self.hops}")
        if not 0 <= self.chains <= MOST_CHAINS:
            raise ValueError(f"tracing: chains must be between 0 and {MOST_CHAINS}, got {self.chains}")
        least = least_tokens(self.hops, self.chains)
        if self.length and self.length < least:
            raise ValueError(
                f"tracing: {self.chains + 1} chains of {self.hops} hops need a length of {least} tokens at least (or 0), "
                f"got {self.length}"
            )

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        context, chains = self._context(rng, split, material, self.length)
        chain = rng.choice(chains)
        question = QUERIES.pick(rng, split).format(name=chain.names[-1])
        system = THINK_FIRST if self.steps else None
        room = material.count(chain.answer(self.hops, True)) + 16
        answer = chain.answer(self.hops, self.steps)
        return conversation(f"{context}\n\n{question}", answer, system=system, expected=chain.value, max_tokens=room)

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        """Questions about several variables of one context, near and far from their numbers; steps in three of four."""
        least = least_tokens(self.hops, self.chains)
        length = max(least, self.length - question_tokens(self.hops, self.length)) if self.length else 0
        context, chains = self._context(rng, "train", material, length)
        places = [(chain, position) for chain in chains for position in range(self.hops + 1)]
        steps = rng.random() < WITH_STEPS
        asked = [
            (QUERIES.pick(rng, "train").format(name=chain.names[position]), chain.answer(position, steps))
            for chain, position in rng.sample(places, min(questions(self.length), len(places)))
        ]
        opening = (Piece(turn("system", THINK_FIRST), False),) if steps else ()
        return opening + interview(context, asked)

    def easier(self, rng: random.Random, tokens: int) -> Tracing:
        """Up to this task's hops and chains, with as much running text as there is room for, less, or none."""
        hops = rng.randint(1, self.hops)
        room = tokens - question_tokens(hops, tokens)
        most = (room - TOKENS_AROUND) // (TOKENS_A_STATEMENT * (hops + 1)) - 1
        chains = rng.randint(0, max(0, min(self.chains, most)))
        least = least_tokens(hops, chains)
        length = rng.randint(least, tokens) if least < room and rng.random() < 0.7 else 0
        return Tracing(hops, chains, length, self.steps)

    def _context(self, rng: random.Random, split: Split, material: Material, length: int) -> tuple[str, list[Chain]]:
        size = self.hops + 1
        names = rng.sample(words.NOUNS, size * (self.chains + 1))
        values = words.distinct(rng, self.chains + 1, lambda r: words.number(r, 4))
        wording = STATEMENTS.pick(rng, split)
        chains = [Chain(tuple(names[i * size : (i + 1) * size]), value, wording) for i, value in enumerate(values)]
        waiting = [iter(chain.statements) for chain in chains]
        turns = [one for one in waiting for _ in range(size)]
        rng.shuffle(turns)
        said = [next(one) for one in turns]
        if not length:
            return " ".join(said), chains
        filler = material.filler(rng, split, budget(material, length, THINK_FIRST, max(QUERIES.train, key=len), *said))
        return hide(rng, said, filler), chains


def least_tokens(hops: int, chains: int) -> int:
    """Tokens that surely hold a prompt without running text."""
    return TOKENS_AROUND + TOKENS_A_STATEMENT * (hops + 1) * (chains + 1)


def questions(length: int) -> int:
    """How many a lesson asks at most: more about a long context, which costs more to read."""
    return min(MOST_QUESTIONS, max(LEAST_QUESTIONS, length // 128))


def question_tokens(hops: int, length: int) -> int:
    """Tokens that surely hold a lesson's questions and answers."""
    return questions(length) * (36 + 18 * hops)


TASK = Tracing
