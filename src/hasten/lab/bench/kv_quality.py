"""What a round trip of the KV of a prompt's beginning costs: in answers to the testbed's questions, in likelihood."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hasten.engine.request import SamplingParams
from hasten.lab.bench.kv_prefix import Planes, PrefixLab
from hasten.lab.bench.kv_rounding import RoundTrip
from hasten.lab.testbed.evaluate import draw, spoken, token_ids
from hasten.lab.testbed.tasks.base import Example, Task
from hasten.lab.testbed.tasks.language import KINDS, Language
from hasten.lab.testbed.tasks.registry import find, notation

QUESTION = 72
"""Tokens at a prompt's end that are always computed: the question is among them."""
CONTEXT, CONTINUATION = 1536, 384
"""Tokens of a text that are read from the cache, and of which the likelihood is taken."""
TOGETHER = 16
WEIGHED = 4

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Asked:
    """A question, or a text (`example` None), with the KV of its first `cached` tokens."""

    task: Task | None
    example: Example | None
    tokens: list[int]
    cached: int
    planes: Planes


@dataclass(frozen=True)
class Quality:
    """`bytes_a_token` of the prefixes; right[task]: per question; `nats`: a token, over all texts."""

    bytes_a_token: float
    right: dict[str, list[bool]] = field(default_factory=dict)
    nats: float = 0.0

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats)


class Questions:
    """Drawn and their prefixes computed once, for any number of round trips."""

    def __init__(self, lab: PrefixLab, tasks: Mapping[str, int], texts: int, seed: int, progress: Progress) -> None:
        self._lab = lab
        material = lab.material
        asked: list[tuple[Task | None, Example | None, list[int], int]] = []
        for name, count in tasks.items():
            task = find(name)
            for example in draw(task, name, count, seed, "held-out", material, lambda what, done, total: None):
                tokens = token_ids(lab.llm, example.prompt)
                asked.append((task, example, tokens, lab.whole(len(tokens) - QUESTION)))
        for source in (source for source, kind in KINDS.items() if material.documents("held-out", kind)):
            for i in range(texts):
                text = Language(source, CONTEXT + CONTINUATION).example(
                    random.Random(f"{seed}/{source}/{i}"), "held-out", material
                )
                tokens = token_ids(lab.llm, text.prompt + text.answer)
                asked.append((None, None, tokens, lab.whole(min(CONTEXT, len(tokens) - 128))))
        self.asked: list[Asked] = []
        for done, (task_, example_, tokens, cached) in enumerate(asked):
            progress("computing prefixes", done / len(asked))
            if cached > 0:
                lab.compute(tokens[:cached])
                self.asked.append(Asked(task_, example_, tokens, cached, lab.read(tokens[:cached])))
                lab.forget()
        self._names = list(tasks)

    def through(self, trip: RoundTrip) -> Quality:
        lab = self._lab
        nbytes = sum_tokens = 0
        right: dict[str, list[bool]] = {}
        nats = tokens_read = 0.0
        for part in self._groups():
            for one in part:
                planes, size = trip(one.planes)
                nbytes, sum_tokens = nbytes + size, sum_tokens + one.cached
                lab.plant(one.tokens[: one.cached], planes)
            questions = [one for one in part if one.example is not None]
            for one, correct in zip(questions, self._answers(questions), strict=True):
                right.setdefault(notation(one.task) if one.task else "", []).append(correct)
            for one in part:
                if one.example is None:
                    nats += lab.nats(one.tokens, one.cached)
                    tokens_read += len(one.tokens) - one.cached - 1
            lab.forget()
        return Quality(nbytes / sum_tokens, right, nats / max(tokens_read, 1))

    def weighed(self, trip: RoundTrip) -> float:
        """Bytes a token, of a few prefixes."""
        few = self.asked[:WEIGHED]
        return sum(trip(one.planes)[1] for one in few) / sum(one.cached for one in few)

    def _groups(self) -> Iterator[list[Asked]]:
        """Some at a time, no two of which begin alike: those would share KV."""
        group: dict[tuple[int, ...], Asked] = {}
        for one in self.asked:
            begins = tuple(one.tokens[: self._lab.size])
            if begins in group or len(group) == TOGETHER:
                yield list(group.values())
                group = {}
            group[begins] = one
        yield list(group.values())

    def _answers(self, questions: Sequence[Asked]) -> list[bool]:
        if not questions:
            return []
        llm = self._lab.llm
        sampling = [SamplingParams(max_tokens=one.example.max_tokens, temperature=0) for one in questions if one.example]
        done = llm.generate([one.tokens for one in questions], sampling)
        correct = []
        for one, answer in zip(questions, done, strict=True):
            assert one.task is not None and one.example is not None
            if answer.reused < one.cached:
                raise RuntimeError("the engine computed what it should have read from the cache")
            correct.append(one.task.score(one.example, spoken(llm, answer.choices[0]))["correct"] == 1)
        return correct
