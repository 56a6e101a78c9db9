"""Windows of tokens to train on, packed from whole lessons and stretches of running text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from hasten.lab.testbed.document import Document
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import Lesson, Task
from hasten.lab.testbed.tokenizer import SPECIAL_TOKENS, stop_token_ids

SHORTEST_ECHO = 8
SHORTEST_STRETCH = 24
LONGEST_STRETCH = 512
CHARACTERS_A_TOKEN = 3
TRIES = 3
LEAST_A_LESSON = 80.0
MOST_A_TOKEN = 8.0
TEXT_COUNT = 0.4
"""How much a lesson counts in the loss at least, in tokens; how much one of its tokens at most; and a token of running text."""


@dataclass(frozen=True)
class Batch:
    """inputs, targets [rows, length] int64; counts [rows, length] fp32: how much each target counts in the loss, 0 for what is
    only read; positions like inputs."""

    inputs: Tensor
    targets: Tensor
    counts: Tensor
    positions: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(x.to(device) for x in (self.inputs, self.targets, self.counts, self.positions)))


@dataclass(frozen=True)
class Ask:
    """Which batch: that of a step, `rows` windows of `length` tokens each. A share `echoes` of them is random tokens said over
    and over. A share `skips` skips positions at two random places, so that distances up to `positions` are met in short windows
    too (after PoSE, Zhu et al. 2023)."""

    step: int
    rows: int
    length: int
    echoes: float
    skips: float
    positions: int


@dataclass(frozen=True)
class Mixture:
    """What to train on: shares of tasks (by number of lessons) and of text kinds (by number of stretches), and how much of
    a window is text at least."""

    tasks: Sequence[tuple[Task, float]]
    texts: Sequence[tuple[str, float]]
    text_share: float


class Windows:
    """Draws batches; the batch of a step depends on the seed and the step's number alone, so a resumed run sees the same."""

    def __init__(self, tokenizer: Tokenizer, material: Material, mixture: Mixture, seed: int) -> None:
        self._tokenizer = tokenizer
        self._material = material
        self._mixture = mixture
        self._seed = seed
        self._end, _ = stop_token_ids(tokenizer)
        self._documents: dict[str, list[Document]] = {k: material.documents("train", k) for k, _ in mixture.texts}
        missing = [kind for kind, found in self._documents.items() if not found]
        if missing:
            raise ValueError(
                f"no training texts of kind {', '.join(missing)}: set HASTEN_DATA to the folder with the public texts"
            )
        self._by_length = {k: [len(d.text) for d in found] for k, found in self._documents.items()}

    def batch(self, ask: Ask) -> Batch:
        """The batch asked for."""
        rows, length = ask.rows, ask.length
        rng = random.Random(f"{self._seed}/{ask.step}")
        tokens = torch.zeros((rows, length + 1), dtype=torch.int64)
        counts = torch.zeros((rows, length + 1))
        where = torch.arange(length).repeat(rows, 1)
        for row in range(rows):
            ids, weights = self._echo(rng, length + 1) if rng.random() < ask.echoes else self._window(rng, length + 1)
            tokens[row], counts[row] = torch.tensor(ids), torch.tensor(weights)
            if rng.random() < ask.skips and ask.positions > length:
                for _ in range(2):
                    where[row, rng.randrange(1, length) :] += rng.randint(0, (ask.positions - length) // 2)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), counts[:, 1:].contiguous(), where)

    def _echo(self, rng: random.Random, length: int) -> tuple[list[int], list[float]]:
        """Random tokens, then the same again until the window is full: all but the first time is learnt. Nothing else makes a
        network look back for what followed last time (induction, Olsson et al. 2022) as quickly."""
        period = rng.randint(SHORTEST_ECHO, length // 2)
        said = [rng.randrange(len(SPECIAL_TOKENS), self._tokenizer.get_vocab_size()) for _ in range(period)]
        return (said * (length // period + 1))[:length], [0.0] * period + [1.0] * (length - period)

    def _window(self, rng: random.Random, length: int) -> tuple[list[int], list[float]]:
        """Whole lessons in random order; the space left over is filled with running text."""
        parts: list[tuple[list[int], list[float]]] = []
        room = length
        text_room = int(length * self._mixture.text_share * rng.uniform(0, 2))
        tasks, shares = zip(*self._mixture.tasks, strict=True)
        misses = 0
        while misses < TRIES and room - text_room > 48:
            task = rng.choices(tasks, shares)[0].easier(rng, room - text_room)
            part = self._encode(task.lesson(rng, self._material))
            if len(part[0]) <= room - text_room:
                parts.append(part)
                room -= len(part[0])
            else:
                misses += 1
        while room:
            part = self._stretch(rng, min(room, LONGEST_STRETCH if room > LONGEST_STRETCH + SHORTEST_STRETCH else room))
            parts.append(part)
            room -= len(part[0])
        rng.shuffle(parts)
        return [i for ids, _ in parts for i in ids], [w for _, weights in parts for w in weights]

    def _encode(self, lesson: Lesson) -> tuple[list[int], list[float]]:
        """A lesson's tokens, and an end of text. What little there is to learn in a long lesson counts for more."""
        encoded = self._tokenizer.encode_batch([p.text for p in lesson], add_special_tokens=False)
        ids = [i for e in encoded for i in e.ids]
        learnt = sum(len(e.ids) for p, e in zip(lesson, encoded, strict=True) if p.learn)
        count = min(MOST_A_TOKEN, max(1.0, LEAST_A_LESSON / learnt))
        weights = [count * p.learn for p, e in zip(lesson, encoded, strict=True) for _ in e.ids]
        if ids[-1] != self._end:
            ids, weights = [*ids, self._end], [*weights, 0.0]
        return ids, weights

    def _stretch(self, rng: random.Random, room: int) -> tuple[list[int], list[float]]:
        """A stretch of a text of at most `room` tokens, all learnt but the first, each less than a lesson's; its document by
        length, its start random."""
        kinds, shares = zip(*self._mixture.texts, strict=True)
        kind = rng.choices(kinds, shares)[0]
        text = rng.choices(self._documents[kind], self._by_length[kind])[0].text
        start = rng.randint(0, max(0, len(text) - CHARACTERS_A_TOKEN * room))
        if "chat" in kind or "fill" in kind or "talk" in kind:
            start = 0
        piece = text[start : start + 8 * room]
        ids = self._tokenizer.encode(piece, add_special_tokens=False).ids[:room]
        if len(ids) < room:
            ids.append(self._end)
        # What the model says of itself is no text among others.
        return ids, [0.0] + [1.0 if kind == "small talk" else TEXT_COUNT] * (len(ids) - 1)
