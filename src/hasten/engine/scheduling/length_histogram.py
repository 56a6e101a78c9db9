"""Output lengths as they were: a histogram for each application and stage.

Each call's output is counted for its application and stage, for its application, and for all; a group with few outputs leans on
the next larger one, with the weight of a few outputs. What a sequence will still produce is read off the part of the histogram
beyond what it has produced, so the answer is refined with every token. Exact. O(bins) a question that is new, a look-up for one
that was asked before; memory is bounded by `GROUPS` groups of some 5 kB.

In use since the first length-aware schedulers; the grouping by stage is that of demand graphs (Hermes, 2025). Outputs that were
cut short count as longer than what they had (`lengths/survival.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.engine.request import Request
from hasten.engine.scheduling.lengths.saved import Arrays, Floats, Learning
from hasten.engine.scheduling.lengths.survival import BINS, UPPER, Counts, bin_of, lengths
from hasten.engine.technique import Technique

GROUPS = 1024
"""Most groups; the one that learned least recently is forgotten."""
LEAN = 8.0
"""Outputs that the larger group's histogram counts for in a smaller one's."""
_CACHED = 4096
_MANY = 1 << 20

Group = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    half_life: float = 1000.0
    """Outputs of a group after which one counts half: smaller follows drift faster."""
    file: str = ""
    """Where what was learned is kept; empty: nowhere."""


class LengthHistogram(Learning):
    name = "length-histogram"

    def __init__(self, options: Options) -> None:
        if not 1 <= options.half_life < float("inf"):
            raise ValueError(f"length-histogram: half_life must be a number of outputs from 1 on, got {options.half_life}")
        self._half_life = options.half_life
        self._groups: OrderedDict[Group, Counts] = OrderedDict({(): Counts(options.half_life)})
        self._learned = 0
        self._known: OrderedDict[tuple[Group, int], tuple[int, Floats]] = OrderedDict()
        """Answers by group and bin of what was produced, with how much had been learned then."""
        super().__init__(options.file)

    def observe(self, request: Request, output: int, *, ended: bool) -> None:
        for group in _groups(request):
            counts = self._groups.get(group)
            if counts is None:
                counts = self._groups[group] = Counts(self._half_life)
            counts.add(output, ended=ended)
            self._groups.move_to_end(group)
        while len(self._groups) > GROUPS:
            # The newest ones of this request stand last, with () among them.
            self._groups.popitem(last=False)
        self._learned += 1

    def predict(self, request: Request, produced: int) -> Floats | None:
        if not self._learned:
            return None
        group = next(g for g in _groups(request)[::-1] if g in self._groups)
        place = bin_of(produced + 1)
        # Many outputs are not changed by a few more, and hardly by those of other groups.
        own = self._groups[group].seen
        age = (own if own < 256 else own // 16) * _MANY + min(self._learned, _MANY) // 64
        found = self._known.get((group, place))
        if found is None or found[0] != age:
            begin = int(UPPER[place - 1]) if place else 0
            found = self._known[group, place] = (age, lengths(self._weights(group), begin))
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        return np.maximum(found[1] - produced, 1.0)

    def _weights(self, group: Group) -> Floats:
        """float64 [2, BINS]: the group's own counts, and the larger groups' as `LEAN` more."""
        own = self._groups[group].weights() if group in self._groups else np.zeros((2, BINS))
        if not group:
            return own
        larger = self._weights(group[:-1])
        return own + larger * min(1.0, LEAN / max(float(larger.sum()), 1e-9))

    def groups(self) -> dict[Group, float]:
        """Outputs known of each group, decayed."""
        return {group: counts.total for group, counts in self._groups.items()}

    def state(self) -> tuple[dict[str, Any], Arrays]:
        names = [list(group) for group in self._groups]
        return {"groups": names, "learned": self._learned}, {
            "weights": np.stack([counts.weights() for counts in self._groups.values()])
        }

    def restore(self, meta: dict[str, Any], arrays: Arrays) -> None:
        weights = arrays["weights"]
        if weights.shape != (len(meta["groups"]), 2, BINS):
            raise ValueError(f"its counts have the shape {weights.shape}")
        groups: OrderedDict[Group, Counts] = OrderedDict()
        for group, (ended, cut) in zip(meta["groups"], weights, strict=True):
            counts = groups[tuple(group)] = Counts(self._half_life)
            counts.ended, counts.cut = ended.copy(), cut.copy()
        groups.setdefault((), Counts(self._half_life))
        self._groups, self._learned = groups, int(meta["learned"])
        self._known.clear()


def _groups(request: Request) -> tuple[Group, ...]:
    """From the largest group to the smallest that a request belongs to."""
    app = request.app
    return (), (app.application,), (app.application, app.stage)


TECHNIQUE = Technique(
    name="length-histogram",
    seam="scheduling",
    summary="output lengths as they were for the same application and stage",
    exact=True,
    sets={"scheduling.lengths": "length-histogram"},
    options=Options,
    make=lambda context, options: LengthHistogram(options),
)
