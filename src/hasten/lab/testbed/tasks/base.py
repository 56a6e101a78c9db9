"""What a task is: a seeded source of questions, each with one right answer, and an exact scorer.

A task is a frozen dataclass whose fields are its difficulty; it is written `name:knob=value,...` like everything in hasten.
The same generator serves training and evaluation. The two never meet: seeds differ, and so do the wordings (`Wordings`) and
the texts (`Material`) of the splits, so a score says how well the skill is learnt and not how well the sentences are known.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hasten.lab.testbed.document import END_OF_TURN, turn
from hasten.lab.testbed.material import Material

Split = Literal["train", "held-out"]
ANSWERING = "<|im_start|>assistant\n"
"""What stands before the model's words."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a lesson; `learn`: whether its tokens are predicted in training, or only read."""

    text: str
    learn: bool


Lesson = tuple[Piece, ...]
"""One training document."""


@dataclass(frozen=True)
class Example:
    """One question.

    prompt: text with its special tokens, up to where the model goes on. answer: what a perfect model writes (its thinking
    included), without the stop token. expected: what the scorer compares with. messages and tools: the conversation that
    the prompt renders, where it is one. max_tokens: enough for the answer, with room for a wordy one.
    """

    prompt: str
    answer: str
    expected: Any = None
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    max_tokens: int = 64


def conversation(user: str, answer: str, *, system: str | None = None, expected: Any = None, max_tokens: int = 64) -> Example:
    """An example of one user message; `expected` is the answer itself unless given."""
    messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": user}]
    prompt = "".join(turn(m["role"], m["content"]) for m in messages) + ANSWERING
    return Example(prompt, answer, answer if expected is None else expected, tuple(messages), (), max_tokens)


@dataclass(frozen=True)
class Wordings:
    """Phrasings of one thing, as format strings; those of the held-out split are never trained on."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def pick(self, rng: random.Random, split: Split) -> str:
        return rng.choice(self.train if split == "train" else self.held_out)

    @classmethod
    def of(cls, frames: Sequence[str], cores: Sequence[str]) -> Wordings:
        """Every core in every frame, where the frame says `{}`; every fifth one is held out. So many wordings cannot be known
        by heart: what stands in the prompt has to be read."""
        all_of_them = [frame.replace("{}", core) for frame in frames for core in cores]
        return cls(tuple(w for i, w in enumerate(all_of_them) if i % 5 != 2), tuple(all_of_them[2::5]))


@dataclass(frozen=True)
class Task(ABC):
    """Generator and scorer of one skill at one difficulty.

    `metrics` names what `score` returns, the one that counts first. `about`: one line for the table of tasks. `likelihood`:
    whether the answer is not generated but given, and its likelihood scored as bits per byte.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]] = ("correct",)
    likelihood: ClassVar[bool] = False

    @abstractmethod
    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        """A question drawn with `rng` alone (the same state gives the same question)."""

    def score(self, example: Example, output: str) -> dict[str, float]:
        """Each metric in [0, 1]; `output` is the text that the model wrote, special tokens included, without the stop
        token. Here: the final answer equals what is expected."""
        return {"correct": float(final_answer(output) == example.expected)}

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        """A training document: here one example of the training split, of which the answer is learnt. Tasks whose
        context serves many questions ask several."""
        example = self.example(rng, "train", material)
        return Piece(example.prompt, False), Piece(example.answer + END_OF_TURN, True)

    def easier(self, rng: random.Random, tokens: int) -> Task:
        """This task with a difficulty drawn for training, such that a lesson takes about `tokens` tokens at most."""
        return self


def final_answer(output: str) -> str:
    """What is said after thinking, without surrounding space and a final stop."""
    return output.rpartition("</think>")[2].strip().removesuffix(".")
