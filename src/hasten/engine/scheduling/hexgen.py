"""HexGen-Text2SQL: urgency order under deadline budgets ("HEXGEN-TEXT2SQL: Optimizing LLM Inference Request Scheduling for
Agentic Text-to-SQL Workflows", 2025).

A workflow has one deadline for all its stages. Whenever a stage begins, what is left of the deadline is shared between that
stage and those still expected behind it, in proportion to their mean times; the most urgent call, whose time exceeds what is
left of its budget by most, runs next. Stages that were seen are struck from the expected list, so that early and late ones
change the budgets of all that follow. Which engine a call goes to is `serving/cluster/hexgen.py`.

Exact. A key is O(stages of the application), made once a call.

Settled here: with budget b = (D - elapsed) m / (m + sum of the remaining stages' m), the urgency U = t - (b - waited) of two
calls keeps its difference while both wait, so the order needs no recomputation: a call's key is when its stage began plus b
minus t. What a stage takes is its steps on a busy engine (chunks of its prompt and one step a token); the paper profiles
seconds. Expected stages come from demand graphs (`hasten demand learn`), in which a stage may be expected 0.7 times. A
workflow without a deadline gets `slack` times its expected time. As in the paper a call that runs is not preempted for a more
urgent one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Event, Kind
from hasten.engine.executors.cost import StepShape
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.scheduling.demand.expected import Stage, call_seconds, expected
from hasten.engine.scheduling.demand.runs import joins, unit_name
from hasten.engine.scheduling.demand.store import Demand
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique

KEPT = 4096
"""Workflows whose stages are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    graphs: str = ""
    """File of demand graphs (`hasten demand learn`). A workflow without one is taken to end with the stage it is in."""
    slack: float = 4.0
    """Deadline of workflows that state none, as a multiple of the time their expected stages take."""
    step_tokens: int = 512
    """Tokens of the step whose seconds are the unit of all times."""


@dataclass(slots=True, eq=False)
class _Progress:
    """A workflow: `deadline_s` in engine time, `seen` visits by unit, and the stage under way with its `due_s`: when it began
    plus its budget."""

    key: tuple[str, str, str]
    began_s: float
    deadline_s: float = math.inf
    seen: dict[str, int] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    unit: str = ""
    stages: set[str] = field(default_factory=set)
    live: set[int] = field(default_factory=set)
    stage_began_s: float = 0.0
    due_s: float = math.inf


class HexGen:
    stale_on: frozenset[Kind] = frozenset()
    lifetime_s = math.inf
    learns_from = frozenset({Kind.ARRIVED, Kind.FORKED, Kind.FINISHED, Kind.FAILED})

    def __init__(self, options: Options, demand: Demand | None = None) -> None:
        if not 0 < options.slack < math.inf:
            raise ValueError(f"hexgen: slack must be a number above 0, got {options.slack}")
        if options.step_tokens < 1:
            raise ValueError(f"hexgen: step_tokens must be at least 1, got {options.step_tokens}")
        self._options = options
        if demand is None:
            demand = Demand.load(options.graphs) if options.graphs else Demand()
        self._expected = {application: expected(graph) for application, graph in demand.graphs.items()}
        self._all: OrderedDict[tuple[str, str, str], _Progress] = OrderedDict()
        self._of: dict[int, _Progress] = {}

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        return np.array([self._of[seq.id].due_s - self._time_of(seq, view) for seq in stale])

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        assert sequence is not None
        if event.kind in (Kind.ARRIVED, Kind.FORKED):
            return self._came(sequence, view)
        progress = self._of.pop(sequence.id, None)
        if progress is not None:
            progress.live.discard(sequence.id)
            if not (progress.live or sequence.request.app.workflow):
                self._all.pop(progress.key, None)  # nothing of it can follow
        return ()

    def _came(self, seq: Sequence, view: View) -> Iterable[int]:
        """Gives the calls whose stage has turned out to be another than their first one said."""
        workflow = view.workflow(seq)
        key = seq.request.tenant, workflow.application, workflow.id
        progress = self._all.get(key)
        if progress is None:
            progress = self._all[key] = _Progress(key, workflow.arrival_s)
            while len(self._all) > KEPT:
                self._all.popitem(last=False)
        self._all.move_to_end(key)
        self._of[seq.id] = progress
        app, slo = seq.request.app, seq.request.slo
        if slo.deadline_s is not None:
            progress.deadline_s = min(progress.deadline_s, progress.began_s + slo.deadline_s)
        fresh = not progress.unit or not joins(app.parents, progress.parents, bool(progress.live))
        if fresh:
            progress.parents, progress.stages, progress.live = app.parents, set(), set()
            progress.stage_began_s = seq.arrival_s
        progress.live.add(seq.id)
        if app.stage in progress.stages:
            return ()
        if not fresh:
            progress.seen[progress.unit] -= 1
        progress.stages.add(app.stage)
        progress.unit = unit_name(progress.stages)
        progress.seen[progress.unit] = progress.seen.get(progress.unit, 0) + 1
        progress.due_s = progress.stage_began_s + self._budget(progress, workflow.application, seq, view)
        return progress.live

    def _budget(self, progress: _Progress, application: str, seq: Sequence, view: View) -> float:
        """Seconds for the stage that begins with `seq`."""
        stages = self._expected.get(application, {})
        own = stages.get(progress.unit)
        own_s = self._mean(own, view) if own is not None else self._time_of(seq, view)
        left_s = sum(
            max(0.0, stage.visits - progress.seen.get(unit, 0)) * self._mean(stage, view) for unit, stage in stages.items()
        )
        deadline_s = progress.deadline_s
        if deadline_s == math.inf:
            whole_s = sum(stage.visits * self._mean(stage, view) for stage in stages.values()) or own_s
            deadline_s = progress.began_s + self._options.slack * whole_s
        return (deadline_s - progress.stage_began_s) * own_s / (own_s + left_s)

    def _mean(self, stage: Stage, view: View) -> float:
        return stage.seconds(self._step(view), self._options.step_tokens)

    def _time_of(self, seq: Sequence, view: View) -> float:
        """What the call takes here: its prompt is known, its output as its stage's are, or those of the stages that begin with
        it, or as the lengths part says."""
        app = seq.request.app
        stages = self._expected.get(app.application, {})
        stage = stages.get(app.stage) or stages.get(self._of[seq.id].unit)
        output = stage.output if stage is not None else float(view.remaining_output(seq).mean())
        return call_seconds(seq.prompt_length, output, self._step(view), self._options.step_tokens)

    def _step(self, view: View) -> float:
        """Asked anew for each call: an engine that is not calibrated learns its pace while it runs."""
        tokens = min(self._options.step_tokens, view.limits.tokens)
        return view.price(StepShape(tokens, 1, 1, tokens, tokens))

    def steady(self, plan: StepPlan, view: View) -> float:
        """Keys change when calls arrive, and then only."""
        return math.inf


TECHNIQUE = Technique(
    name="hexgen",
    seam="scheduling",
    summary="the most urgent call of workflows with deadlines, each stage having its share of what is left",
    exact=True,
    sets={"scheduling.order": "hexgen"},
    options=Options,
    make=lambda context, options: HexGen(options),
    paper="HEXGEN-TEXT2SQL: Optimizing LLM Inference Request Scheduling for Agentic Text-to-SQL Workflows, 2025",
)
