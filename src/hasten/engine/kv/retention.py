"""What a tier keeps: which chunks it takes at all, and which it gives up first.

Both are asked with `Facts`. A tier gives up a chunk only when it holds no chunk behind it, since those could not be found any
more; among the others the lowest score goes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True)
class Facts:
    """`start`: tokens of the prefix before the chunk; `nbytes` it takes in this tier; `seconds` that computing its KV again
    takes; `last_used`: the look-up that last found it, counted; `hits`: how often one did. `repaired`: of a chunk that is
    mended when it is used, the share that was computed again, mean of its uses."""

    start: int
    nbytes: int
    seconds: float
    last_used: int = 0
    hits: int = 0
    repaired: float = 1.0


class Retention(Protocol):
    """One object serves one tier."""

    def score(self, facts: Facts) -> float:
        """Asked when a chunk comes in and when it is found; the score stands in between."""
        ...

    def gave_up(self, score: float) -> None:
        """A chunk of this score had to go."""
        ...


class LRU:
    """Least recently used first; of those found together the deepest."""

    def score(self, facts: Facts) -> float:
        return facts.last_used - facts.start * 1e-9

    def gave_up(self, score: float) -> None:
        pass


class CostAware:
    """The seconds of computing that a byte saves go by how often a chunk was found; what is not found ages.

    Greedy-Dual-Size with frequency (Cherkasova, Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching
    Policy, 1998): a score is the last one that had to go, plus uses times cost by size."""

    def __init__(self) -> None:
        self._floor = 0.0

    def score(self, facts: Facts) -> float:
        return self._floor + (1 + facts.hits) * facts.seconds / facts.nbytes

    def gave_up(self, score: float) -> None:
        self._floor = max(self._floor, score)


Admission = Callable[[Facts], bool]


def always(facts: Facts) -> bool:
    return True


def once_found(facts: Facts) -> bool:
    """Only what was found again: most prompts are not, and writing them wears a disk for nothing."""
    return facts.hits > 0


RETENTIONS: dict[str, Callable[[], Retention]] = {"lru": LRU, "cost-aware": CostAware}
ADMISSIONS: dict[str, Admission] = {"all": always, "reused": once_found}
