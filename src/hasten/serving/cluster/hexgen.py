"""HexGen-Text2SQL's dispatcher: a call goes where it runs fast and little is queued (2025).

Each engine's score is alpha t_ref / t_e - (1 - alpha) W_e / W_ref: how fast it runs this call relative to a reference engine,
against the seconds of work it has outstanding. The highest wins. alpha is a property of the traffic: `lab/planning/alpha.py`
finds it by replaying recent calls in simulation.

Settled here: W_ref is the mean of all engines' W, so both terms are of the order of one at any load; W is what has been given
out and not come back (in the simulator released with the paper it only grows); what a call takes is its expected steps, so
engines of unlike speed are told apart by speed alone.
"""

from __future__ import annotations

from hasten.engine.request import Request
from hasten.engine.scheduling.demand.expected import call_seconds, expected
from hasten.engine.scheduling.demand.store import Demand
from hasten.serving.cluster.base import FleetView

STEP_TOKENS = 512


class HexGenDispatcher:
    """`alpha` in 0..1: 1 looks at speed alone, 0 at queues alone. Calls that no graph of `demand` knows are expected to be as
    long as they may be, or as their prompt where nothing limits them. Raises ValueError."""

    def __init__(self, alpha: float = 0.5, demand: Demand | None = None) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"hexgen: alpha must be a number from 0 to 1, got {alpha}")
        self.alpha = alpha
        graphs = demand.graphs if demand is not None else {}
        self._stages = {application: expected(graph) for application, graph in graphs.items()}
        self._given: dict[str, tuple[int, float]] = {}
        """By request out: its engine, and its work."""
        self._work: dict[int, float] = {}

    def assign(self, request: Request, view: FleetView) -> int:
        work = self._steps(request)
        waits = {engine.number: self._work.get(engine.number, 0.0) / engine.speed for engine in view.engines}
        reference = sum(waits.values()) / len(waits)

        def score(number: int, speed: float) -> float:
            queue = waits[number] / reference if reference > 0 else 0.0
            return self.alpha * speed - (1 - self.alpha) * queue

        best = max(view.engines, key=lambda e: (score(e.number, e.speed), e.speed, -e.assigned, -e.number))
        self._given[request.id] = best.number, work
        self._work[best.number] = self._work.get(best.number, 0.0) + work
        return best.number

    def ended(self, request_id: str) -> None:
        given = self._given.pop(request_id, None)
        if given is not None:
            number, work = given
            self._work[number] = max(0.0, self._work[number] - work)

    def _steps(self, request: Request) -> float:
        """Steps that the call is expected to take, on any engine."""
        stage = self._stages.get(request.app.application, {}).get(request.app.stage)
        output = stage.output if stage is not None else request.sampling.max_tokens or len(request.prompt)
        return call_seconds(len(request.prompt), output, 1.0, STEP_TOKENS)
