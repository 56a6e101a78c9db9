"""The simulated executor: no tensors, a virtual clock. A step takes what the cost model says, and tokens are made up.

The loop, the ledger, the KV books and every policy run as they do on a real machine; what a request says is of no account, so
its length must be fixed by `max_tokens`. Copies to and from the host tier queue up behind each other on one link, as behind
one copier thread; each call costs, and each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.engine.attention.base import StatelessAttention
from hasten.engine.batch import Batch
from hasten.engine.clock import VirtualClock
from hasten.engine.decoding.base import Drawn, Row, TokenLogprobs
from hasten.engine.executors.base import StepResult
from hasten.engine.executors.cost import CostModel, StepShape, shape_of_spans
from hasten.engine.kv.base import Ints, Shift
from hasten.engine.kv.host import Run, Traffic
from hasten.engine.sequence import Sequence, Span

_NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedModel:
    """What the loop must know of a model that is not there."""

    name: str
    vocabulary: int
    max_length: int

    @property
    def fingerprint(self) -> str:
        return f"simulated {self.name}"


def spans_only(spans: list[Span]) -> Batch:
    """A batch of which nothing but the spans is ever read."""
    return Batch(spans, *[_NOTHING] * 8)


def token_of(sequence: Sequence, vocabulary: int) -> int:
    """The token that stands for all that a sequence says: unlike other sequences' where it can be."""
    return (sequence.id * 2654435761 + 12345) % vocabulary


class NoAttention(StatelessAttention):
    """Follows sequences as paged attention does, which is not at all."""

    def attend(self, site: Any, q: Any, k: Any, v: Any, step: Any) -> Any:
        raise AssertionError("a simulated step attends to nothing")


class SimulatedSampler:
    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def draw(self, result: StepResult, rows: Seq[Row]) -> Drawn:
        return Drawn([token_of(row.sequence, self._vocabulary) for row in rows], [None] * len(rows))

    def score(self, result: StepResult, rows: Seq[int], tokens: Ints, top: int) -> list[TokenLogprobs]:
        raise ValueError("a simulated engine has no log-probabilities")


@dataclass(slots=True)
class _Step:
    result: StepResult

    def wait(self) -> StepResult:
        return self.result


@dataclass(slots=True)
class SimulatedTransfer:
    """Copying that takes `seconds` and is over at `ends_s`."""

    clock: VirtualClock
    ends_s: float
    seconds: float

    def done(self) -> bool:
        return self.clock.now() >= self.ends_s

    def wait(self) -> None:
        self.clock.advance_to(self.ends_s)


@dataclass(slots=True)
class SimulatedExecutor:
    """`speed` divides every time of the cost model."""

    model: SimulatedModel
    costs: CostModel
    clock: VirtualClock
    block_size: int
    attention: NoAttention = field(default_factory=NoAttention)
    speed: float = 1.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    """A call is a run of blocks, in all layers."""
    _link_free_s: float = 0.0

    @property
    def vocabulary(self) -> int:
        return self.model.vocabulary

    def submit(self, batch: Batch, taps: frozenset[int] = frozenset()) -> _Step:
        seconds = self.costs.step(shape_of_spans(batch.spans)) / self.speed
        self.clock.advance(seconds)
        return _Step(StepResult(None, seconds={"simulated": seconds}))

    def decode_run(self, rows: int, cached: int, steps: int) -> npt.NDArray[np.float64]:
        """Seconds of successive decode steps of the same sequences, equal to what `submit` takes for each."""
        return self.costs.decode_run(rows, cached, steps) / self.speed

    def move_slots(self, source: Seq[int], target: Seq[int]) -> None: ...
    def copy_blocks(self, pairs: Seq[tuple[int, int]]) -> None: ...
    def shift_blocks(self, shifts: Seq[Shift]) -> None: ...

    def copy_out(self, runs: Seq[Run]) -> SimulatedTransfer:
        return self._copy(runs, out=True)

    def copy_in(self, runs: Seq[Run]) -> SimulatedTransfer:
        return self._copy(runs, out=False)

    def _copy(self, runs: Seq[Run], out: bool) -> SimulatedTransfer:
        blocks = sum(count for _, _, count in runs)
        self.traffic.count(out, len(runs), blocks)
        seconds = self.costs.copy(len(runs), blocks * self.block_size) / self.speed
        self._link_free_s = max(self.clock.now(), self._link_free_s) + seconds
        return SimulatedTransfer(self.clock, self._link_free_s, seconds)

    def price(self, shape: StepShape) -> float:
        return self.costs.step(shape) / self.speed

    def measured(self, shape: StepShape, seconds: float) -> None:
        """It is the cost model that sets the time."""

    def describe(self) -> Mapping[str, Any]:
        return {"device": "simulated", "model": self.model.name, "speed": self.speed, **self.facts}

    def close(self) -> None:
        pass
