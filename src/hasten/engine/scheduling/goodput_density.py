"""Goodput density: what serving a sequence gains under its SLO over the time it takes. The order of JITServe.

Zhang et al., JITServe: SLO-aware LLM Serving with Imprecise Request Information, 2025 (NSDI '26). How long an output becomes
is not known, so its length is taken at an upper quantile of what the Lengths part predicts, looked up again as tokens appear:
the conservatism shrinks while a sequence runs. From it follow the gain that is left under the request's objectives and the
time that is left (`gain`); denser sequences go first. Calls of one workflow under one deadline are weighed together, with
what ended calls have already put in, since all of it is lost if the deadline is missed. What lies in the slower tier pays for
its copy back, what must be computed again pays for that. Every key is made anew once in `frame` steps, and at once when an
event changed it.

Exact. O(sequences) a frame, vectorised and spread over it; a look at the lengths costs what the Lengths part takes and is
made once for each arrival and again when the output has grown by a quarter.

Where it differs from the paper, and what was reconstructed: its text and released code agree on gain and density, but the
code takes the predicted length as it was at the start, counts the prompt in the gain and not in the time, and spreads a
deadline over the workflow by matched patterns, which we leave out. `per=time` is the paper's density (seconds until the last
token); the default `per=work` divides by seconds *of the engine*, prompt included, because under continuous batching a
sequence shares its steps with others and a long prompt takes more of them than its answer. The predicted share on schedule is
ours (`gain`), and so is the sharper `penalty`: the paper's 1 leaves a request that is late by half its deadline two thirds of
its worth, while a whole response that misses its deadline counts for nothing in token goodput. A request without objectives
is taken to want its whole answer within `best_effort_s`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Event, Kind
from hasten.engine.scheduling import gain
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.scheduling.objectives import NEVER_S, is_compound
from hasten.engine.scheduling.pace import Pace
from hasten.engine.scheduling.standings import Standings
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique

PARTS = 5
"""A frame's keys are made anew in so many turns, spread over it, so that no step plans for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    frame: int = 50
    """Steps in which every key is made anew once."""
    quantile: float = 0.95
    """Of the predicted length: the length that is planned with."""
    output_weight: float = 8.0
    """What an output token is worth in prompt tokens."""
    penalty: float = 4.0
    """Power of the share of its time that a late sequence keeps; the paper's is 1."""
    per: Literal["work", "time"] = "work"
    """Gain per second of the engine, or per second until the last token as in the paper."""
    best_effort_s: float = 60.0
    """The deadline of a request without objectives."""


class GoodputDensity:
    stale_on = frozenset({Kind.FIRST_TOKEN, Kind.PREEMPTED, Kind.SWAPPED, Kind.TRANSFER_DONE})
    lifetime_s = math.inf
    learns_from = Pace.LEARNS_FROM | {Kind.ARRIVED, Kind.FORKED, Kind.FIRST_TOKEN, Kind.FINISHED, Kind.FAILED}

    def __init__(self, options: Options) -> None:
        if options.frame < 1:
            raise ValueError(f"goodput-density: frame must be at least 1 step, got {options.frame}")
        if not 0 < options.quantile <= 1:
            raise ValueError(f"goodput-density: quantile must be above 0 and at most 1, got {options.quantile}")
        for name in ("output_weight", "penalty", "best_effort_s"):
            if not 0 < (value := getattr(options, name)) < math.inf:
                raise ValueError(f"goodput-density: {name} must be a number above 0, got {value}")
        self._options = options
        self._pace = Pace(options.frame)
        self._parts = min(PARTS, options.frame)
        self._every = options.frame // self._parts
        self._steps = 0
        self._standings = Standings(options.quantile, options.best_effort_s, options.output_weight)

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        """Minus the density of each."""
        rows = self._standings.refresh(stale, view, self._pace.block_copy_s)
        siblings = self._standings.siblings(rows)
        every = np.concatenate([rows, siblings])
        return -self._density(every, view)[: len(rows)]

    def _density(self, rows: npt.NDArray[np.int64], view: View) -> npt.NDArray[np.float64]:
        options, standings = self._options, self._standings
        standing, prices = standings.of(rows), self._pace.prices(view)
        taken_s = gain.remaining_s(standing, prices)
        cost_s = taken_s if options.per == "time" else gain.engine_s(standing, prices)
        end_s = view.now + taken_s
        stream = gain.streaming(standing, view.now, prices, options.output_weight, options.penalty)
        response = gain.whole(standing, options.output_weight)
        group = standings.group[rows]
        inside = np.flatnonzero(group >= 0)
        if len(inside):
            # Calls under one deadline: their gains together, as late as the last of them.
            which, of = np.unique(group[inside], return_inverse=True)
            end_s[inside] = _over(np.maximum, end_s[inside], of, len(which), -np.inf)
            ended = np.array([standings.ended(int(number)) for number in which])
            response[inside] = (np.bincount(of, response[inside], len(which)) + ended)[of]
            if options.per == "time":
                cost_s[inside] = _over(np.maximum, cost_s[inside], of, len(which), 0.0)
            else:
                cost_s[inside] = np.bincount(of, cost_s[inside], len(which))[of]
        share = gain.kept_share(standing.deadline_s - standing.begin_s, end_s - standing.begin_s)
        response *= share**options.penalty
        streams = standings.streams[rows]
        bounded = standing.deadline_s < NEVER_S
        found = np.where(streams & bounded, np.minimum(stream, response), np.where(streams, stream, response))
        return found / np.maximum(cost_s, 1e-9)

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        kind = event.kind
        if kind in Pace.LEARNS_FROM:
            self._pace.learn(event)
            return self._next_part() if kind is Kind.READ else ()
        if sequence is None:
            return ()
        if kind is Kind.FIRST_TOKEN:
            self._standings.began(sequence, event.time_s)
            return ()
        if kind in (Kind.FINISHED, Kind.FAILED):
            self._standings.ended_one(sequence, kind is Kind.FINISHED)
        return tuple(view.workflow(sequence).live) if is_compound(sequence) else ()

    def _next_part(self) -> Iterable[int]:
        """After a step: whose keys are due for being made anew."""
        self._steps += 1
        turn, left = divmod(self._steps, self._every)
        return self._standings.part(turn % self._parts, self._parts) if not left else ()

    def steady(self, plan: StepPlan, view: View) -> float:
        """Until keys are made anew."""
        return self._every - self._steps % self._every


def _over(ufunc: np.ufunc, values: gain.Floats, of: npt.NDArray[np.int64], groups: int, start: float) -> gain.Floats:
    """`ufunc` over the values of each group, given to all of them."""
    found = np.full(groups, start)
    ufunc.at(found, of, values)
    return found[of]


TECHNIQUE = Technique(
    name="goodput-density",
    seam="scheduling",
    summary="most goodput for the time it takes first, by each request's SLO and predicted length",
    exact=True,
    sets={"scheduling.order": "goodput-density"},
    options=Options,
    make=lambda context, options: GoodputDensity(options),
    paper="JITServe: SLO-aware LLM Serving with Imprecise Request Information, 2025",
)
