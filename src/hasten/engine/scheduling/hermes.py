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
them (`demand/graph.py`), ten buckets of attained service, K = 0.5. Different: estimates are made when a unit begins instead
of when the one before ends, since until then no call of the run is queued; a tool between two stages is not seen by the
engine and is inferred from both; `ageing` lets nobody wait for ever, which the index alone would.
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
from hasten.engine.scheduling.demand.prices import Prices
from hasten.engine.scheduling.demand.store import Demand
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique

_NO_DEADLINE = 1e12
"""Applications without a deadline go behind all that have one."""
_LOOKS = 8
"""How often a running unit is looked at while a warm-up would last."""
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
    ageing: float = 0.01
    """Seconds of index that a second of waiting is worth: 0 lets long applications starve under overload."""
    prewarm: float = 0.5
    """K: a backend is asked for once it is needed within its warm-up time with this probability."""
    step_tokens: int = 512
    """Tokens of the step of which a token's service is a share."""
    seed: int = 0


class Hermes:
    stale_on: frozenset[Kind] = frozenset()
    lifetime_s = math.inf
    learns_from = frozenset({Kind.ARRIVED, Kind.FORKED, Kind.FINISHED, Kind.FAILED, Kind.STEP})

    def __init__(self, options: Options, demand: Demand | None = None) -> None:
        for name, low in (("walks", 8), ("buckets", 1), ("step_tokens", 1), ("seed", 0)):
            if (value := getattr(options, name)) < low:
                raise ValueError(f"hermes: {name} must be at least {low}, got {value}")
        if not 0 <= options.ageing < math.inf:
            raise ValueError(f"hermes: ageing must be a number from 0 on, got {options.ageing}")
        if not 0 < options.prewarm <= 1:
            raise ValueError(f"hermes: prewarm must be a probability above 0, got {options.prewarm}")
        self._options = options
        self._demand = demand if demand is not None else Demand.load(options.graphs) if options.graphs else Demand()
        self._applications = Applications(self._demand.graphs, options.walks, options.seed)
        self._prices: Prices | None = None
        self._step_s = 0.0
        """What a step takes, as it was lately."""
        self._hints: list[Hint] = []
        self._look_after, self._look_tokens = 0.0, 0.0
        """Steps, and tokens of prompts, after which somebody may have reached something."""
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
                self._look_for_backends(app)
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
        index = float(rest.mean()) if self._options.rule == "mean" else gittins.rank(rest)
        # Ageing needs no clock: everybody gains alike, so who came earlier is ahead by a fixed amount.
        key = index + self._options.ageing * app.arrival_s
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
        if event.kind in (Kind.ARRIVED, Kind.FORKED):
            app, begins = self._applications.came(sequence, view, prices)
            if begins:
                self._unneeded(app, view, sequence)
            return list(app.live)
        gone = self._applications.went(sequence, prices, event.time_s)
        if gone is None or gone.total is None or not gone.live:
            return ()
        return list(gone.live) if self._place(gone, gone.attained(prices)) else ()

    def _step(self, event: Event, view: View) -> Iterable[int]:
        self._step_s += (0.1 if self._step_s else 1.0) * (event.b - self._step_s)
        self._look_after -= 1
        self._look_tokens -= max(0.0, event.a - self._running)
        return () if self._look_after > 0 and self._look_tokens > 0 else self._look(view)

    def _look(self, view: View) -> list[int]:
        """At every application that runs: has it reached the next bucket, is a backend needed soon? And when to look again."""
        prices = self._priced(view)
        stale: list[int] = []
        steps = tokens = math.inf
        running: dict[int, Application] = {}
        self._running = 0
        for number, app in self._applications.of.items():
            seq = app.live.get(number)
            if seq is not None and seq.view.length and app.total is not None:
                running[id(app)] = app
                self._running += 1
        for app in running.values():
            attained_s = app.attained(prices)
            if self._place(app, attained_s):
                stale += app.live
            # Half of the way to the next bucket is left to decoding, half to prompts.
            way_s = (float(app.edges[app.bucket + 1]) - attained_s) / 2
            context = [seq.length for seq in app.live.values()]
            by = way_s / (len(context) * prices.token_s)
            step_s = sum(prices.decoded(length + min(by, _AHEAD)) for length in context)
            steps = min(steps, way_s / step_s, math.inf if by < _AHEAD else _AHEAD)
            tokens = min(tokens, way_s / prices.decoded(max(context) + _AHEAD))
            for backend, chance in app.wanted:
                steps = min(steps, self._warm_steps(backend) / _LOOKS)
                if self._due(app, backend, chance, prices):
                    self._hint(app, view, backend)
            app.wanted = [one for one in app.wanted if one[0] not in app.hinted]
        self._look_after = max(1.0, steps)
        # Those who wait now may start meanwhile.
        self._look_tokens = max(1.0, min(tokens, _MOST_STEPS * self._options.step_tokens))
        return stale

    def steady(self, plan: StepPlan, view: View) -> float:
        """Keys change by events, or when running applications are looked at."""
        started = len(plan.work) - self._running
        by_tokens = self._look_tokens // started if started > 0 else math.inf
        return max(0.0, min(self._look_after, by_tokens))

    # -- backends ---------------------------------------------------------------------------------------------------------

    def hints(self, view: View) -> Seq[Hint]:
        out, self._hints = self._hints, []
        return out

    def _look_for_backends(self, app: Application) -> None:
        """Note which backends may come next, by the walks that were just made."""
        app.wanted = []
        if not self._demand.warm_s or app.walks is None or app.estimator is None:
            return
        graph = app.estimator.tables.graph
        for unit in np.flatnonzero(app.walks.following[:-1] >= self._options.prewarm).tolist():
            backend = graph.backends[unit]
            if self._demand.warm_s.get(backend) and backend not in app.hinted:
                app.wanted.append((backend, float(app.walks.following[unit])))

    def _due(self, app: Application, backend: str, chance: float, prices: Prices) -> bool:
        """P(the branch) x P(the rest of the unit takes at most the warm-up) has reached K."""
        assert app.walks is not None
        longest = np.sort(app.walks.longest)
        made = min((max(0, seq.output_length) for seq in app.live.values()), default=0)
        prompts = sum(max(0, seq.prompt_length - seq.view.length) for seq in app.live.values())
        within = self._warm_steps(backend) - prompts * prices.token_s / max(self._step_s, 1e-9)
        first, last = np.searchsorted(longest, [made, made + within], side="right").tolist()
        left = len(longest) - first
        return chance * (max(0, last - first) / left if left else 1.0) >= self._options.prewarm

    def _warm_steps(self, backend: str) -> float:
        return self._demand.warm_s[backend] / max(self._step_s, 1e-9)

    def _hint(self, app: Application, view: View, backend: str) -> None:
        app.hinted.add(backend)
        seq = next(iter(app.live.values()))
        self._hints.append(Hint(backend, view.workflow(seq).id))

    def _unneeded(self, app: Application, view: View, seq: Sequence) -> None:
        """A unit begins: what was asked for behind the one before has been used, or the run has taken another branch."""
        graph = app.estimator.tables.graph if app.estimator is not None else None
        used = graph.backends[app.passed] if graph is not None and app.passed is not None else ""
        self._hints += [Hint(backend, view.workflow(seq).id, False) for backend in sorted(app.hinted - {used})]
        app.hinted.clear()

    def _priced(self, view: View) -> Prices:
        if self._prices is None:
            self._prices = Prices.of(view, self._options.step_tokens)
        return self._prices


TECHNIQUE = Technique(
    name="hermes",
    seam="scheduling",
    summary="applications by Gittins index over what their demand graphs say they still need",
    exact=True,
    sets={"scheduling.order": "hermes", "scheduling.residency": "rank-yields", "scheduling.preempt": True},
    options=Options,
    make=lambda context, options: Hermes(options),
    paper="Efficient Serving of LLM Applications with Probabilistic Demand Modeling (Hermes), 2025",
)
