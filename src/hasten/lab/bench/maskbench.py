"""Coverage on MaskBench: of how many schemas is every instance judged rightly, why are schemas refused, how long does it take.

`python -m hasten.lab.bench.maskbench [FILE]`; without a file the sample in the folder that HASTEN_DATA names. Instances are
written as MaskBench writes them (`json.dumps`, non-ASCII characters raw). A schema that no value satisfies is judged rightly if
all of its instances are invalid.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.machine import CompiledGrammar, Vocabulary
from hasten.engine.decoding.constraints.schema import Unsatisfiable, compile_schema

SAMPLE = "maskbench-sample.jsonl"


@dataclass(slots=True)
class Case:
    """`schema`: numbers exact. `instances`: texts, and whether they are valid."""

    id: str
    group: str
    schema: Any
    instances: list[tuple[bytes, bool]]


@dataclass(slots=True)
class Verdict:
    """`wrong`: numbers of the instances that were judged wrongly. `refused`: why the schema was."""

    case: Case
    front_s: float = 0.0
    machine_s: float = 0.0
    wrong: list[int] = field(default_factory=list)
    refused: str = ""

    @property
    def right(self) -> bool:
        return not self.wrong and not self.refused


def read(path: Path) -> Iterator[Case]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            exact, row = json.loads(line, parse_float=Decimal), json.loads(line)
            instances = [
                (json.dumps(test["data"], ensure_ascii=False).encode(errors="surrogatepass"), bool(test["valid"]))
                for test in row["tests"]
            ]
            yield Case(row["id"], row["group"], exact["schema"], instances)


def judge(case: Case, vocabulary: Vocabulary, limits: Limits | None = None) -> Verdict:
    """`vocabulary`: that of `byte_vocabulary`."""
    verdict, started = Verdict(case), time.perf_counter()
    try:
        grammar = compile_schema(case.schema, limits=limits)
        verdict.front_s = time.perf_counter() - started
        started = time.perf_counter()
        compiled = CompiledGrammar(grammar, vocabulary, limits)
        compiled.start().fill(np.zeros(vocabulary.words, np.int32))
        verdict.machine_s = time.perf_counter() - started
    except Unsatisfiable:
        verdict.front_s = time.perf_counter() - started
        verdict.wrong = [at for at, (_, valid) in enumerate(case.instances) if valid]
        return verdict
    except GrammarError as error:
        verdict.front_s = time.perf_counter() - started
        verdict.refused = str(error)
        return verdict
    verdict.wrong = [at for at, (text, valid) in enumerate(case.instances) if accepts(compiled, text) is not valid]
    return verdict


def accepts(compiled: CompiledGrammar, text: bytes) -> bool:
    """`compiled` for the vocabulary of `byte_vocabulary`."""
    state = compiled.start()
    if state.match(text) < len(text):
        return False
    for byte in text:
        state.advance(byte)
    return state.ended


def byte_vocabulary() -> Vocabulary:
    return Vocabulary([bytes([one]) for one in range(256)] + [b""], [256])


def report(verdicts: Iterable[Verdict]) -> str:
    verdicts = list(verdicts)
    lines = ["group              schemas  right  wrong  refused"]
    groups = Counter(verdict.case.group for verdict in verdicts)
    for group, count in [*sorted(groups.items()), ("all", len(verdicts))]:
        mine = [verdict for verdict in verdicts if group in ("all", verdict.case.group)]
        right, refused = sum(verdict.right for verdict in mine), sum(bool(verdict.refused) for verdict in mine)
        lines.append(f"{group:18} {count:7}  {right:5}  {count - right - refused:5}  {refused:7}")
    lines += [f"refused  {verdict.case.id}: {verdict.refused}" for verdict in verdicts if verdict.refused]
    lines += [f"wrong    {verdict.case.id}: instances {verdict.wrong}" for verdict in verdicts if verdict.wrong]
    for name, times in (
        ("front end", [verdict.front_s for verdict in verdicts]),
        ("to the first mask", [verdict.front_s + verdict.machine_s for verdict in verdicts if not verdict.refused]),
    ):
        shown = ", ".join(f"p{part} {1e3 * np.percentile(times, part):.2f}" for part in (50, 95, 99, 100))
        lines.append(f"{name}, ms: {shown}")
    return "\n".join(lines)


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(os.environ["HASTEN_DATA"], SAMPLE)
    vocabulary = byte_vocabulary()
    print(report(judge(case, vocabulary) for case in read(path)))


if __name__ == "__main__":
    main()
