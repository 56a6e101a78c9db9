"""Two ways of doing the same work, measured alternately in one sitting, so that a drift of the machine meets both alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from hasten.lab.bench.figures import Figure, present

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a figure over the rounds: its median, and the lowest and highest."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure of both sides. `ratio`: B over A of the same round, None where A's is 0 in some round. `better` names the side
    (`a` or `b`) that was ahead in every round, and is empty where rounds disagree or neither way is better."""

    figure: Figure
    a: Spread
    b: Spread
    ratio: Spread | None
    better: str


def alternate(
    a: Callable[[int], T], b: Callable[[int], T], rounds: int, progress: Callable[[int], None] = lambda done: None
) -> list[tuple[T, T]]:
    """Results of A and B in each round, run in the order A B, B A, A B, ... so that neither always comes first. Each is called
    with the round's number, to seed its work alike. `progress` is called with the runs done, of 2 * rounds."""
    if rounds < 1:
        raise ValueError(f"at least one round is needed, got {rounds}")
    out = []
    for number in range(rounds):
        if number % 2 == 0:
            first = a(number)
            progress(2 * number + 1)
            out.append((first, b(number)))
        else:
            second = b(number)
            progress(2 * number + 1)
            out.append((a(number), second))
        progress(2 * number + 2)
    return out


def compare(rounds: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> list[Compared]:
    """Every figure that both sides have in every round, from the summaries of A and B."""
    every = [summary for pair in rounds for summary in pair]
    out = []
    for figure in present(every):
        if any(figure.key not in summary for summary in every):
            continue
        pairs = [(a[figure.key], b[figure.key]) for a, b in rounds]
        sides = [_spread([pair[side] for pair in pairs]) for side in (0, 1)]
        ratio = _spread([b / a for a, b in pairs]) if all(a for a, _ in pairs) else None
        out.append(Compared(figure, sides[0], sides[1], ratio, _ahead(figure, pairs)))
    return out


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def _ahead(figure: Figure, pairs: Sequence[tuple[float, float]]) -> str:
    if not figure.better:
        return ""
    sign = 1 if figure.better == "higher" else -1
    if all(sign * (b - a) > 0 for a, b in pairs):
        return "b"
    return "a" if all(sign * (a - b) > 0 for a, b in pairs) else ""
