"""Each engine in turn, whatever it has to do."""

from __future__ import annotations

from hasten.engine.request import Request
from hasten.serving.cluster.base import FleetView


class RoundRobin:
    def __init__(self) -> None:
        self._next = 0

    def assign(self, request: Request, view: FleetView) -> int:
        turn = self._next % len(view.engines)
        self._next = turn + 1
        return view.engines[turn].number
