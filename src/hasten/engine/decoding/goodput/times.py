"""What a step takes, as measured: the cost model's prediction, corrected for each size of step by what such steps took."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from math import log2

from hasten.engine.executors.cost import StepShape

LEARNING = 0.15
"""Weight of the newest step in the average of its size."""
OUTLIER = 2.0
"""A step that took longer than so many times its average counts as this long: somebody else had the processor."""


@dataclass(slots=True)
class _Size:
    """`seconds`: average of what such steps took; `shape`: the last one's; `at`: when that was, in steps."""

    seconds: float
    shape: StepShape
    at: int


class StepTimes:
    """Kept by the number of tokens: exactly up to eight, then four sizes to a doubling."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._known: list[int] = []
        self.steps = 0

    def learn(self, shape: StepShape, seconds: float) -> None:
        self.steps += 1
        size = size_of(shape.tokens)
        known = self._sizes.get(size)
        if known is None:
            self._sizes[size] = _Size(seconds, shape, self.steps)
            self._known.insert(bisect_left(self._known, size), size)
            return
        known.seconds += LEARNING * (min(seconds, OUTLIER * known.seconds) - known.seconds)
        known.shape, known.at = shape, self.steps

    def age(self, tokens: int) -> int | None:
        """Steps since one of about this size was measured, a third less or half more; None: never."""
        least, most = size_of(-(-2 * tokens // 3)), size_of(3 * tokens // 2)
        found = [known.at for size, known in self._sizes.items() if least <= size <= most]
        return self.steps - max(found) if found else None

    def predict(self, shape: StepShape, price: Callable[[StepShape], float]) -> float:
        """Seconds of a step. What the nearest measured size took, times what `price` says that this one costs over that."""
        if not self._known:
            return price(shape)
        size = size_of(shape.tokens)
        at = bisect_left(self._known, size)
        near = self._known[min(at, len(self._known) - 1)]
        if at and size - self._known[at - 1] < near - size:
            near = self._known[at - 1]
        known = self._sizes[near]
        return known.seconds * price(shape) / max(price(known.shape), 1e-12)


def size_of(tokens: int) -> int:
    return tokens if tokens <= 8 else int(9 + 4 * log2(tokens / 9))
