"""What a workflow will still ask for after the stage it is in, from workflows of its application that are over.

The pattern matching of JITServe's analyzer: a workflow is taken to go on like those that had the same application and the same
deadline and came as far. Learned online and from nothing: of each stage the longest output and prompt, which its time follows
from, and the pause before it. O(runs of a pattern) a call that comes; memory is bounded by `PATTERNS` patterns of `RUNS` runs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hasten.engine.sequence import Sequence

Floats = npt.NDArray[np.float64]

CASES = 16
"""Equally likely cases that what is not known is weighed in."""
LATER = 3
"""Columns of what comes later: output tokens and prompt tokens one after the other, and seconds of pauses between stages."""
OVER_S = 30.0
"""A workflow without a call for so long is over: nobody tells an engine."""
RUNS = 64
"""Runs remembered of each pattern."""
PATTERNS = 1024
"""Patterns remembered; the one that was learned least recently is forgotten."""
FEW = 4
"""With fewer runs of its own pattern, those of the whole application stand in."""

_Key = tuple[str, str, str]
_Pattern = tuple[str, str, float | None]


@dataclass(slots=True)
class _Run:
    """A workflow under way. `parents`: of the stage that came last. `stages`: of each the columns `LATER`."""

    pattern: _Pattern
    parents: tuple[str, ...] = ()
    live: set[int] = field(default_factory=set)
    ended_s: float = 0.0
    stages: list[list[float]] = field(default_factory=list)


class Patterns:
    def __init__(self) -> None:
        self._runs: dict[_Key, _Run] = {}
        self._idle: OrderedDict[_Key, None] = OrderedDict()
        """Runs without a live call, the longest idle first."""
        self._known: OrderedDict[_Pattern, deque[Floats]] = OrderedDict()
        """Of runs that are over: after each of their stages, what came later, float64 [stages, LATER]."""

    def came(self, seq: Sequence, now_s: float) -> None:
        """A call of a workflow with a deadline has come: of the stage under way if that has live calls and it the same parents,
        of a new one otherwise."""
        self._settle(now_s)
        app, slo = seq.request.app, seq.request.slo
        key = _key(seq)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Run((seq.request.tenant, app.application, slo.deadline_s))
        self._idle.pop(key, None)
        if not run.live or set(app.parents) != set(run.parents):
            run.parents = app.parents
            run.stages.append([0.0, 0.0, max(0.0, now_s - run.ended_s) if run.stages else 0.0])
        run.live.add(seq.id)

    def went(self, seq: Sequence, now_s: float) -> None:
        """It is over, well or not."""
        key = _key(seq)
        run = self._runs.get(key)
        if run is None or seq.id not in run.live:
            return
        run.live.discard(seq.id)
        stage = run.stages[-1]
        stage[0], stage[1] = max(stage[0], seq.output_length), max(stage[1], seq.prompt_length)
        run.ended_s = now_s
        if not run.live:
            self._idle[key] = None

    def later(self, seq: Sequence) -> Floats:
        """float64 [CASES, LATER]: what comes after its workflow's stage, in equally likely cases, the least first; zeros where
        nothing is known."""
        run = self._runs.get(_key(seq))
        if run is None:
            return np.zeros((CASES, LATER))
        at = len(run.stages) - 1
        tenant, application, _ = run.pattern
        found = [after[at] for after in self._known.get(run.pattern, ()) if len(after) > at]
        if len(found) < FEW:
            found += [after[at] for after in self._known.get((tenant, application, None), ()) if len(after) > at]
        if not found:
            return np.zeros((CASES, LATER))
        found.sort(key=lambda later: float(later[0]))
        middles = (np.arange(CASES) + 0.5) / CASES * len(found)
        return np.array(found)[middles.astype(np.int64)]

    def _settle(self, now_s: float) -> None:
        """Learn from those that are over."""
        while self._idle:
            key = next(iter(self._idle))
            run = self._runs[key]
            if now_s - run.ended_s < OVER_S:
                return
            del self._idle[key], self._runs[key]
            stages = np.array(run.stages)
            after = np.cumsum(stages[::-1], axis=0)[::-1] - stages
            tenant, application, _ = run.pattern
            for pattern in {run.pattern, (tenant, application, None)}:
                self._known.setdefault(pattern, deque(maxlen=RUNS)).append(after)
                self._known.move_to_end(pattern)
            while len(self._known) > PATTERNS:
                self._known.popitem(last=False)


def _key(seq: Sequence) -> _Key:
    request = seq.request
    return request.tenant, request.app.application, request.app.workflow
