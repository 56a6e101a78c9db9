"""The dispatch seam: which engine gets a request.

A dispatcher sees what a front end can know of its engines (what it has given them and what has come back), never their insides,
so the same object decides for live engines and for simulated ones on one clock.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hasten.engine.request import Request


@dataclass(slots=True)
class EngineView:
    """One engine. `speed`: stated, relative to the others. `outstanding`: requests given to it that have not come back, and the
    prompt and output tokens they asked for in all; `assigned`: requests given to it since the start."""

    number: int
    speed: float = 1.0
    outstanding: int = 0
    outstanding_tokens: int = 0
    assigned: int = 0


@dataclass(slots=True)
class FleetView:
    """`now` in engine seconds. Valid during the call only."""

    now: float
    engines: Seq[EngineView]


class Dispatcher(Protocol):
    def assign(self, request: Request, view: FleetView) -> int:
        """The number of the engine that gets `request`; asked once for each, when it arrives."""
        ...


@runtime_checkable
class SeesEnds(Protocol):
    """What a dispatcher may offer to keep books of its own."""

    def ended(self, request_id: str) -> None:
        """A request that it assigned has come back, or failed."""
        ...
