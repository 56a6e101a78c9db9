"""The native way through a step: ops recorded once, then run in as few calls as there are ops in Python plus one.

A step of a small batch computes for a few milliseconds; ninety Python calls a layer's depth would cost as much again. The
ops are run once with recording kernels (`kernels/cpu/plan.py`), which leaves the packed arguments of every kernel. Later
steps of as many rows or fewer put their tokens, slots and index where the recorded calls look for them. The Python path
stays the reference; both call the same kernels on the same numbers, so their results are equal bit for bit
(`tests/engine/test_planned.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.engine.attention.base import AttentionPolicy
from hasten.engine.depth.base import Program
from hasten.engine.executors.step import Model, Op, Site, Step, Unplannable, Workspace
from hasten.engine.executors.stopwatch import Stopwatch
from hasten.kernels import ViewIndex
from hasten.kernels.cpu import CpuKernels
from hasten.kernels.cpu.plan import IndexCell, KernelSeconds, Segment

ROWS = 64
"""Most rows of a recorded step: with more, computing takes far longer than Python."""


class _Call:
    """An op that stays in Python. It finds `h` as its input; its result must come to `out`, where the next op looks for it."""

    def __init__(self, op: Op, site: Site, h: Tensor, out: Tensor) -> None:
        self.op, self._site, self._h, self._out = op, site, h, out
        self._rows = (0, h[:0], out[:0])

    def run(self, step: Step, rows: int) -> None:
        if self._rows[0] != rows:  # a tensor's slice costs microseconds, and most steps have as many rows as the last
            self._rows = (rows, self._h[:rows], self._out[:rows])
        _, step.h, out = self._rows
        step.given = out
        self.op(step, self._site)
        if step.h.data_ptr() != out.data_ptr():  # its result is not in the memory that it was given
            out.copy_(step.h)


@dataclass(frozen=True, slots=True)
class _Pause:
    """Between two blocks, where somebody looks at the pass. `delta` [ROWS, width]: the pending one's memory there."""

    done: int
    delta: Tensor | None


class PlannedPass:
    """One depth program's ops for up to `ROWS` rows. Make it with `plan`."""

    def __init__(
        self,
        model: Model,
        program: Program,
        attention: AttentionPolicy,
        kernels: CpuKernels,
        deterministic: bool,
        width: int,
        pauses: frozenset[int],
    ) -> None:
        self._kernels = kernels
        self._site = model.sites[program[0][1]]
        self._x = torch.zeros(ROWS, model.width, dtype=model.dtype)
        self._positions = torch.zeros(ROWS, dtype=torch.int32)
        self._slots = torch.full((ROWS,), -1)
        self._workspace = Workspace(ROWS, width, model.dtype)
        self._cell = IndexCell(ROWS)
        none = torch.zeros(1, dtype=torch.int32)
        index = ViewIndex(none, self._positions, none.view(1, 1), none, cache={"cpu": self._cell})
        step = Step(None, index, self._slots, kernels, attention, deterministic, self._x, self._x, workspace=self._workspace)  # type: ignore[arg-type]
        self._items: list[Segment | _Call | _Pause] = []
        with kernels.recording() as tape:
            for done, (block, site) in enumerate(program, 1):
                for op in model.blocks[block].ops:
                    if is_native(op, step):
                        op(step, model.sites[site])
                    else:
                        self._items.append(kernels.cut(tape))
                        h = step.h
                        step.h = step.empty(ROWS, op.width(model.sites[site]))  # type: ignore[attr-defined]
                        self._items.append(_Call(op, model.sites[site], h, step.h))
                if done in pauses:
                    self._items += [kernels.cut(tape), _Pause(done, step.delta)]
            self._items.append(kernels.cut(tape))
        self._delta = step.delta

    def run(
        self,
        index: ViewIndex,
        slots: Tensor,
        x: Tensor,
        step: Step,
        clock: Stopwatch | None = None,
        pause: Callable[[int], None] | None = None,
    ) -> None:
        """Take `step` through the ops: `step.x` and `step.delta` are then what the head wants. `clock`: where the seconds of
        each kind of op are wanted. `pause(done)` is called when `done` blocks are done, where the plan pauses, with the same
        two as they are there."""
        rows = len(x)
        prepared = self._kernels.prepare(index)
        site = self._site
        blocks = site.planes[0].shape[0]
        if prepared.block_end > blocks or prepared.slot_end > site.block_size or prepared.groups not in (1, site.kv_heads):
            raise IndexError(f"the step reads block {prepared.block_end - 1}, slot {prepared.slot_end - 1} of a smaller cache")
        self._cell.set(prepared.address)
        self._x[:rows] = x
        self._positions[:rows] = index.positions
        self._slots[:rows] = slots
        step.x = self._x[:rows]
        seconds = None
        if clock is not None:
            seconds = KernelSeconds()
            clock("batch")
        for item in self._items:
            if isinstance(item, Segment):
                if item:
                    item.run(rows, seconds)
                    if clock is not None:
                        clock("native")
            elif isinstance(item, _Pause):
                if pause is not None:
                    step.delta = None if item.delta is None else item.delta[:rows]
                    pause(item.done)
                    step.delta = None
                    if clock is not None:
                        clock("pause")
            else:
                item.run(step, rows)
                if clock is not None:
                    clock(item.op.kind)
        step.given = None
        if clock is not None and seconds is not None:
            clock.split("native", seconds.by_kind())
        step.delta = None if self._delta is None else self._delta[:rows]


def is_native(op: Op, step: Step) -> bool:
    says = getattr(op, "native", None)
    return says is not None and says(step)


def plan(
    model: Model,
    program: Program,
    attention: AttentionPolicy,
    kernels: CpuKernels,
    deterministic: bool,
    pauses: frozenset[int] = frozenset(),
) -> PlannedPass | None:
    """The planned pass, or None where an op neither is native nor says how wide its result is. `pauses`: the numbers of blocks
    after which it pauses."""
    step = Step(None, None, None, kernels, attention, deterministic, torch.empty(ROWS, 0), torch.empty(0))  # type: ignore[arg-type]
    widest = model.width
    for block, site in program:
        for op in model.blocks[block].ops:
            width = getattr(op, "width", None)
            if width is None and not is_native(op, step):
                return None
            widest = max(widest, width(model.sites[site]) if width is not None else 0)
    try:
        return PlannedPass(model, program, attention, kernels, deterministic, widest, pauses)
    except Unplannable:
        return None
