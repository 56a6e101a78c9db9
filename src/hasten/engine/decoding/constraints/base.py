"""Constraints: what front ends and back ends have in common.

A front end (`schema/`, `regex.py`, `ebnf.py`, `gbnf.py`, `tools.py`) turns what a user wrote into a `Grammar` (`grammar.py`)
or refuses it with a `GrammarError` that names the part at fault. A back end (`native.py`, the optional others) turns the
grammar into masks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


class GrammarError(ValueError):
    """What was asked for cannot be enforced, or is no grammar at all. `where`: a JSON pointer, or line and column; `part`: the
    keyword or construct at fault."""

    def __init__(self, message: str, part: str = "", where: str = "") -> None:
        at = f" (at {where})" if where else ""
        super().__init__(f"{part}: {message}{at}" if part else f"{message}{at}")
        self.part, self.where = part, where


@dataclass(slots=True)
class Limits:
    """What compiling one grammar may cost. `check` is called in every loop that grows with the input."""

    seconds: float = 5.0
    nodes: int = 20_000
    """Of a schema's or grammar's distinct parts, and of one language's states."""
    bytes: int = 256 << 20
    _until: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._until = time.perf_counter() + self.seconds

    def check(self, nodes: int = 0) -> None:
        if time.perf_counter() > self._until:
            raise GrammarError(f"compiling it takes more than {self.seconds:g} s")
        if nodes > self.nodes:
            raise GrammarError(f"it has more than {self.nodes} parts")

    def left_s(self) -> float:
        return max(0.0, self._until - time.perf_counter())
