"""What the claims `int8` and `int4` share: what rounding costs in perplexity, and decode steps timed in turns."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hasten.lab.claims.quality import PLAIN
from hasten.lab.claims.sides import Side
from hasten.lab.planning.known_models import KNOWN

if TYPE_CHECKING:
    from hasten.engine.loop import Engine

SHAPE = KNOWN["qwen3-0.6b"]
"""596 million weights, a quarter of them the head's."""
TASKS = ("recall", "needle:length=2048", "tracing", "arithmetic", "json")
BATCHES = (1, 32)
PROMPT = 32
"""Tokens in the cache when decoding begins; some hundred when it ends."""
TURNS = 4
"""How often the engines take turns within a round."""
STEPS = {1: 6, 32: 2}
"""Steps of a turn, by batch."""
NOTE = (
    "perplexity is that of a token, over essays, encyclopaedia text and Python; all sides read the same texts and answer the "
    "same questions; the engines step in turns, a few steps at a time, all their sequences running"
)
SPEED_SETTINGS = ("model.load_format=dummy", "model.dtype=bfloat16", "kv.reuse=none", "kv.memory_bytes=1073741824")

Progress = Callable[[str, float], None]


# Quality


@dataclass(frozen=True)
class Perplexities:
    """values[side]: the perplexity of a token, of every round; the plain engine is a side too."""

    values: dict[str, list[float]]

    def risen(self, side: Side, over: Side = PLAIN) -> list[float]:
        """By how many per cent, round by round."""
        both = zip(self.values[side.name], self.values[over.name], strict=True)
        return [100 * (mine / theirs - 1) for mine, theirs in both]


def perplexities(sides: Sequence[Side], *, rounds: int, n: int, seed: int, progress: Progress) -> Perplexities:
    """Of the sides and the plain engine over the same held-out texts of the testbed: `n` stretches of 512 tokens from each of
    its sources, others every round."""
    from hasten.engine.llm import LLM
    from hasten.lab.testbed.evaluate import evaluate, material_for
    from hasten.lab.testbed.tasks.language import KINDS, Language

    progress("loading", 0.0)
    engines = {side.name: LLM(with_=side.with_, set_=side.set_) for side in (PLAIN, *sides)}
    material = material_for(engines[PLAIN.name])
    sources = [Language(source) for source, kind in KINDS.items() if material.documents("held-out", kind)]
    values: dict[str, list[float]] = {name: [] for name in engines}
    turns = [(number, name) for number in range(rounds) for name in engines]
    for done, (number, name) in enumerate(turns):
        progress(f"round {number + 1} of {rounds}: perplexity, {name}", done / len(turns))
        values[name].append(_perplexity(evaluate(engines[name], sources, n, seed=seed + number, material=material)))
    for engine in engines.values():
        engine.engine.executor.close()
    return Perplexities(values)


def _perplexity(scores: Any) -> float:
    """e to the mean of the nats of a token, over all texts (`testbed.scores.Scores`)."""
    from hasten.lab.testbed.scores import BITS_PER_BYTE

    bits = sum(float(task.values(BITS_PER_BYTE) @ task.weights()) for task in scores.tasks)
    tokens = sum(task.prompt_tokens - len(task.outcomes) for task in scores.tasks)  # nothing predicts a text's first token
    return math.exp(bits * math.log(2) / tokens)


# Speed


@dataclass(frozen=True)
class DecodeTimes:
    """seconds[batch][side]: the median step of every round. bytes: of the weights, by side."""

    seconds: dict[int, dict[str, list[float]]]
    bytes: dict[str, int]

    def faster(self, side: Side, batch: int) -> list[float]:
        """Dense over the side, round by round."""
        of = self.seconds[batch]
        return [dense / mine for dense, mine in zip(of[PLAIN.name], of[side.name], strict=True)]

    def smaller(self, side: Side) -> float:
        """Dense weights' bytes over the side's."""
        return self.bytes[PLAIN.name] / self.bytes[side.name]

    def in_words(self, side: Side) -> str:
        """Medians over the rounds, with the least and the greatest."""
        said = []
        for batch, of in self.seconds.items():
            dense, mine = (
                f"{1e3 * median(ms):.1f} ms ({1e3 * min(ms):.1f} to {1e3 * max(ms):.1f})"
                for ms in (of[PLAIN.name], of[side.name])
            )
            said.append(f"a step at batch {batch}: {dense} dense, {mine} with the technique")
        return "; ".join(said)


def decode_times(side: Side, *, rounds: int, progress: Progress) -> DecodeTimes:
    """Decode steps of dense bfloat16 and of `side` on random weights of the SHAPE, in turns: every engine has its sequences
    running, and they step one after the other."""
    from hasten.engine.build import build
    from hasten.engine.config import EngineConfig

    engines: dict[str, Engine] = {}
    nbytes: dict[str, int] = {}
    with TemporaryDirectory(prefix="hasten-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
        for number, one in enumerate((PLAIN, side)):
            progress(f"random weights of Qwen3-0.6B's shape, {one.name}", 0.1 * number)
            built = build(EngineConfig.build(folder, with_=one.with_, set_=[*SPEED_SETTINGS, *one.set_]))
            engines[one.name], nbytes[one.name] = built.engine, built.info["weight_bytes"]
    seconds: dict[int, dict[str, list[float]]] = {}
    for number, batch in enumerate(BATCHES):
        begin, end = 0.2 + 0.4 * number, 0.6 + 0.4 * number
        progress(f"batch {batch}: prompts", begin)
        steps = 2 + rounds * TURNS * STEPS[batch]
        for engine in engines.values():
            _begin(engine, batch, steps)
        seconds[batch] = {name: [] for name in engines}
        for turn in range(rounds):
            progress(f"batch {batch}: round {turn + 1} of {rounds}", begin + (end - begin) * (0.3 + 0.7 * turn / rounds))
            for name, found in _round(engines, batch).items():
                seconds[batch][name].append(found)
        for engine in engines.values():
            engine.run()
    for engine in engines.values():
        engine.executor.close()
    return DecodeTimes(seconds, nbytes)


def _begin(engine: Engine, batch: int, steps: int) -> None:
    """Compute the prompts of `batch` sequences and their first two steps, which are slower."""
    import numpy as np

    from hasten.engine.request import Request, SamplingParams

    rng = np.random.default_rng(batch)
    sampling = SamplingParams(max_tokens=steps + 2, temperature=0.0, ignore_eos=True)
    for number in range(batch):
        prompt = rng.integers(16, engine.executor.vocabulary, PROMPT).astype(np.int32)
        engine.add(Request(id=f"{batch}-{number}", prompt=prompt, sampling=sampling))
    while _step(engine)[1] < batch:
        pass
    for _ in range(2):
        _step(engine)


def _round(engines: Mapping[str, Engine], batch: int) -> dict[str, float]:
    """The median step of each engine."""
    took: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(TURNS):
        for name in list(engines)[:: 1 if turn % 2 == 0 else -1]:
            for _ in range(STEPS[batch]):
                seconds, tokens = _step(engines[name])
                if tokens != batch:
                    raise RuntimeError(f"{name}: a step gave {tokens} tokens, {batch} were expected")
                took[name].append(seconds)
    return {name: median(found) for name, found in took.items()}


def _step(engine: Engine) -> tuple[float, int]:
    """Its seconds and tokens."""
    began = time.perf_counter()
    deltas = engine.step()
    seconds = time.perf_counter() - began
    if failed := [delta.error for delta in deltas if delta.error is not None]:
        raise RuntimeError(f"a request failed: {failed[0]}")
    return seconds, sum(len(delta.tokens) for delta in deltas)
