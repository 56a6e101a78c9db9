"""Hermes: Gittins order over probabilistic demand graphs ("Efficient Serving of LLM Applications with Probabilistic Demand
Modeling", 2025).

An application's calls and tools are no black boxes: from runs that were logged, a graph of its units with what each asks for is
learned beforehand (`demand/graph.py`), and whenever a unit of a run begins, the rest of the graph is walked a few hundred times
from where it stands, with what is known (the branch taken, the prompts, the demand so far). The samples are totals of service
in seconds of the cost model; the applications with the best odds of being done for the least service (Gittins index) go
first, and all calls of a run carry its index. The same samples say which tool will be needed soon, so that it can be warmed
up (`Hint`).

Exact. A unit's beginning costs one walk of O(walks x units of the rest) in numpy, shared by runs in the same state, and a sort;
an index O(walks) a bucket of attained service; nothing else happens in a step but a look at those who run, when one of them may
have reached the next bucket.

What the paper leaves open is reconstructed here: how buckets of demand are formed and what test says that demand depends on
them (`demand/graph.py`), ten buckets of attained service, K = 0.5. Different: estimates are made when a unit begins instead of
when the one before ends, since until then no call of the run is queued; a tool between two stages is not seen by the engine and
is inferred from both. Long applications could wait for ever: `scheduling.patience_s` is set with it.
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
from hasten.engine.scheduling.base import Hint, StepPlan, View
from hasten.engine.scheduling.demand import gittins
from hasten.engine.scheduling.demand.application import Application, Applications
from hasten.engine.scheduling.demand.hints import Hints
from hasten.engine.scheduling.demand.prices import Prices
from hasten.engine.scheduling.demand.store import Demand
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique

_NO_DEADLINE = 1e12
"""Applications without a deadline go behind all that have one."""
_REST = 4
"""Steps between two looks at those that run: where hundreds do, somebody reaches something in every one."""
_AHEAD = 256
"""Decode steps after which everybody is looked at again."""
_MOST_STEPS = 4
"""The same of full steps of prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    graphs: str = ""
    """File of demand graphs (`hasten demand learn`). Applications without one go by what the lengths part says of their
    calls."""
    rule: Literal["gittins", "mean", "deadline"] = "gittins"
    """Highest Gittins index; shortest mean of what remains; or least slack to the application's deadline (the first of its
    calls' `slo.deadline_s`), behind which those without one go by their index."""
    walks: int = 256
    buckets: int = 10
    """Buckets of attained service, an index each."""
    prewarm: float = 0.5
    """K: a backend is asked for once it is needed within its warm-up time with this probability."""
    step_tokens: int = 512
    """Tokens of the step of which a token's service is a share."""
    seed: int = 0


class Hermes:
    stale_on: frozenset[Kind] = frozenset()
    lifetime_s = math.inf
    learns_from = frozenset({Kind.ARRIVED, Kind.FORKED, Kind.PREEMPTED, Kind.FINISHED, Kind.FAILED, Kind.STEP})

    def __init__(self, options: Options, demand: Demand | None = None) -> None:
        for name, low in (("walks", 8), ("buckets", 1), ("step_tokens", 1), ("seed", 0)):
            if (value := getattr(options, name)) < low:
                raise ValueError(f"hermes: {name} must be at least {low}, got {value}")
        if not 0 < options.prewarm <= 1:
            raise ValueError(f"hermes: prewarm must be a probability above 0, got {options.prewarm}")
        self._options = options
        self._demand = demand if demand is not None else Demand.load(options.graphs) if options.graphs else Demand()
        self._applications = Applications(self._demand.graphs, options.walks, options.seed)
        self._prices: Prices | None = None
        self._hints = Hints(self._demand.warm_s, options.prewarm)
        self._look_after, self._look_tokens = 0.0, 0.0
        """Steps, and tokens of prompts, after which somebody may have reached something."""
        self._rest = 0
        """Steps before which nobody is looked at."""
        self._running = 0

    # -- the order --------------------------------------------------------------------------------------------------------

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        prices = self._priced(view)
        out = np.empty(len(stale))
        for i, seq in enumerate(stale):
            app = self._applications.of[seq.id]
            if app.total is None:
                app.estimate(prices, view)
                assert app.total is not None
                app.edges = gittins.edges(app.total, self._options.buckets)
                self._hints.begin(app)
                self._look_after = 0.0
                self._place(app, app.attained(prices))
            out[i] = app.key
        return out

    def _place(self, app: Application, attained_s: float) -> bool:
        """Put the application into its bucket of attained service; whether that changed its key."""
        bucket = int(np.searchsorted(app.edges, attained_s, side="right")) - 1
        if bucket == app.bucket:
            return False
        app.bucket = bucket
        key = self._key(app, float(app.edges[bucket]))
        changed = key != app.key
        app.key = key
        return changed

    def _key(self, app: Application, attained_s: float) -> float:
        assert app.total is not None
        if self._options.rule == "deadline" and app.deadline_s < math.inf:
            return app.deadline_s - self._rest_time(app, attained_s)
        rest = gittins.after(app.total, attained_s)
        key = float(rest.mean()) if self._options.rule == "mean" else gittins.rank(rest)
        return key + _NO_DEADLINE if self._options.rule == "deadline" else key

    @staticmethod
    def _rest_time(app: Application, attained_s: float) -> float:
        """Mean seconds until the application is done if nobody is in its way."""
        assert app.total is not None and app.rest_time is not None
        left = app.total > attained_s
        if not left.any():
            return 0.0
        later_s, current_s, unit_s = (part[left] for part in app.rest_time)
        return float((later_s + current_s * np.clip(1 - attained_s / np.maximum(unit_s, 1e-9), 0, 1)).mean())

    # -- what happens -----------------------------------------------------------------------------------------------------

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        if event.kind is Kind.STEP:
            return self._step(event, view)
        assert sequence is not None
        prices = self._priced(view)
        self._look_after = 0.0
        if event.kind is Kind.PREEMPTED:
            self._applications.dropped.add(sequence.id)
            return ()
        if event.kind in (Kind.ARRIVED, Kind.FORKED):
            app, begins = self._applications.came(sequence, view, prices)
            if begins:
                self._hints.left(app, sequence, view)
            return list(app.live)
        gone = self._applications.went(sequence, prices, event.time_s)
        if gone is None or gone.total is None or not gone.live:
            return ()
        return list(gone.live) if self._place(gone, gone.attained(prices)) else ()

    def _step(self, event: Event, view: View) -> Iterable[int]:
        self._hints.stepped(event.b)
        self._look_after -= 1
        self._rest -= 1
        self._look_tokens -= max(0.0, event.a - self._running)
        nothing = self._look_after > 0 and self._look_tokens > 0
        return () if nothing or self._rest > 0 else self._look(view)

    def _look(self, view: View) -> list[int]:
        """At every application that runs: has it reached another bucket, is a backend needed soon? And when to look again."""
        prices = self._priced(view)
        stale: list[int] = []
        running = [
            pair for pair in self._applications.running(view) if pair[1].total is not None and pair[0].id in pair[1].live
        ]
        self._running = len(running)
        self._look_after, self._look_tokens = float(_AHEAD), float(_MOST_STEPS * self._options.step_tokens)
        self._rest = _REST
        if not running:
            return stale
        apps = list(dict.fromkeys(app for _, app in running))
        place = {id(app): i for i, app in enumerate(apps)}
        columns = [(place[id(app)], s.prompt_length, s.view.length, s.length, s.index) for s, app in running]
        of, prompt, held, length, index = np.array(columns, dtype=np.int64).T
        had_s = np.where(index == 0, prices.prompt(np.minimum(prompt, held)), 0.0) + prices.output(prompt, length - prompt)
        attained_s = np.array([app.done_s for app in apps]) + np.bincount(of, had_s)
        bounds = np.array([(app.edges[app.bucket], app.edges[app.bucket + 1]) for app in apps])
        for i in np.flatnonzero((attained_s < bounds[:, 0]) | (attained_s >= bounds[:, 1])).tolist():
            if self._place(apps[i], float(attained_s[i])):
                stale += apps[i].live
            bounds[i, 1] = apps[i].edges[apps[i].bucket + 1]
        # Half of the way to the next bucket is left to decoding, half to prompts and whoever starts meanwhile.
        way_s = (bounds[:, 1] - attained_s) / 2
        step_s = np.bincount(of, prices.decoded(length + _AHEAD))
        longest = max(int(length.max()), max(app.longest for app in apps))
        steps = min(float((way_s / step_s).min()), float(_AHEAD))
        self._look_tokens = max(1.0, min(self._look_tokens, float(way_s.min()) / prices.decoded(longest + _AHEAD)))
        for app in apps:
            if app.wanted:
                steps = min(steps, self._hints.look(app, prices, view))
        self._look_after = max(1.0, steps)
        return stale

    def steady(self, plan: StepPlan, view: View) -> float:
        """Keys change by events, or when running applications are looked at."""
        started = len(plan.work) - self._running
        by_tokens = self._look_tokens // started if started > 0 else math.inf
        return max(0.0, self._rest, min(self._look_after, by_tokens))

    def hints(self, view: View) -> Seq[Hint]:
        return self._hints.take()

    def _priced(self, view: View) -> Prices:
        if self._prices is None:
            self._prices = Prices.of(view, self._options.step_tokens)
        return self._prices


TECHNIQUE = Technique(
    name="hermes",
    seam="scheduling",
    summary="applications by Gittins index over what their demand graphs say they still need",
    exact=True,
    sets={
        "scheduling.order": "hermes",
        "scheduling.residency": "rank-yields",
        "scheduling.preempt": True,
        "scheduling.patience_s": 60.0,
    },
    options=Options,
    make=lambda context, options: Hermes(options),
    paper="Efficient Serving of LLM Applications with Probabilistic Demand Modeling (Hermes), 2025",
)
