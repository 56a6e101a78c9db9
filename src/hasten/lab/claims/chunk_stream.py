"""A stream of questions over many pieces of text, with memory for a part of them: what is found, how long prompts wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hasten.lab.claims.chunk_reuse import COMMON, PLAIN, SMALL, Progress
from hasten.lab.claims.sides import Side

if TYPE_CHECKING:
    from hasten.lab.bench.rag_runs import First, Ways

POOL = 16 << 20
"""Bytes of KV: about 10,900 tokens of the built-in model, half of them for chunks, so for 43 of 200 pieces of 128."""
SETTINGS = (*(one for one in COMMON if not one.startswith("kv.memory_bytes")), f"kv.memory_bytes={POOL}")
LEAD = 0.25
"""Share of the stream that fills the memory and is not measured."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """Of one way, behind the lead. `found`: per cent of the chunks met that were kept; 0 where no chunks are reused."""

    firsts: list[First]
    found: float

    def wait(self, percentile: float) -> float:
        """Seconds to the first token."""
        return float(np.percentile([one.seconds for one in self.firsts], percentile))

    @property
    def computed(self) -> float:
        return sum(one.computed for one in self.firsts)


def stream(sides: Sequence[Side], count: int, seed: int, progress: Progress) -> dict[str, Streamed]:
    """`count` questions to every side in turn, each with memory of its own."""
    from hasten.lab.bench.rag_runs import Ways

    ways = Ways(sides, SETTINGS)
    books = SMALL.library(ways, seed)
    queries = SMALL.queries(books, seed, count)
    lead = int(LEAD * count)
    firsts: dict[str, list[First]] = {side.name: [] for side in sides}
    before: dict[str, tuple[float, float]] = {}
    for number, query in enumerate(queries):
        progress(f"stream, question {number + 1} of {count}", number / count)
        if number == lead:
            before = {name: _met(ways, name) for name in firsts}
        for name, one in ways.firsts(books, [query], list(firsts)[:: 1 if number % 2 == 0 else -1]).items():
            firsts[name] += one
    found = {}
    for name in firsts:
        linked, met = (now - then for now, then in zip(_met(ways, name), before[name], strict=True))
        found[name] = Streamed(firsts[name][lead:], 100 * linked / met if met else 0.0)
    ways.close()
    return found


def _met(ways: Ways, name: str) -> tuple[float, float]:
    """Chunks linked so far, and all that were met."""
    linker = ways.llms[name].engine.ledger.linker
    if linker is None:
        return 0.0, 0.0
    counts = linker.counts()
    return counts["chunks_linked"], counts["chunks_linked"] + counts["chunks_computed"]


def in_words(found: dict[str, Streamed]) -> list[str]:
    plain = found[PLAIN.name]
    return [
        f"stream, {name}: {of.found:.0f} % of the pieces found, {100 * (1 - of.computed / plain.computed):.0f} % of the "
        f"prefix cache's tokens saved, first token after {1e3 * of.wait(50):.0f} ms at the median and "
        f"{1e3 * of.wait(99):.0f} ms at the 99th percentile"
        for name, of in found.items()
    ]
