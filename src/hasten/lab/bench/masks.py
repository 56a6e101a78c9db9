"""Replaying MaskBench instances token by token: what each engine of masks judges rightly, and how long it takes.

A position's time is the median of several replays from the start; the first replay ("cold") and first masks are kept apart. A
replay ends where the engine forbids the instance's next token. Garbage collection of Python waits meanwhile.
"""

from __future__ import annotations

import gc
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from hasten.lab.bench.mask_peers import Hasten, MaskEngine, Masks, Refused
from hasten.lab.bench.mask_vocabulary import Words

REPLAYS = 5
Progress = Callable[[str, float], None]


@dataclass(slots=True)
class Case:
    """`instances`: tokens, and whether they are valid."""

    id: str
    group: str
    schema: str
    instances: list[tuple[list[int], bool]]


@dataclass(slots=True)
class Times:
    """Seconds. `firsts`: of a text's first mask; `masks`, `cold`: of all others, by position."""

    firsts: list[float] = field(default_factory=list)
    masks: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Replayed:
    """One engine on one schema. `first_mask`: seconds from the schema's text to the first mask; `again`: for a second request
    with the same text, where the engine keeps grammars."""

    case: Case
    times: Times = field(default_factory=Times)
    refused: str = ""
    wrong: list[int] = field(default_factory=list)
    first_mask: float = 0.0
    again: float = 0.0
    bytes: int = 0
    compiled: Any = None

    @property
    def right(self) -> bool:
        return not self.refused and not self.wrong


def read(path: Path, words: Words) -> list[Case]:
    """A file of MaskBench, instances written as it writes them."""
    cases = []
    with path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            texts = [(json.dumps(test["data"], ensure_ascii=False), bool(test["valid"])) for test in row["tests"]]
            instances = [(words.split(text), valid) for text, valid in texts]
            cases.append(Case(row["id"], row["group"], json.dumps(row["schema"], ensure_ascii=False), instances))
    return cases


def drawn(cases: Sequence[Case], each: int) -> list[Case]:
    """`each` schemas of every group, evenly."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.group].append(case)
    return [group[i * len(group) // each] for group in groups.values() for i in range(each)]


def room(words: Words, rows: int = 1) -> Masks:
    return np.zeros((rows, (len(words.all) + 31) // 32), np.int32)


@contextmanager
def quiet() -> Iterator[None]:
    """No pauses of Python's garbage collector inside."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def replay(engine: MaskEngine, case: Case, masks: Masks, replays: int = REPLAYS) -> Replayed:
    """`masks`: room for one. With one replay verdicts come quickly; its times are all cold."""
    found = Replayed(case)
    with quiet():
        began = perf_counter()
        try:
            compiled = engine.compile("json_schema", case.schema)
            engine.fill(engine.start(compiled), masks)
        except Refused as refusal:
            # That no value satisfies the schema is no refusal but a judgement of its instances.
            if "nsatisfiable" in str(refusal) or "no value" in str(refusal):
                found.wrong = [number for number, (_, valid) in enumerate(case.instances) if valid]
            else:
                found.refused = str(refusal)
            found.first_mask = perf_counter() - began
            return found
        found.first_mask = perf_counter() - began
        if isinstance(engine, Hasten):
            engine.again(case.schema)
            began = perf_counter()
            engine.fill(engine.start(engine.again(case.schema)), masks)
            found.again = perf_counter() - began
        for number, (tokens, valid) in enumerate(case.instances):
            if walk(engine, compiled, tokens, masks, found.times, replays) is not valid:
                found.wrong.append(number)
    found.bytes, found.compiled = engine.bytes(compiled), compiled
    return found


def walk(engine: MaskEngine, compiled: Any, tokens: list[int], masks: Masks, times: Times, replays: int = REPLAYS) -> bool:
    """Whether the engine accepts the text; what it took is added to `times`."""
    taken: list[list[float]] = [[] for _ in tokens]
    row = masks[0]
    for _ in range(replays):
        state = engine.start(compiled)
        accepted = True
        for at, token in enumerate(tokens):
            began = perf_counter()
            engine.fill(state, masks)
            filled = perf_counter()
            taken[at].append(filled - began)
            if not row[token >> 5] >> (token & 31) & 1 or not engine.accept(state, token):
                accepted = False
                break
            times.commits.append(perf_counter() - filled)
        accepted = accepted and engine.ended(state)
    times.firsts += [median(found) for found in taken[:1] if found]
    times.masks += [median(found) for found in taken[1:] if found]
    times.cold += [found[0] for found in taken[1:] if found]
    return accepted


def in_turns(
    engines: Sequence[MaskEngine], cases: Sequence[Case], words: Words, progress: Progress
) -> dict[str, list[Replayed]]:
    """Every engine on every schema, one schema at a time, in changing order."""
    masks = room(words)
    found: dict[str, list[Replayed]] = {engine.name: [] for engine in engines}
    for number, case in enumerate(cases):
        progress(f"masks: {case.id}", number / len(cases))
        for engine in engines[:: 1 if number % 2 == 0 else -1]:
            found[engine.name].append(replay(engine, case, masks))
    return found


# Batches


def batches(
    engines: Sequence[MaskEngine], results: Mapping[str, list[Replayed]], sizes: Sequence[int], words: Words, steps: int
) -> dict[str, dict[int, float]]:
    """Mean seconds of filling the masks of a batch, by engine and size. The states are those of different texts at different
    places, of what all of `engines` read rightly; each step fills all of them (the median of REPLAYS counts) and gives each its
    next token."""
    judged = zip(*(results[engine.name] for engine in engines), strict=True)
    both = [of for of in judged if all(one.right and one.compiled is not None for one in of)]
    found: dict[str, dict[int, float]] = {engine.name: {} for engine in engines}
    for number, engine in enumerate(engines):
        texts = [(of[number].compiled, tokens) for of in both for tokens, valid in of[0].case.instances if valid and tokens]
        for size in sizes:
            masks = room(words, size)
            lanes = [_lane(engine, texts, lane) for lane in range(size)]
            taken = []
            with quiet():
                for _ in range(steps):
                    states = [next(lane) for lane in lanes]
                    times = []
                    for _ in range(REPLAYS):
                        began = perf_counter()
                        engine.fill_many(states, masks)
                        times.append(perf_counter() - began)
                    taken.append(median(times))
            found[engine.name][size] = float(np.mean(taken))
    return found


def _lane(engine: MaskEngine, texts: Sequence[tuple[Any, list[int]]], turn: int) -> Iterator[Any]:
    """The states of one place in the batch: one text after the other, the first from somewhere in its middle."""
    begin = turn * 7919 % len(texts[turn % len(texts)][1])
    while True:
        compiled, tokens = texts[turn % len(texts)]
        state = engine.start(compiled)
        for at, token in enumerate(tokens):
            if at >= begin:
                yield state
            engine.accept(state, token)
        turn, begin = turn + 1, 0


# Summaries


def compiled_by_all(results: Mapping[str, list[Replayed]], names: Sequence[str]) -> dict[str, list[Replayed]]:
    """Of every engine, the schemas that all those named compile."""
    kept = [all(not results[name][at].refused for name in names) for at in range(len(results[names[0]]))]
    return {name: [one for one, keep in zip(of, kept, strict=True) if keep] for name, of in results.items()}


def quantiles(times: Sequence[float], unit: float = 1e-6) -> dict[str, float]:
    """In units of `unit` seconds."""
    if not times:
        return {}
    parts = {f"p{part}": float(np.percentile(times, part)) / unit for part in (50, 95, 99)}
    return {**parts, "mean": float(np.mean(times)) / unit, "max": max(times) / unit, "count": len(times)}


def together(results: Sequence[Replayed], what: str) -> list[float]:
    """One of the lists of `Times`, over all schemas."""
    return [seconds for one in results for seconds in getattr(one.times, what)]


def coverage(results: Sequence[Replayed]) -> float:
    return 100 * sum(one.right for one in results) / len(results)


def per_group(results: Sequence[Replayed]) -> dict[str, dict[str, int]]:
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for one in results:
        verdict = "right" if one.right else "refused" if one.refused else "wrong"
        groups[one.case.group].update({"schemas": 1, verdict: 1})
    return {group: dict(counts) for group, counts in sorted(groups.items())}
