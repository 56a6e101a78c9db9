"""What the claims about drafting without a model have in common: questions of the testbed, answered one after another by
engines that take turns, with and without drafts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hasten.lab.claims.base import Guard
from hasten.lab.claims.sides import Side

if TYPE_CHECKING:
    from hasten.engine.build import Built
    from hasten.engine.request import Request

Progress = Callable[[str, float], None]
OFF = Side("off")
BEGINNING = 192
"""Tokens of a text that is given, and at most as many follow."""
EXACT = ("model.dtype=float32", "executor.deterministic=true")
"""Where equal means equal to the last token."""


@dataclass(slots=True)
class Times:
    """Of one side's answers, after each one's first step, which computes the prompt: the means of all rounds."""

    seconds: list[float] = field(default_factory=list)
    """A token, round by round."""
    tokens: list[float] = field(default_factory=list)
    """A step."""
    drafted: int = 0
    accepted: int = 0

    def in_words(self) -> str:
        share = f", {self.accepted / self.drafted:.0%} of {self.drafted} drafted tokens accepted" if self.drafted else ""
        return f"{1e3 * fmean(self.seconds):.2f} ms a token, {fmean(self.tokens):.2f} tokens a step{share}"


@cache
def _tokenizer() -> Any:
    """The built-in model's."""
    from hasten.engine.config import EngineConfig
    from hasten.engine.text import load_text

    return load_text(EngineConfig.build(None).model)[0]


def encode(text: str) -> list[int]:
    return list(_tokenizer().encode(text, add_special_tokens=False))


@cache
def texts() -> Any:
    """What questions are made of."""
    from hasten.lab.testbed import material

    return material.load(lambda text: len(encode(text)))


def built(side: Side, common: Sequence[str] = ()) -> Built:
    """An engine of the built-in model."""
    from hasten.engine.build import build
    from hasten.engine.config import EngineConfig

    config = EngineConfig.build(None, with_=side.with_, set_=[*common, *side.set_])
    return build(config, tokenizer=_tokenizer(), eos=_tokenizer().eos_ids)


def questions(task: str, count: int, seed: Any) -> list[Request]:
    """Greedy requests with the task as their application; of texts the beginnings, to be continued."""
    import numpy as np

    from hasten.engine.request import AppContext, Request, SamplingParams
    from hasten.lab.testbed.tasks.registry import find

    asked, kind = [], find(task)
    for number in range(count):
        one = kind.example(random.Random(f"{seed}/{task}/{number}"), "held-out", texts())
        tokens = encode(one.prompt + one.answer)[:BEGINNING] if kind.likelihood else encode(one.prompt)
        sampling = SamplingParams(max_tokens=one.max_tokens or BEGINNING, temperature=0.0, seed=number)
        prompt = np.asarray(tokens, dtype=np.int32)
        asked.append(Request(id=f"{task}-{seed}-{number}", prompt=prompt, sampling=sampling, app=AppContext(application=task)))
    return asked


def in_turns(engines: Mapping[str, Built], rounds: Sequence[Sequence[Request]], progress: Progress) -> dict[str, Times]:
    """Every side answers every question of every round, one after another, each other question in reverse order."""
    found = {name: Times() for name in engines}
    for at, asked in enumerate(rounds):
        progress(f"round {at + 1} of {len(rounds)}", at / len(rounds))
        spent = dict.fromkeys(engines, (0.0, 0, 0))
        for number, request in enumerate(asked):
            for name in list(engines)[:: 1 if number % 2 == 0 else -1]:
                seconds, tokens, steps = answer(engines[name], request, found[name])
                before = spent[name]
                spent[name] = (before[0] + seconds, before[1] + tokens, before[2] + steps)
        for name, (seconds, tokens, steps) in spent.items():
            found[name].seconds.append(seconds / tokens)
            found[name].tokens.append(tokens / steps)
    return found


def teach(engine: Built, asked: Sequence[Request]) -> None:
    """Let an engine answer questions that are not timed."""
    for request in asked:
        engine.engine.add(replace(request, id=f"before-{request.id}"))
    engine.engine.run()


def faster(times: Mapping[str, Times], name: str) -> list[float]:
    """Time a token, off over a side, round by round."""
    return [off / on for off, on in zip(times[OFF.name].seconds, times[name].seconds, strict=True)]


def answer(built: Built, request: Request, into: Times) -> tuple[float, int, int]:
    """One request alone: seconds, tokens and steps after the first one. What is drafted is counted in `into`."""
    engine = built.engine
    engine.add(request)
    seconds, tokens, steps = 0.0, 0, 0
    begun = False
    while engine.unfinished:
        began = time.perf_counter()
        deltas = engine.step()
        took = time.perf_counter() - began
        if failed := [delta.error for delta in deltas if delta.error is not None]:
            raise RuntimeError(f"a request failed: {failed[0]}")
        into.drafted += sum(delta.drafted for delta in deltas)
        into.accepted += sum(delta.accepted for delta in deltas)
        count = sum(len(delta.tokens) for delta in deltas)
        if begun and count:
            seconds, tokens, steps = seconds + took, tokens + count, steps + 1
        begun = begun or count > 0
    return seconds, tokens, steps


def same_tokens(side: Side, asked: Sequence[Request], *, twice: bool = False) -> Guard:
    """Whether a side gives the tokens of the plain engine, greedy and drawn, all questions at once with little memory: chunks,
    prefix hits and preemption take part. `twice`: asked again, since what was said then is drafted."""
    from hasten.engine.events import Kind

    requests = [*asked, *(_drawn(request) for request in asked)]
    given: list[dict[tuple[str, int], list[int]]] = []
    for one in (OFF, side):
        made = built(one, (*EXACT, "kv.memory_bytes=3000000", "scheduling.max_tokens=96"))
        for _ in range(1 + twice):
            tokens: dict[tuple[str, int], list[int]] = {}
            for request in requests:
                made.engine.add(request)
            for delta in made.engine.run():
                tokens.setdefault((delta.request_id, delta.index), []).extend(delta.tokens)
        given.append(tokens)
        events = made.engine.events
        made.engine.executor.close()
    unlike = sum(given[0][key] != given[1][key] for key in given[0])
    preempted = events.counts[Kind.PREEMPTED]
    total = sum(map(len, given[0].values()))
    return Guard(
        "equal tokens, greedy and drawn",
        not unlike and bool(events.counts[Kind.DRAFTED] and preempted),
        f"{unlike} of {len(given[0])} answers differ ({total} tokens; float32, deterministic kernels); "
        f"{events.sums[Kind.DRAFTED]:.0f} tokens drafted, {preempted} preemptions",
    )


def _drawn(request: Request) -> Request:
    """The same, drawn twice, with a penalty."""
    sampling = replace(request.sampling, temperature=0.8, n=2, presence_penalty=0.2)
    return replace(request, id=f"drawn-{request.id}", sampling=sampling)
