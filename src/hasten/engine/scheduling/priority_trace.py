"""Priorities from a trace: a fair scheduler's changing priorities, the same for every engine that is compared.

FastSwitch (Shen et al., 2024) drives its experiments with priorities drawn beforehand and changed every few dozen steps, so
that what is measured is the cost of switching, not one fairness policy. After every 25 to 50 steps (drawn too) each user's
priority is drawn anew: `random`, uniformly; `markov`, only with probability 1 - `stay`, so that who was served lately is likely
to be served again. A draw is a function of the seed, the user (its workflow, or the request where there is none) and how often
priorities were drawn before, so two engines differ in when they draw, never in what. Exact. O(sequences) a draw.

Ours: whoever was not served for `patience` draws goes before all others until it is, the longest waiting first, so that nobody
starves however the draws fall. The paper's intervals and stay probability were not found; these are from memory (25 to 50
steps) and ours (0.8).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Event, Kind
from hasten.engine.rng import mix, uniform
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    pattern: Literal["markov", "random"] = "markov"
    least: int = 25
    """Fewest steps between two draws."""
    most: int = 50
    """Most steps."""
    stay: float = 0.8
    """With `markov`, the probability that a priority stays."""
    patience: int = 20
    """Draws after which a sequence that was not served goes first."""
    seed: int = 0


_FIELDS = np.dtype([("user", "u8"), ("key", "f8"), ("draw", "i8"), ("served", "i8"), ("since", "i8")])
"""Of a sequence: its user, its key as of `draw`, and how much it was `served` by draw `since`, the last before which it was."""


class PriorityTrace:
    stale_on: frozenset[Kind] = frozenset()
    lifetime_s = math.inf
    learns_from = frozenset({Kind.STEP, Kind.FINISHED, Kind.FAILED})

    def __init__(self, options: Options) -> None:
        if not 1 <= options.least <= options.most:
            raise ValueError(f"priority-trace: 1 <= least <= most, got {options.least} and {options.most}")
        if not 0 <= options.stay < 1:
            raise ValueError(f"priority-trace: stay must lie in [0, 1), got {options.stay}")
        if options.patience < 1:
            raise ValueError(f"priority-trace: patience must be at least 1 draw, got {options.patience}")
        self._options = options
        self._stay = options.stay if options.pattern == "markov" else 0.0
        self._draw = 0
        self._left = self._interval()
        self._standing = np.zeros(64, dtype=_FIELDS)
        self._places: dict[int, int] = {}
        """By sequence, its place in `_standing`."""
        self._unused = list(range(64))

    def _interval(self) -> int:
        """Steps until the next draw."""
        options = self._options
        return options.least + int(uniform(mix(options.seed, 1), self._draw) * (options.most - options.least + 1))

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        if event.kind is not Kind.STEP:
            place = self._places.pop(event.sequence, None)
            if place is not None:
                self._unused.append(place)
            return ()
        self._left -= 1
        if self._left:
            return ()
        self._draw += 1
        self._left = self._interval()
        return list(self._places)

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        """In [0, 1), or below 0 for those that waited too long: float64 [n]."""
        for seq in stale:
            if seq.id not in self._places:
                self._join(seq)
        places = self._places
        at = np.array([places[seq.id] for seq in stale], dtype=np.int64)
        them = self._standing[at]
        # Every key is asked for after every draw, so nobody is more than one behind.
        changes = them["draw"] < self._draw
        changes &= _uniform(self._options.seed, 2 * self._draw, them["user"]) >= self._stay
        them["key"][changes] = _uniform(self._options.seed, 2 * self._draw + 1, them["user"][changes])
        service = np.array([seq.service for seq in stale], dtype=np.int64)
        them["since"] = np.where(service != them["served"], self._draw, them["since"])
        them["served"], them["draw"] = service, self._draw
        self._standing[at] = them
        unserved = self._draw - them["since"]
        keys: npt.NDArray[np.float64] = np.where(unserved >= self._options.patience, -unserved.astype(np.float64), them["key"])
        return keys

    def _join(self, seq: Sequence) -> None:
        user = zlib.crc32((seq.request.app.workflow or seq.request.id).encode())
        one = np.array([user], dtype=np.uint64)
        draw = self._draw
        while draw and _uniform(self._options.seed, 2 * draw, one)[0] < self._stay:
            draw -= 1  # its user's priority stayed
        if not self._unused:
            self._unused = list(range(len(self._standing), 2 * len(self._standing)))
            self._standing = np.concatenate([self._standing, np.zeros_like(self._standing)])
        place = self._places[seq.id] = self._unused.pop()
        key = float(_uniform(self._options.seed, 2 * draw + 1, one)[0])
        self._standing[place] = (user, key, self._draw, seq.service, self._draw)

    def steady(self, plan: StepPlan, view: View) -> float:
        return self._left


def _uniform(seed: int, number: int, users: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Draw `number` of each user, uniform in [0, 1): SplitMix64 (Steele et al., 2014) of seed, number and user."""
    with np.errstate(over="ignore"):
        z = users * np.uint64(0x9E3779B97F4A7C15) + np.uint64(mix(seed, number))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


TECHNIQUE = Technique(
    name="priority-trace",
    seam="scheduling",
    summary="priorities drawn anew every few dozen steps, for experiments",
    exact=True,
    sets={"scheduling.order": "priority-trace"},
    options=Options,
    make=lambda context, options: PriorityTrace(options),
    paper="the driver of FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware LLM Serving, 2024",
)
