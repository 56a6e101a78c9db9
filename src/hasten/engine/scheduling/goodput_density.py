"""Goodput density: what serving a sequence gains under its SLO over the time it takes. The order of JITServe.

Zhang et al., JITServe: SLO-aware LLM Serving with Imprecise Request Information, 2025 (NSDI '26). How long an output becomes
is not known, so the gain that is left under the request's objectives, and what it takes (`gain`), are those to expect over the
lengths that the Lengths part holds possible, looked up again as tokens appear: they narrow while a sequence runs. Denser
sequences go first. Calls of one workflow under one deadline are weighed together, with what ended calls have already put in,
since all of it is lost if the deadline is missed; and they end in time only if the stages after theirs do as well, whose time
is that of earlier workflows (`patterns`). What lies in the slower tier pays for its copy back, what must be computed again pays
for that. Every key is made anew once in `frame` steps, and at once when an event changed it.

Exact. O(sequences) a frame, vectorised and spread over it; a look at the lengths costs what the Lengths part takes and is
made once for each arrival and again when the output has grown by a quarter.

Just enough, just in time: a sequence that loses nothing by waiting another frame lets others go first who do, so its gain
counts in full only as far as a frame's wait would cost it (`early` is what the rest counts for). Where all is in time anyway
that is close to earliest deadline first; beyond saturation it is the density that decides.

Where it differs from the paper, and what was reconstructed: its text and released code agree on gain and density, but the
code takes one upper quantile of the length, as it was at the start, counts the prompt in the gain and not in the time, and
gives each stage of a workflow its part of the deadline. With the upper quantile and a penalty under which only what is in time
counts, whatever could become long looks hopeless and makes way to what cannot (`quantile=0.95`). `per=time` is the paper's
density (seconds until the last token); the default `per=work` divides by what others cannot have: seconds of the *engine*,
prompt included, because under continuous batching a sequence shares its steps with others and a long prompt takes more of
them than its answer; and seconds of the *KV pool*, as far as that is full. The predicted share on schedule is ours (`gain`).
`penalty` is that of the released benchmark, with which what is late counts for nothing; with 1 a workflow that has missed its
deadline goes ahead of fresh requests by what it has put in. A request without objectives is taken to want its whole answer
within `best_effort_s`, a stream that only says its pace the first token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Event, Kind
from hasten.engine.scheduling import gain
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.scheduling.gain import Prices, Standing
from hasten.engine.scheduling.objectives import NEVER_S, is_compound
from hasten.engine.scheduling.pace import Pace
from hasten.engine.scheduling.standings import Ints, Standings
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique

Bools = npt.NDArray[np.bool_]

PARTS = 5
"""A frame's keys are made anew in so many turns, spread over it, so that no step plans for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    frame: int = 50
    """Steps in which every key is made anew once."""
    quantile: float | None = None
    """Of the predicted length: planned with as if it were the length (published: 0.95); None: with the whole distribution."""
    output_weight: float = 8.0
    """What an output token is worth in prompt tokens."""
    penalty: float = 100.0
    """Power of the share of its time that a late sequence keeps."""
    per: Literal["work", "time"] = field(default="work", metadata={"search": ("time",)})
    """Gain per second of the engine, or per second until the last token as in the paper."""
    early: float = field(default=0.1, metadata={"search": (1.0,)})
    """What that part of a gain counts for which another frame's wait would not cost. 1: as much as the rest, as published."""
    best_effort_s: float = 60.0
    """The deadline of a request without objectives, and of the first token of one that only has `tpot_s`."""


class GoodputDensity:
    stale_on = frozenset({Kind.FIRST_TOKEN, Kind.PREEMPTED, Kind.SWAPPED, Kind.TRANSFER_DONE})
    lifetime_s = math.inf
    learns_from = Pace.LEARNS_FROM | {Kind.ARRIVED, Kind.FORKED, Kind.FIRST_TOKEN, Kind.FINISHED, Kind.FAILED}

    def __init__(self, options: Options) -> None:
        if options.frame < 1:
            raise ValueError(f"goodput-density: frame must be at least 1 step, got {options.frame}")
        if options.quantile is not None and not 0 < options.quantile <= 1:
            raise ValueError(f"goodput-density: quantile must be above 0 and at most 1, got {options.quantile}")
        if not 0 <= options.early <= 1:
            raise ValueError(f"goodput-density: early must be a share from 0 to 1, got {options.early}")
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

    def _density(self, rows: Ints, view: View) -> gain.Floats:
        options, standings = self._options, self._standings
        standing, prices = standings.of(rows), self._pace.prices(view)
        groups = _Groups(standings, rows)
        later_s = gain.later_s(standings.later[rows], prices)
        if options.per == "time":
            takes_s = groups.largest(gain.remaining_s(standing, prices))
        else:
            takes_s = groups.total(gain.work_s(standing, prices))
        cost_s: gain.Floats = np.maximum(takes_s.mean(axis=1), 1e-9)
        streams = standings.streams[rows][:, None]
        now = self._worth(standing, prices, groups, streams, view.now, later_s)
        if options.early == 1:
            return now / cost_s
        put_off_s = view.now + options.frame * prices.interval_s
        put_off = self._worth(standing, prices, groups, streams, put_off_s, later_s)
        lost = np.maximum(0.0, now - put_off)
        return (lost + options.early * (now - lost)) / cost_s

    def _worth(
        self, standing: Standing, prices: Prices, groups: _Groups, streams: Bools, now_s: float, later_s: gain.Floats
    ) -> gain.Floats:
        """[n]: the gain to expect of each if it is served from `now_s` on, calls under one deadline together; their workflow
        takes `later_s` [n, cases] more after this stage."""
        options = self._options
        stream = gain.streaming(standing, now_s, prices, options.output_weight, options.penalty)
        response = groups.total(gain.whole(standing, options.output_weight)) + groups.ended[:, None]
        end_s = groups.largest(now_s + gain.remaining_s(standing, prices)) + later_s
        share = gain.kept_share(standing.deadline_s - standing.begin_s, end_s - standing.begin_s)
        response *= share**options.penalty
        bounded = standing.deadline_s < NEVER_S
        worth = np.where(streams, np.where(bounded, np.minimum(stream, response), stream), response)
        expected: gain.Floats = worth.mean(axis=1)
        return expected

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        kind = event.kind
        if kind in Pace.LEARNS_FROM:
            self._pace.learn(event)
            return self._next_part() if kind is Kind.READ else ()
        if sequence is None:
            return ()
        if is_compound(sequence):
            if kind in (Kind.ARRIVED, Kind.FORKED):
                self._standings.patterns.came(sequence, view.now)
            elif kind in (Kind.FINISHED, Kind.FAILED):
                self._standings.patterns.went(sequence, view.now)
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


class _Groups:
    """Calls under one deadline among `rows`: their values [n, cases] taken together, each call having that of all."""

    def __init__(self, standings: Standings, rows: Ints) -> None:
        group = standings.group[rows]
        self._inside = np.flatnonzero(group >= 0)
        which, self._of = np.unique(group[self._inside], return_inverse=True)
        self._count = len(which)
        self.ended = np.zeros(len(rows))
        """What the ended calls of each one's group have put in."""
        if self._count:
            self.ended[self._inside] = np.array([standings.ended(int(number)) for number in which])[self._of]

    def total(self, values: gain.Floats) -> gain.Floats:
        if self._count:
            found = np.zeros((self._count, values.shape[1]))
            np.add.at(found, self._of, values[self._inside])
            values[self._inside] = found[self._of]
        return values

    def largest(self, values: gain.Floats) -> gain.Floats:
        if self._count:
            found = np.full((self._count, values.shape[1]), -np.inf)
            np.maximum.at(found, self._of, values[self._inside])
            values[self._inside] = found[self._of]
        return values


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
