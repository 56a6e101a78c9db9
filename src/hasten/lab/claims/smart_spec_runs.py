"""What the claim `smart-spec` runs: answers recorded from the built-in pair, said again by a large model on a virtual clock,
and the built-in model for real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hasten.lab.claims.draft_model_pairs import ONE_THREAD, Pair, Said, logits_of

if TYPE_CHECKING:
    from hasten.engine.executors.recorded import Recording
    from hasten.engine.loop import Engine
    from hasten.engine.request import Request

Progress = Callable[[str, float], None]
Ints = npt.NDArray[np.int32]
LONGEST = 8
"""Tokens that the draft may propose under SmartSpec."""
MIXED = ("language", "json", "copying:words=64", "dialogue", "calls")
"""What `auto` meets: texts with little to copy, and answers that copy."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt, the built-in model's greedy answer, and whether the built-in draft had guessed each of its tokens, bool."""

    prompt: list[int]
    said: list[int]
    right: npt.NDArray[np.bool_]


def answers(pair: Pair, task: str, count: int, seed: int) -> list[Answer]:
    prompts, said, found = pair.prompts(task, count, seed), Said(), []
    pair.round(prompts, 0, 0.0, said, Said())
    proposer: Any = pair.drafting.engine.decoding.proposer
    for prompt, tokens in zip(prompts, said.tokens, strict=True):
        guessed = logits_of(proposer.second, prompt + tokens)[len(prompt) - 1 : -1].argmax(-1).numpy()
        found.append(Answer(prompt, tokens, guessed == np.array(tokens)))
    return found


@dataclass(slots=True)
class Load:
    """Requests in the order of their arrival: which answer each gets, and when it comes, in seconds."""

    answers: list[Answer]
    at_s: npt.NDArray[np.float64]

    def requests(self) -> list[Request]:
        from hasten.engine.request import Request, SamplingParams

        return [
            Request(
                id=f"r{number}",
                prompt=np.array(answer.prompt, dtype=np.int32),
                sampling=SamplingParams(max_tokens=len(answer.said), temperature=0.0, ignore_eos=True),
            )
            for number, answer in enumerate(self.answers)
        ]


def load_of(answers: Sequence[Answer], count: int, rate: float, seed: int) -> Load:
    """Poisson arrivals; an infinite rate: all at once."""
    rng = np.random.default_rng(seed)
    which = rng.integers(len(answers), size=count)
    at = np.cumsum(rng.exponential(1 / rate, count)) if rate < inf else np.zeros(count)
    return Load([answers[i] for i in which], at)


@dataclass(frozen=True, slots=True)
class Served:
    """`latency_s`: mean from arrival to end; `rate`: requests a second until the last one ended."""

    latency_s: float
    rate: float


def serve(engine: Engine, load: Load) -> Served:
    """Raises RuntimeError when a request fails."""
    begin = engine.clock.now()
    requests, due = load.requests(), begin + load.at_s
    came, waited = 0, 0.0
    while came < len(requests) or engine.unfinished:
        now = engine.clock.now()
        while came < len(requests) and due[came] <= now:
            engine.add(requests[came])
            came += 1
        coming = float(due[came]) if came < len(requests) else inf
        if not engine.unfinished:
            engine.clock.wait(coming, lambda: False)
            continue
        for delta in engine.step(coming):
            if delta.error is not None:
                raise RuntimeError(f"{delta.request_id} failed: {delta.error}")
            if delta.finish is not None:
                waited += engine.clock.now() - due[int(delta.request_id[1:])]
    return Served(waited / len(requests), len(requests) / (engine.clock.now() - begin))


class Virtual:
    """Llama-3.1 8B on a simulated H100 says what was recorded, Llama-3.2 1B beside it drafts as the built-in draft did."""

    def __init__(self) -> None:
        from hasten.lab.planning.devices import on_hardware
        from hasten.lab.planning.hardware import profile
        from hasten.lab.planning.shapes import shape

        hardware = profile("h100")
        self._device = on_hardware(shape("llama-3.1-8b"), hardware)
        self._draft = on_hardware(shape("llama-3.2-1b"), hardware).costs

    def serve(self, load: Load, with_: Sequence[str], length: int) -> Served:
        """`length`: tokens that the draft model proposes; 0: it is not there."""
        from hasten.engine.config import EngineConfig
        from hasten.engine.executors.recorded import Recording

        # After a request's last token drafts are still looked at.
        said = {f"r{i}": _padded(np.array(answer.said, dtype=np.int32)) for i, answer in enumerate(load.answers)}
        right = {f"r{i}": _padded(answer.right) for i, answer in enumerate(load.answers)}
        recording: Recording = Recording(said, right, self._draft if length else None, length)
        engine = self._device.engine(EngineConfig.build(with_=with_), recording=recording, single_steps=True)
        return serve(engine, load)


def _padded(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([column, np.zeros(LONGEST + 32, dtype=column.dtype)])


class Real:
    """The built-in model, drafting off and `auto`, on one thread."""

    def __init__(self) -> None:
        from hasten.engine.build import build
        from hasten.engine.config import EngineConfig

        settings = [*ONE_THREAD, "kv.reuse=none"]
        self.sides = {name: build(EngineConfig.build(None, speculate=name, set_=settings)) for name in ("off", "auto")}

    def close(self) -> None:
        for built in self.sides.values():
            built.engine.executor.close()

    def round(self, load: Load, number: int) -> dict[str, Served]:
        """Both sides, each other round in reverse order."""
        return {name: serve(self.sides[name].engine, load) for name in list(self.sides)[:: 1 if number % 2 == 0 else -1]}
