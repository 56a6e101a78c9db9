"""Which backends outside the engine will be needed soon: tools between stages of a run, with a warm-up time each.

A backend v behind the current unit is asked for once P(v comes next) x P(the rest of the unit takes at most v's warm-up) >=
K. Both come from the walks that were made when the unit began; the rest is measured in output tokens of its longest call, at
the pace of the engine's latest steps. What was asked for and is not needed after all is taken back when the next unit begins.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hasten.engine.scheduling.base import Hint, View
from hasten.engine.scheduling.demand.application import Application
from hasten.engine.scheduling.demand.prices import Prices
from hasten.engine.sequence import Sequence

LOOKS = 8
"""How often a running unit is looked at while a warm-up would last."""


class Hints:
    def __init__(self, warm_s: Mapping[str, float], threshold: float) -> None:
        self._warm_s, self._threshold = warm_s, threshold
        self._pending: list[Hint] = []
        self._step_s = 0.0
        """What a step takes, as it was lately."""

    def stepped(self, seconds: float) -> None:
        self._step_s += (0.1 if self._step_s else 1.0) * (seconds - self._step_s)

    def take(self) -> list[Hint]:
        """What has come up since this was last asked."""
        out, self._pending = self._pending, []
        return out

    def begin(self, app: Application) -> None:
        """Note which backends may come next, by the walks that were just made."""
        app.wanted = []
        if not self._warm_s or app.walks is None or app.estimator is None:
            return
        graph = app.estimator.tables.graph
        for unit in np.flatnonzero(app.walks.following[:-1] >= self._threshold).tolist():
            backend = graph.backends[unit]
            if self._warm_s.get(backend) and backend not in app.hinted:
                app.wanted.append((backend, float(app.walks.following[unit])))

    def look(self, app: Application, prices: Prices, view: View) -> float:
        """Ask for what is needed soon; after how many steps to look again."""
        steps = np.inf
        for backend, chance in app.wanted:
            steps = min(steps, self._steps(backend) / LOOKS)
            if chance * self._soon(app, backend, prices) >= self._threshold:
                app.hinted.add(backend)
                self._pending.append(Hint(backend, view.workflow(next(iter(app.live.values()))).id))
        if app.wanted:
            app.wanted = [one for one in app.wanted if one[0] not in app.hinted]
        return steps

    def left(self, app: Application, seq: Sequence, view: View) -> None:
        """A unit begins with `seq`: what was asked for has been used, or the run has taken another branch."""
        graph = app.estimator.tables.graph if app.estimator is not None else None
        used = graph.backends[app.passed] if graph is not None and app.passed is not None else ""
        self._pending += [Hint(backend, view.workflow(seq).id, False) for backend in sorted(app.hinted - {used})]
        app.hinted.clear()

    def _soon(self, app: Application, backend: str, prices: Prices) -> float:
        """P(the rest of the current unit takes at most the warm-up)."""
        assert app.walks is not None
        longest = np.sort(app.walks.longest)
        made = min((max(0, seq.output_length) for seq in app.live.values()), default=0)
        prompts = sum(max(0, seq.prompt_length - seq.view.length) for seq in app.live.values())
        within = self._steps(backend) - prompts * prices.token_s / max(self._step_s, 1e-9)
        first, last = np.searchsorted(longest, [made, made + within], side="right").tolist()
        left = len(longest) - first
        return max(0, last - first) / left if left else 1.0

    def _steps(self, backend: str) -> float:
        return self._warm_s[backend] / max(self._step_s, 1e-9)
