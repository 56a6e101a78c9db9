"""Scores of a model on tasks, through the engine itself, so that every technique is seen to keep or to lose quality.

All questions of a task are given to the engine at once and answered greedily. Question i of a task depends on the seed, the
task's notation and i alone: two configurations are asked the same, and can be compared pair by pair (`pairwise.py`).
"""

from __future__ import annotations

import math
import platform
import random
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
import xxhash

from hasten import __version__
from hasten.engine.config import EngineConfig
from hasten.engine.llm import LLM
from hasten.engine.outputs import Choice, Completion
from hasten.engine.request import BadRequest, SamplingParams
from hasten.engine.technique import find
from hasten.lab.bench.machine import processor
from hasten.lab.claims.machine import commit
from hasten.lab.testbed import material as texts
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.scores import BITS_PER_BYTE, Outcome, Scores, TaskScores, estimates
from hasten.lab.testbed.tasks.base import Example, Split, Task
from hasten.lab.testbed.tasks.registry import notation

STANDARD = (
    "recall:pairs=16,length=2048",
    "needle:length=4096",
    "needle:length=2048,needles=4,queries=2",
    "dialogue",
    "tracing",
    "tracing:steps=false",
    "copying",
    "rules",
    "arithmetic",
    "arithmetic:steps=false",
    "json",
    "calls",
    "sql",
    "python",
    "language",
    "language:source=python",
)
"""What is asked when no task is named."""

Progress = Callable[[str, int, int], None]
"""Takes what is being done, and how much of how much of it."""


class EvaluationFailed(RuntimeError):
    """A question could not be drawn, or the engine broke down at it, which is no wrong answer; the message says how."""


def evaluate(
    engine: LLM,
    tasks: Sequence[Task],
    n: int,
    *,
    seed: int = 0,
    split: Split = "held-out",
    material: Material | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Ask `n` questions of every task and score the answers. `material`: what questions are made of (None: `material_for`).

    Raises ValueError for fewer than two questions or a task asked twice, BadRequest for a question that the engine cannot take
    (too long for its context), EvaluationFailed when there is no text to ask of or the engine fails."""
    names = [notation(task) for task in tasks]
    if n < 2:
        raise ValueError(f"at least two questions are needed, one has no spread; got n={n}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"each task is to be named once, and one at least; got {', '.join(names) or 'none'}")
    tell = progress or (lambda what, done, total: None)
    if material is None:
        tell("reading texts", 0, 1)
        material = material_for(engine)
    results = []
    for name, task in zip(names, tasks, strict=True):
        examples = draw(task, name, n, seed, split, material, tell)
        try:
            results.append(_run(engine, task, name, examples, tell))
        except BadRequest as fault:
            raise BadRequest(f"{name}: {fault.message}", fault.param) from None
    return labelled(engine, results, seed, split)


def labelled(engine: LLM, results: list[TaskScores], seed: int, split: Split) -> Scores:
    """Results with all that says where they come from."""
    config = engine.config
    return Scores(
        model=config.model.path,
        fingerprint=engine.parts.model.fingerprint,
        configuration=in_options(config),
        seed=seed,
        split=split,
        tasks=results,
        engine={name: value for name, value in engine.info.items() if name != "model"},
        cpu=processor(),
        python=platform.python_version(),
        torch=torch.__version__,
        version=__version__,
        commit=commit(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def material_for(engine: LLM) -> Material:
    """Texts (see `material.load`), measured in the engine's tokens."""
    return texts.load(lambda text: len(engine.tokenizer.encode(text, add_special_tokens=False)))


def draw(task: Task, name: str, n: int, seed: int, split: Split, material: Material, tell: Progress) -> list[Example]:
    examples = []
    for i in range(n):
        tell(f"{name}: questions", i, n)
        try:
            examples.append(task.example(random.Random(f"{seed}/{name}/{i}"), split, material))
        except ValueError as fault:
            raise EvaluationFailed(f"{name}: question {i} cannot be drawn: {fault}") from fault
    return examples


def _run(engine: LLM, task: Task, name: str, examples: list[Example], tell: Progress) -> TaskScores:
    likelihood = task.likelihood
    asked = [token_ids(engine, e.prompt + e.answer if likelihood else e.prompt) for e in examples]
    sampling = [_weighing() if likelihood else SamplingParams(max_tokens=e.max_tokens, temperature=0) for e in examples]
    tell(name, 0, len(examples))
    began = time.perf_counter()
    done = engine.generate(asked, sampling, progress=lambda ended, total: tell(name, ended, total))
    seconds = time.perf_counter() - began
    if failed := [one.choices[0].error for one in done if one.choices[0].error is not None]:
        raise EvaluationFailed(f"{name}: the engine failed at {len(failed)} of {len(done)} questions, first: {failed[0]}")
    if likelihood:
        outcomes = [_weighed(engine, e, one) for e, one in zip(examples, done, strict=True)]
    else:
        outcomes = [_answered(engine, task, e, one) for e, one in zip(examples, done, strict=True)]
    return TaskScores(
        task=name,
        estimates=estimates(outcomes, [BITS_PER_BYTE] if likelihood else task.metrics),
        outcomes=outcomes,
        seconds=seconds,
        prompt_tokens=sum(map(len, asked)),
        output_tokens=sum(len(one.choices[0].tokens) for one in done),
    )


def token_ids(engine: LLM, text: str) -> list[int]:
    return engine.tokenizer.encode(text, add_special_tokens=False)


def _answered(engine: LLM, task: Task, example: Example, done: Completion) -> Outcome:
    output = spoken(engine, done.choices[0])
    return Outcome(
        question=fingerprint(example),
        answer=example.answer,
        output=output,
        scores=task.score(example, output),
        prompt=example.prompt,
    )


def spoken(engine: LLM, choice: Choice) -> str:
    """What was generated, special tokens included, without the token that ended it."""
    tokens = choice.tokens
    if choice.finish == "stop" and tokens and tokens[-1] in engine.tokenizer.eos_ids:
        tokens = tokens[:-1]
    return engine.tokenizer.decode(tokens, skip_special=False)


def _weighing() -> SamplingParams:
    """Log-probabilities of all the prompt's tokens; the one token that is generated besides is not looked at."""
    return SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)


def _weighed(engine: LLM, example: Example, done: Completion) -> Outcome:
    """Bits per byte of the answer after the prompt. Both are tokenised as one text; a token that reaches over their border
    counts as the answer's."""
    scores = done.prompt_logprobs
    assert scores is not None
    first = _common(token_ids(engine, example.prompt), done.prompt_tokens)
    nats = [score.logprob for score in scores[first:] if score is not None]
    weight = len(example.answer.encode())
    if not first or not weight:
        raise ValueError("a text that is weighed needs a prompt before it, whose tokens predict its first")
    bits = -math.fsum(nats) / math.log(2)
    if not math.isfinite(bits):
        raise EvaluationFailed("the engine's log-probabilities are not finite")
    return Outcome(
        question=fingerprint(example),
        answer="",
        output="",
        scores={BITS_PER_BYTE: bits / weight},
        weight=weight,
        prompt=example.prompt,
    )


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def fingerprint(example: Example) -> str:
    return xxhash.xxh3_128_hexdigest(f"{example.prompt}\0{example.answer}".encode())


def in_options(config: EngineConfig) -> str:
    """The configuration as command-line options, the model left out."""
    with_ = [
        ":".join([name, *(f"{knob}={value}" for knob, value in knobs.items())]) for name, knobs in config.techniques.items()
    ]
    plain = dict(_flat(EngineConfig()))
    for name in config.techniques:
        for path, value in find(name).sets.items():
            plain[path] = (*plain[path], *value) if isinstance(value, tuple) else value
    options = [f"--with {name}" for name in with_]
    options += [
        f"--set {path}={','.join(value) if isinstance(value, tuple) else value}"
        for path, value in _flat(config)
        if plain[path] != value and path != "model.path"
    ]
    return " ".join(options) or "the plain engine"


def _flat(config: EngineConfig) -> Iterable[tuple[str, Any]]:
    sections = config.model_dump(exclude={"techniques"}).items()
    return ((f"{section}.{name}", value) for section, fields in sections for name, value in fields.items())
