"""What a model says to the testbed's questions, and the hidden states that it said it from: what heads on it learn from.

Heads guess what the model will say, so they learn from its own answers (self-distillation) and not from texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hasten.engine.executors.base import NORMED, StepResult
from hasten.engine.llm import LLM
from hasten.engine.request import SamplingParams
from hasten.engine.sequence import Draft
from hasten.engine.sequence import Sequence as Growing
from hasten.lab.testbed.evaluate import token_ids
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import Split
from hasten.lab.testbed.tasks.registry import find

PYTHON = "language:source=python"
ASKED = {
    PYTHON: 32.0,
    "language": 6.0,
    "language:source=essay": 6.0,
    "json": 14.0,
    "calls": 10.0,
    "arithmetic:operands=4": 8.0,
    "tracing:hops=3,chains=6": 6.0,
    "sql": 5.0,
    "recall": 4.0,
    "python": 3.0,
    "copying": 3.0,
    "dialogue": 3.0,
    "rules": 2.0,
}
"""Questions of each task in a hundred or so. Of texts the beginning is given."""
QUESTION_TOKENS = 400
LEAST_GIVEN, MOST_GIVEN = 16, 224
OUTPUT = 128
"""Tokens said of a text, and at most of an answer."""
DRAWN, HEAT = 0.25, 0.8
"""Share of the questions that are answered with a temperature, and that."""
AT_ONCE = 64


@dataclass(frozen=True)
class Question:
    prompt: list[int]
    sampling: SamplingParams


@dataclass(frozen=True)
class Said:
    """`hidden` bfloat16 [n, width]: the states behind the final norm that tokens were drawn from; `targets` int32 [n, heads]:
    the tokens after the one drawn, -1 where nothing more was said."""

    hidden: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.hidden)


@dataclass
class Recorder:
    """A proposer that never guesses: it takes down the state that each token is drawn from, by request."""

    states: dict[str, list[Tensor]] = field(default_factory=dict)
    taps = frozenset({NORMED})

    def lookahead(self, sequence: Growing) -> int:
        return 0

    def propose(self, sequences: Sequence[Growing], budgets: Sequence[int], last: Any) -> list[Draft | None]:
        return [None] * len(sequences)

    def committed(self, sequence: Growing, row: int, result: StepResult) -> None:
        self.states.setdefault(sequence.request.id, []).append(result.hidden[NORMED][row].to("cpu", torch.bfloat16))


def questions(llm: LLM, material: Material, split: Split, count: int, seed: int, drawn: float = DRAWN) -> list[Question]:
    """Questions of all tasks, a share `drawn` of them to be answered with a temperature. Sources of text that are not here
    make way for Python's."""
    names, shares = zip(*ASKED.items(), strict=True)
    found = []
    for number in range(count):
        rng = random.Random(f"said/{seed}/{split}/{number}")
        task = find(rng.choices(names, shares)[0]).easier(rng, QUESTION_TOKENS)
        try:
            one = task.example(rng, split, material)
        except ValueError:
            task = find(PYTHON)
            one = task.example(rng, split, material)
        if task.likelihood:
            prompt = token_ids(llm, one.prompt + one.answer)[: rng.randint(LEAST_GIVEN, MOST_GIVEN)]
        elif one.messages and not one.tools and llm.chat_template is not None:
            prompt = llm.render(list(one.messages))
        else:
            prompt = token_ids(llm, one.prompt)
        sampling = SamplingParams(
            max_tokens=OUTPUT if task.likelihood else min(OUTPUT, one.max_tokens),
            temperature=HEAT if rng.random() < drawn else 0.0,
            seed=number,
            ignore_eos=task.likelihood,
        )
        found.append(Question(prompt, sampling))
    return found


def collect(llm: LLM, asked: Sequence[Question], heads: int, tell: Callable[[int, int], None]) -> Said:
    """Let the model answer; `tell(answered, asked)` meanwhile."""
    hidden: list[Tensor] = []
    targets: list[Tensor] = []
    before = llm.engine.decoding.proposer
    try:
        for start in range(0, len(asked), AT_ONCE):
            tell(start, len(asked))
            some = asked[start : start + AT_ONCE]
            llm.engine.decoding.proposer = recorder = Recorder()
            for done in llm.generate([one.prompt for one in some], [one.sampling for one in some]):
                tokens = torch.tensor(done.choices[0].tokens, dtype=torch.int32)
                states = recorder.states.get(done.request_id, [])[: len(tokens) - 1]  # nothing follows the last token
                if states:
                    hidden.append(torch.stack(states))
                    targets.append(following(tokens, heads)[: len(states)])
    finally:
        llm.engine.decoding.proposer = before
    return Said(torch.cat(hidden), torch.cat(targets))


def following(tokens: Tensor, heads: int) -> Tensor:
    """Of each of tokens [n] the `heads` ones after it, int32 [n, heads]; -1 behind the end."""
    padded = torch.cat([tokens, tokens.new_full((heads,), -1)])
    return torch.stack([padded[1 + k : 1 + k + len(tokens)] for k in range(heads)], 1)
