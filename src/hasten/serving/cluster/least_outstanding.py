"""The engine with the least left to do for its speed: requests given to it that have not come back. Ties go to the faster one,
then to the one that has been given least so far."""

from __future__ import annotations

from hasten.engine.request import Request
from hasten.serving.cluster.base import FleetView


class LeastOutstanding:
    def assign(self, request: Request, view: FleetView) -> int:
        best = min(view.engines, key=lambda e: ((e.outstanding + 1) / e.speed, -e.speed, e.assigned, e.number))
        return best.number
