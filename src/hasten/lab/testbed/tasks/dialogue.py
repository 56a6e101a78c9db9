"""Recall across a conversation that changes its topic: what was told several turns ago is asked for later."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hasten.lab.testbed.document import END_OF_TURN, turn
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import ANSWERING, Example, Lesson, Piece, Split, Task, Wordings
from hasten.lab.testbed.tasks.facts import Fact, facts, question, values

MOST_TOPICS = 32
LEAST_TOKENS_A_TOPIC = 120
NOTED = "Noted."
CHANGES = Wordings(
    train=("Now something else.", "Let us change the topic.", "Next topic.", "Another thing.", "Here is something different."),
    held_out=("Now for another topic.", "Let us talk about something else."),
)


@dataclass(frozen=True)
class Dialogue(Task):
    """topics: how many are talked about, one a turn. facts: told of each. length: tokens of the conversation, running text
    between the facts; 0: the facts alone. The question is about any topic but the last."""

    name = "dialogue"
    about = "what was said some turns and topics ago"

    topics: int = 4
    facts: int = 3
    length: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.topics <= MOST_TOPICS:
            raise ValueError(f"dialogue: topics must be between 2 and {MOST_TOPICS}, got {self.topics}")
        if not 1 <= self.facts <= 8:
            raise ValueError(f"dialogue: facts must be between 1 and 8, got {self.facts}")
        if self.length and self.length < LEAST_TOKENS_A_TOPIC * self.topics:
            least = LEAST_TOKENS_A_TOPIC * self.topics
            raise ValueError(
                f"dialogue: {self.topics} topics need a length of {least} tokens at least (or 0), got {self.length}"
            )

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        told = [self._topic(rng, split, material) for _ in range(self.topics)]
        asked = rng.choice(rng.choice(told[:-1])[1])
        messages = []
        for text, _ in told:
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": NOTED}]
        messages.append({"role": "user", "content": question(rng, split, asked)})
        prompt = "".join(turn(m["role"], m["content"]) for m in messages) + ANSWERING
        return Example(prompt, asked.quoted, asked.value, tuple(messages), max_tokens=32)

    def score(self, example: Example, output: str) -> dict[str, float]:
        return {"correct": float(values(output) == [example.expected])}

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        """Questions about what was told so far come up between the topics, and some at the end."""
        pieces: list[Piece] = []
        told: list[Fact] = []

        def say(user: str, answer: str) -> None:
            pieces.append(Piece(("\n" if pieces else "") + turn("user", user) + ANSWERING, False))
            pieces.append(Piece(answer + END_OF_TURN, True))

        for number in range(self.topics):
            text, known = self._topic(rng, "train", material)
            say(text, NOTED)
            told += known
            for fact in rng.sample(told, min(len(told), 3 if number == self.topics - 1 else rng.randint(0, 1))):
                say(question(rng, "train", fact), fact.quoted)
        return tuple(pieces)

    def easier(self, rng: random.Random, tokens: int) -> Dialogue:
        count = rng.randint(1, 3)
        topics = rng.randint(2, max(2, min(8, tokens // (LEAST_TOKENS_A_TOPIC + 60 * count))))
        room = tokens - 60 * topics
        long = room >= LEAST_TOKENS_A_TOPIC * topics and rng.random() < 0.5
        return Dialogue(topics, count, rng.randint(LEAST_TOKENS_A_TOPIC * topics, room) if long else 0)

    def _topic(self, rng: random.Random, split: Split, material: Material) -> tuple[str, list[Fact]]:
        known = facts(rng, split, self.facts)
        said = [CHANGES.pick(rng, split)] + [fact.stated for fact in known]
        if self.length:
            said += material.filler(rng, split, self.length // self.topics - 30 - 20 * self.facts)
        return " ".join(said), known


TASK = Dialogue
