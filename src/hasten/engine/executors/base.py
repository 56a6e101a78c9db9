"""The executors seam: where a step runs and what it costs. Protocols only; importing this costs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from hasten.engine.kv.base import Handle, Shift
from hasten.engine.kv.host import Run, Traffic

if TYPE_CHECKING:
    from hasten.engine.attention.base import AttentionPolicy
    from hasten.engine.batch import Batch
    from hasten.engine.executors.cost import StepShape


NORMED = -1
"""Beside layers in `taps` and `StepResult.hidden`: the last hidden state as the head reads it, after the final norm."""


@dataclass(slots=True)
class StepResult:
    """What a step gives back; tensors stay on the device that computed them.

    `logits` [L, vocabulary] in the run dtype, one row per wanted row of the batch, in order; `hidden`: layer -> [L, width] of
    what was tapped, in memory of its own; `mass`: number of a span -> what its `measure` asked for, float32 [rows, ranges],
    None where no span did. `seconds`: the step's parts, measured. `skipped`: layers that rows did not go through because they
    left the step, summed over the rows; of a layer that they left in the middle, nothing is counted."""

    logits: Any
    hidden: dict[int, Any] = field(default_factory=dict)
    mass: dict[int, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: int = 0


class StepHandle(Protocol):
    def wait(self) -> StepResult: ...


class Executor(Protocol):
    """Runs batches in the order submitted. A failed step raises from `wait` and leaves the executor usable."""

    @property
    def attention(self) -> AttentionPolicy:
        """The attention policy, whose life-cycle calls follow each sequence's."""
        ...

    @property
    def vocabulary(self) -> int: ...

    def submit(self, batch: Batch, taps: frozenset[int] = frozenset()) -> StepHandle: ...
    def move_slots(self, source: Seq[int], target: Seq[int]) -> None:
        """Copy KV entries between slots (an accepted path of a draft tree into its place); reads all before it writes."""
        ...

    def copy_blocks(self, pairs: Seq[tuple[int, int]]) -> None: ...
    def shift_blocks(self, shifts: Seq[Shift]) -> None:
        """Copy blocks and turn their keys; no block is both read and written."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What was copied between the pool and the host tier so far."""
        ...

    def copy_out(self, runs: Seq[Run]) -> Handle: ...
    def copy_in(self, runs: Seq[Run]) -> Handle: ...
    def price(self, shape: StepShape) -> float:
        """Predicted seconds of a step of this shape, without running it."""
        ...

    def measured(self, shape: StepShape, seconds: float) -> None:
        """A step of this shape took `seconds`, planning included: for `price` to learn from."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What runs where: device, dtype, threads, kernel implementation; for logs and reports."""
        ...

    def close(self) -> None: ...
