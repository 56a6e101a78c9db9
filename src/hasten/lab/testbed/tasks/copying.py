"""Copying: a text of words, codes and numbers is to be said again, whole, from some word on, or backwards.

What copying needs are the induction heads of "In-context Learning and Induction Heads" (Olsson et al., 2022); a lesson is
learnt on nearly every second token, so it forms them early.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hasten.lab.testbed import words
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import Example, Lesson, Split, Task, Wordings, conversation
from hasten.lab.testbed.tasks.facts import interview

LEAST_WORDS = 3
MOST_WORDS = {"whole": 2048, "after": 2048, "reversed": 32}
SHORTEST_PASSAGE, LONGEST_PASSAGE = 2, 8
QUESTIONS_A_LESSON = 6
TOKENS_A_WORD = 3
TOKENS_A_QUESTION = 30 + LONGEST_PASSAGE * TOKENS_A_WORD

WHOLE = Wordings(
    train=(
        "Repeat this text:",
        "Repeat the following text exactly:",
        "Copy this text:",
        "Copy the following words exactly:",
        "Write this text again:",
        "Say these words again:",
        "Say this once more:",
        "Write down the following text:",
    ),
    held_out=("Copy the following text:", "Repeat these words exactly:", "Write these words again:"),
)
REVERSED = Wordings(
    train=(
        "Reverse the order of these words:",
        "Write these words in reverse order:",
        "Say the following words backwards:",
        "Give these words from the last to the first:",
        "Repeat these words from last to first:",
        "Turn the order of the following words around:",
        "Write this list of words backwards:",
        "Copy these words in reverse order:",
    ),
    held_out=("Repeat these words in reverse order:", "Write the following words backwards:", "Reverse these words:"),
)
AFTER = Wordings(
    train=(
        "Which {n} words come after {word}?",
        "Write the {n} words that come after {word}.",
        "Give the {n} words after {word}.",
        "Repeat the {n} words that follow {word}.",
        "Copy the next {n} words after {word}.",
        "What are the {n} words after {word}?",
        "Find {word} and write the next {n} words.",
        "Say the {n} words behind {word}.",
    ),
    held_out=(
        "Copy the {n} words that follow {word}.",
        "What {n} words come after {word}?",
        "Repeat the {n} words after {word}.",
    ),
)


@dataclass(frozen=True)
class Copying(Task):
    """words: 3 to 2048, in the text to copy. variant: `whole`, `after` (2 to 8 words after a given one) or `reversed`
    (up to 32 words)."""

    name = "copying"
    about = "words, codes and numbers said again exactly"

    words: int = 32
    variant: str = "whole"

    def __post_init__(self) -> None:
        if self.variant not in MOST_WORDS:
            raise ValueError(f"copying: variant must be one of {', '.join(MOST_WORDS)}, got {self.variant!r}")
        most = MOST_WORDS[self.variant]
        if not LEAST_WORDS <= self.words <= most:
            raise ValueError(f"copying: words must be between {LEAST_WORDS} and {most} for {self.variant}, got {self.words}")

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        text = self._text(rng)
        if self.variant == "after":
            question, answer = _passage(rng, split, text)
            return conversation(f"{' '.join(text)}\n\n{question}", answer, max_tokens=material.count(answer) + 16)
        wordings, copy = (WHOLE, text) if self.variant == "whole" else (REVERSED, text[::-1])
        answer = " ".join(copy)
        prompt = f"{wordings.pick(rng, split)}\n\n{' '.join(text)}"
        return conversation(prompt, answer, max_tokens=material.count(answer) + 16)

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        """One text; several questions about it where a passage is asked for."""
        if self.variant != "after":
            return super().lesson(rng, material)
        text = self._text(rng)
        return interview(" ".join(text), [_passage(rng, "train", text) for _ in range(QUESTIONS_A_LESSON)])

    def easier(self, rng: random.Random, tokens: int) -> Copying:
        """Any variant; short texts are as likely as long ones, up to what the tokens hold."""
        variant = rng.choice(("whole", "whole", "whole", "after", "reversed"))
        if variant == "after":
            room = (tokens - QUESTIONS_A_LESSON * TOKENS_A_QUESTION) // TOKENS_A_WORD
        else:
            room = (tokens - 30) // (2 * TOKENS_A_WORD)
        most = max(4, min(room, MOST_WORDS[variant]))
        return Copying(int(4 * (most / 4) ** rng.random()), variant)

    def _text(self, rng: random.Random) -> list[str]:
        while True:
            text = [_item(rng) for _ in range(self.words)]
            if self.variant != "after" or _anchors(text):
                return text


def _item(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.7:
        return rng.choice(rng.choice((words.ADJECTIVES, words.NOUNS)))
    return words.code(rng) if kind < 0.85 else words.number(rng, rng.randint(1, 4))


def _anchors(text: list[str]) -> list[int]:
    """Where words stand that occur once and have enough words after them."""
    often = Counter(text)
    return [place for place, word in enumerate(text[:-SHORTEST_PASSAGE]) if often[word] == 1]


def _passage(rng: random.Random, split: Split, text: list[str]) -> tuple[str, str]:
    """Question and answer about some words after a given one."""
    place = rng.choice(_anchors(text))
    count = rng.randint(SHORTEST_PASSAGE, min(LONGEST_PASSAGE, len(text) - place - 1))
    return AFTER.pick(rng, split).format(n=count, word=text[place]), " ".join(text[place + 1 : place + 1 + count])


TASK = Copying
