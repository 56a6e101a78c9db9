"""What the claim `pre3` measures with models: validity of answers, and the speed of constrained decoding against plain."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.lab.claims.base import Guard
from hasten.lab.claims.constrained_schemas import ASKED, FIXED, LONG, PARCELS, SCHEMAS
from hasten.lab.claims.quantized import SHAPE

if TYPE_CHECKING:
    from hasten.engine.loop import Engine
    from hasten.engine.request import Request
    from hasten.lab.bench.mask_vocabulary import Words

Progress = Callable[[str, float], None]
PROMPT = 8
FIRST = 1000
"""The least token of a prompt, beyond those that are no text."""
TURNS = 4
"""How often the two take turns within a round."""
STEPS = {1: 6, 32: 2}
"""Steps of a turn, by batch."""
COMMON = ("kv.reuse=none",)
DUMMY = ("model.load_format=dummy", "model.dtype=bfloat16", "kv.memory_bytes=1073741824")


def validity(*, seeds: int, seed: int, progress: Progress) -> tuple[int, list[str]]:
    """How many answers the built-in model gave to the SCHEMAS, greedy and drawn, and those that are cut short or invalid."""
    import jsonschema

    from hasten.engine.llm import LLM
    from hasten.engine.request import SamplingParams

    llm, count, bad = LLM(), 0, []
    for number, (name, schema) in enumerate(SCHEMAS.items()):
        progress(f"answers for the schema {name}", number / len(SCHEMAS))
        constraint = ConstraintSpec.of_schema(schema, whitespace=2)
        for temperature, n in ((0.0, 1), (1.0, seeds)):
            params = SamplingParams(max_tokens=400, temperature=temperature, seed=seed, n=n, constraint=constraint)
            for choice in (choice for done in llm.chat(ASKED, params) for choice in done.choices):
                count += 1
                try:
                    jsonschema.validate(json.loads(choice.text), schema)
                except (ValueError, jsonschema.ValidationError):
                    bad.append(choice.text)
    llm.engine.executor.close()
    return count, bad


def everything_together() -> Guard:
    """Forced tokens, the prefix cache and preemption beside a grammar change no token of a greedy answer."""
    from hasten.engine.events import Kind
    from hasten.engine.llm import LLM
    from hasten.engine.request import SamplingParams

    rules = {"role": "system", "content": " ".join(["Write down what is ordered, with the customer and each count."] * 5)}
    constraint = ConstraintSpec.of_schema(SCHEMAS["order"], whitespace="compact", order="schema")
    params = SamplingParams(max_tokens=120, temperature=0.0, constraint=constraint)
    answers = []
    for with_, set_ in (
        ((), ("kv.reuse=none",)),
        (("forced-tokens",), ("kv.memory_bytes=1000000", "scheduling.max_tokens=48")),
    ):
        llm = LLM(with_=with_, set_=["model.dtype=float32", "executor.deterministic=true", *set_])
        done = llm.chat([[rules, *asked] for asked in ASKED], params)
        answers.append([choice.tokens for one in done for choice in one.choices])
        events = llm.engine.events
        llm.engine.executor.close()
    counts, reused = events.counts, events.sums[Kind.REUSED]
    took_part = bool(counts[Kind.DRAFTED] and counts[Kind.PREEMPTED] and reused)
    unlike = sum(a != b for a, b in zip(*answers, strict=True))
    return Guard(
        "grammar, forced tokens, prefix cache and preemption together give the tokens of plain constrained decoding",
        took_part and not unlike,
        f"{unlike} of {len(ASKED)} greedy answers differ; {counts[Kind.DRAFTED]} drafts, {counts[Kind.PREEMPTED]} preemptions, "
        f"{reused:.0f} tokens reused",
    )


# Speed


@contextmanager
def engines(words: Words | None, *sides: Sequence[str]) -> Iterator[list[Engine]]:
    """One engine a side (its techniques): of the built-in model, or of random weights of Qwen3-0.6B's shape with the vocabulary
    `words`."""
    from hasten.engine.build import build
    from hasten.engine.config import EngineConfig

    with TemporaryDirectory(prefix="hasten-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
        model, set_ = (None, COMMON) if words is None else (folder, (*COMMON, *DUMMY))
        tokenizer = _tokenizer(words)
        built = [
            build(EngineConfig.build(model, with_=side, set_=set_), tokenizer=tokenizer, eos=tokenizer.eos_ids).engine
            for side in sides
        ]
    yield built
    for engine in built:
        engine.executor.close()


def kept_speed(words: Words | None, *, rounds: int, progress: Progress) -> dict[int, list[float]]:
    """Tokens a second of constrained decoding in per cent of unconstrained, by batch, round by round: two engines step in
    turns, all their sequences running."""
    found: dict[int, list[float]] = {}
    with engines(words, (), ()) as both:
        for place, (batch, steps) in enumerate(STEPS.items()):
            begin, length = place / len(STEPS), 1 / len(STEPS)
            for engine, constraint in zip(both, (None, ConstraintSpec.of_schema(LONG)), strict=True):
                progress(f"batch {batch}: prompts", begin)
                _begin(engine, batch, 4 + rounds * TURNS * steps, constraint)
            found[batch] = []
            for number in range(rounds):
                progress(f"batch {batch}: round {number + 1} of {rounds}", begin + length * (0.2 + 0.8 * number / rounds))
                plain, constrained = _round(both, batch, steps)
                found[batch].append(100 * plain / constrained)
            for engine in both:
                engine.run()
    return found


def _round(engines: Sequence[Engine], batch: int, steps: int) -> list[float]:
    """The mean step of each engine: what few masks cost more counts as well."""
    took: list[list[float]] = [[] for _ in engines]
    for turn in range(TURNS):
        for at in range(len(engines))[:: 1 if turn % 2 == 0 else -1]:
            for _ in range(steps):
                seconds, tokens = _step(engines[at])
                if tokens != batch:
                    raise RuntimeError(f"a step gave {tokens} tokens, {batch} were expected")
                took[at].append(seconds)
    return [fmean(seconds) for seconds in took]


def forced_speed(words: Words | None, *, count: int, seed: int, progress: Progress) -> list[float]:
    """Tokens a second with forced tokens over those of unconstrained text of the same length after the same prompt, question by
    question. Random weights write parcels, compact; the built-in model answers questions of the testbed's task `json`, in the
    form that it has learnt to write."""
    asked = _facts(1 + count, seed) if words is None else _parcels(words, 1 + count)
    found = []
    with engines(words, (), ("forced-tokens",)) as (plain, forced):
        for number, (prompt, most, constraint) in enumerate(asked):
            progress(f"forced tokens: {number} of {count}", number / (1 + count))
            mine, tokens = _answer(forced, _request("forced", prompt, most, constraint))
            theirs, _ = _answer(plain, _request("plain", prompt, tokens, None))
            found.append(theirs / mine)
    return found[1:]  # the first steps of an engine are slower


def _parcels(words: Words, count: int) -> list[tuple[list[int], int, ConstraintSpec]]:
    """(prompt, tokens at most, constraint) of each question."""
    constraint = ConstraintSpec.of_schema(FIXED, whitespace="compact", order="schema")
    return [(words.encode(PARCELS % number), 50, constraint) for number in range(100, 100 + count)]


def _facts(count: int, seed: int) -> list[tuple[list[int], int, ConstraintSpec]]:
    from hasten.engine.llm import LLM
    from hasten.lab.testbed.evaluate import material_for
    from hasten.lab.testbed.tasks.extraction import MOST_FIELDS, Extraction

    llm, task, rng, asked = LLM(), Extraction(fields=MOST_FIELDS), random.Random(seed), []
    material = material_for(llm)
    for _ in range(count):
        question = task.example(rng, "held-out", material)
        schema = {**question.expected["schema"], "additionalProperties": False}
        constraint = ConstraintSpec.of_schema(schema, whitespace="spaced", order="schema")
        asked.append((llm.tokenizer.encode(question.prompt), 200, constraint))
    llm.engine.executor.close()
    return asked


def _tokenizer(words: Words | None) -> Any:
    """Of the built-in model, or `words`, which have all that is asked of one here."""
    from hasten.engine.config import EngineConfig
    from hasten.engine.text import load_text

    return words or load_text(EngineConfig.build(None).model)[0]


def _request(id: str, prompt: Sequence[int], tokens: int, constraint: ConstraintSpec | None) -> Request:
    import numpy as np

    from hasten.engine.request import Request, SamplingParams

    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=constraint is None, constraint=constraint)
    return Request(id=id, prompt=np.asarray(prompt, np.int32), sampling=sampling)


def _answer(engine: Engine, request: Request) -> tuple[float, int]:
    """Seconds and tokens after the first step, which computes the prompt."""
    engine.add(request)
    while not _step(engine)[1]:
        pass
    seconds, tokens = 0.0, 1
    while engine.unfinished:
        more, count = _step(engine)
        seconds, tokens = seconds + more, tokens + count
    return seconds, tokens


def _begin(engine: Engine, batch: int, steps: int, constraint: ConstraintSpec | None) -> None:
    """Compute the prompts of `batch` sequences and their first two steps, which are slower."""
    import numpy as np

    rng = np.random.default_rng(batch)
    for number in range(batch):
        prompt = rng.integers(FIRST, engine.executor.vocabulary, PROMPT).tolist()
        engine.add(_request(f"{batch}-{number}", prompt, steps, constraint))
    while _step(engine)[1] < batch:
        pass
    for _ in range(2):
        _step(engine)


def _step(engine: Engine) -> tuple[float, int]:
    """Its seconds and tokens."""
    began = time.perf_counter()
    deltas = engine.step()
    seconds = time.perf_counter() - began
    if failed := [delta.error for delta in deltas if delta.error is not None]:
        raise RuntimeError(f"a request failed: {failed[0]}")
    return seconds, sum(len(delta.tokens) for delta in deltas)
