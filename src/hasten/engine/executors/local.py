"""The local executor: runs a step in this process, op by op, on one device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.engine.attention.base import AttentionPolicy
from hasten.engine.attention.mass import MeasuredAttention, measures
from hasten.engine.batch import Batch, BatchBuilder
from hasten.engine.depth.base import Depth, Program
from hasten.engine.executors.base import NORMED, StepResult
from hasten.engine.executors.cost import CostModel, StepShape, roofline
from hasten.engine.executors.narrowing import index_of, narrow
from hasten.engine.executors.planned import ROWS, PlannedPass, plan
from hasten.engine.executors.shifting import shift_blocks
from hasten.engine.executors.step import Step, generation
from hasten.engine.executors.stopwatch import Stopwatch
from hasten.engine.kv.base import Handle, Shift
from hasten.engine.kv.host import Run, Traffic
from hasten.engine.memory import Memory
from hasten.kernels import Kernels
from hasten.kernels.cpu import CpuKernels

_LEARNING = 0.02
"""How far one step moves the correction of the cost model: it follows the last hundred or so."""


@dataclass(slots=True)
class _Done:
    result: StepResult

    def wait(self) -> StepResult:
        return self.result


@dataclass(frozen=True, slots=True)
class Look:
    """A look at a pass of which `done` blocks are done. Nothing that is read of it changes the pass."""

    done: int
    batch: Batch
    logits: Callable[[Seq[int], Seq[int] | None], Tensor]
    """Computes the last norm and the head over the residual stream as it stands, for n of the batch's wanted rows and m tokens:
    [n, m]. None: all tokens."""


class LocalExecutor:
    """`native`: small batches run as recorded calls (`planned.py`) where kernels and ops allow. `profile` makes every step
    report seconds by kind of op in `StepResult.seconds` (it costs a clock read an op). `costs`: what `price` rests on, a
    generic model unless given; either is corrected by what steps turn out to take."""

    def __init__(
        self,
        memory: Memory,
        kernels: Kernels,
        attention: AttentionPolicy,
        depth: Depth,
        *,
        deterministic: bool = False,
        native: bool = True,
        profile: bool = False,
        costs: CostModel | None = None,
    ) -> None:
        self.memory = memory
        self.kernels = kernels
        self.profile = profile
        self._attention = attention
        self._depth = depth
        self._deterministic = deterministic
        self._device = memory.model.device
        self._costs = costs if costs is not None else generic_cost(memory)
        self._pace = 1.0
        self._native = native and isinstance(kernels, CpuKernels)
        self._plans: dict[Program, PlannedPass | None] = {}
        self._recorded_at = generation()
        self._pauses: frozenset[int] = frozenset()
        self._watcher: Callable[[Look], None] | None = None
        if self._device.type == "cpu":
            keep_freed_memory()

    @property
    def attention(self) -> AttentionPolicy:
        return self._attention

    @property
    def vocabulary(self) -> int:
        return self.memory.model.vocabulary

    def watch(self, watcher: Callable[[Look], None], after: Iterable[int]) -> None:
        """From now on call `watcher` in the middle of every pass, in the thread that runs it, when so many of its blocks are
        done. Passes of unlike depth programs are not watched. What it raises fails the step."""
        self._watcher, self._pauses = watcher, frozenset(after)
        self._plans.clear()

    def submit(self, batch: Batch, taps: frozenset[int] = frozenset()) -> _Done:
        blocks = len(self.memory.model.blocks)
        programs = [self._depth.program(span.sequence, blocks) for span in batch.spans]
        with torch.inference_mode():
            if all(program is programs[0] for program in programs):
                return _Done(self._forward(batch, programs[0], taps, self._watcher))
            return _Done(self._by_program(batch, programs, taps))

    def _by_program(self, batch: Batch, programs: list[Program], taps: frozenset[int]) -> StepResult:
        """Unlike depth programs: one pass for each, logits put back in the batch's order."""
        starts, at = [], 0
        for span in batch.spans:
            starts.append(at)
            at += len(span.logits)
        model = self.memory.model
        logits = torch.empty(at, model.vocabulary, dtype=model.dtype, device=self._device)
        result = StepResult(logits)
        for program in dict.fromkeys(programs):
            mine = [i for i, other in enumerate(programs) if other == program]
            part = self._forward(BatchBuilder().build([batch.spans[i] for i in mine]), program, taps)
            rows = [starts[i] + j for i in mine for j in range(len(batch.spans[i].logits))]
            logits[rows] = part.logits
            for layer, hidden in part.hidden.items():
                result.hidden.setdefault(layer, hidden.new_empty(at, hidden.shape[1]))[rows] = hidden
            if part.mass is not None:
                result.mass = {**(result.mass or {}), **{mine[i]: mass for i, mass in part.mass.items()}}
            result.skipped += part.skipped
            for kind, seconds in part.seconds.items():
                result.seconds[kind] = result.seconds.get(kind, 0.0) + seconds
        return result

    def _forward(
        self, batch: Batch, program: Program, taps: frozenset[int], watcher: Callable[[Look], None] | None = None
    ) -> StepResult:
        model = self.memory.model
        clock = Stopwatch() if self.profile else None
        index = index_of(batch, self._device)
        self._attention.before_step(index)
        tokens = self._on_device(batch.tokens)
        slots = self._on_device(batch.slots)
        rows = self._on_device(batch.logits_rows)
        if clock is not None:
            clock("batch")
        x = model.embed(tokens)
        step = Step(batch, index, slots, self.kernels, self._attention, self._deterministic, x, x)
        if clock is not None:
            clock("embedding")
        result = StepResult(None)

        def pause(done: int) -> None:
            if watcher is not None:
                watcher(Look(done, batch, lambda wanted, tokens: self._early(step, rows[list(wanted)], tokens)))

        # What is recorded measures nothing.
        measured = isinstance(self._attention, MeasuredAttention) and measures(batch)
        planned = self._plan(program) if not taps - {NORMED} and len(x) <= ROWS and not measured else None
        if 0 in self._pauses:
            pause(0)
        if planned is not None:
            planned.run(index, slots, x, step, clock, pause)
            program = ()
        for done, (block, site_index) in enumerate(program, 1):
            site = model.sites[site_index]
            for op in model.blocks[block].ops:
                op(step, site)
                if step.leaving:
                    result.skipped += narrow(step) * (len(program) - done)
                    rows = self._on_device(step.batch.logits_rows)
                if clock is not None:
                    clock(op.kind)
            if site_index in taps:
                result.hidden[site_index] = step.settle()[rows]
            if done in self._pauses:
                pause(done)
        result.mass = step.mass
        result.logits = self._head(step, rows)
        if NORMED in taps:
            result.hidden[NORMED] = step.h
        if clock is not None:
            clock("head")
            result.seconds = clock.seconds
        return result

    def _plan(self, program: Program) -> PlannedPass | None:
        """The program's ops as recorded native calls, where all that is possible here."""
        if not self._native:
            return None
        if self._recorded_at != generation():  # a plan knows where weights lie
            self._plans.clear()
            self._recorded_at = generation()
        if program not in self._plans:
            assert isinstance(self.kernels, CpuKernels)
            self._plans[program] = plan(
                self.memory.model, program, self._attention, self.kernels, self._deterministic, self._pauses
            )
        return self._plans[program]

    def _head(self, step: Step, rows: Tensor) -> Tensor:
        """Logits of the wanted rows; `step.h` is then what the head read."""
        model = self.memory.model
        if not len(rows):
            step.h = step.x[:0]
            return step.x.new_empty(0, model.vocabulary)
        whole = len(rows) == len(step.x)
        if not whole:  # only the wanted rows go through the last norm and the head
            step.delta = step.delta[rows] if step.delta is not None else None
            step.x = step.x[rows]
        model.norm(step, model.sites[-1])
        return model.head.apply(step.h)

    def _early(self, step: Step, rows: Tensor, tokens: Seq[int] | None) -> Tensor:
        """What the head would say now of these rows and tokens."""
        model = self.memory.model
        delta = step.delta[rows] if step.delta is not None else None
        x = step.x[rows]
        copy = Step(step.batch, step.index, step.slots, self.kernels, self._attention, self._deterministic, x, x, delta)
        model.norm(copy, model.sites[-1])
        head = model.head if tokens is None else model.head.slice(None, torch.tensor(tokens, device=x.device))
        return head.apply(copy.h)

    def _on_device(self, array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)

    # -- bytes ----------------------------------------------------------------------------------------------------------

    def copy_blocks(self, pairs: Seq[tuple[int, int]]) -> None:
        """Copy blocks in order; a block may be the target of one pair and the source of a later one."""
        at = 0
        while at < len(pairs):
            targets: set[int] = set()
            stop = at
            while stop < len(pairs) and not targets & set(pairs[stop]):
                targets.add(pairs[stop][1])
                stop += 1
            src, dst = (torch.tensor(side, device=self._device) for side in zip(*pairs[at:stop], strict=True))
            for plane in self.memory.planes:
                self.kernels.copy_blocks(plane, src, dst)
            at = stop

    def shift_blocks(self, shifts: Seq[Shift]) -> None:
        with torch.inference_mode():
            shift_blocks(self.memory.model.sites, shifts)

    def move_slots(self, source: Seq[int], target: Seq[int]) -> None:
        size = self.memory.block_size
        src = torch.tensor(source, device=self._device)
        dst = torch.tensor(target, device=self._device)
        for site in self.memory.model.sites:
            site.form.write(site.planes, dst, size, site.form.read(site.planes, src, size))

    @property
    def traffic(self) -> Traffic:
        return self.memory.traffic

    def copy_out(self, runs: Seq[Run]) -> Handle:
        return self.memory.copy_out(runs)

    def copy_in(self, runs: Seq[Run]) -> Handle:
        return self.memory.copy_in(runs)

    # -- about itself ---------------------------------------------------------------------------------------------------

    def price(self, shape: StepShape) -> float:
        return self._costs.step(shape) * self._pace

    def measured(self, shape: StepShape, seconds: float) -> None:
        ratio = seconds / max(self._costs.step(shape), 1e-9)
        self._pace += _LEARNING * (min(ratio, 10 * self._pace) - self._pace)

    def describe(self) -> Mapping[str, Any]:
        return {
            "device": str(self._device),
            "dtype": str(self.memory.model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "kernels": self.kernels.name,
            "deterministic": self._deterministic,
        }

    def close(self) -> None:
        self.memory.close()


def generic_cost(memory: Memory) -> CostModel:
    """The cost model of a model before anything was measured, with round figures of a two-core server processor."""
    model = memory.model
    head = model.head.shape[0] * model.head.shape[1]
    return roofline(
        read_bytes=lambda tokens: model.active_weight_bytes,
        flops_per_token=2 * (model.active_weights - head),
        head_flops=2 * head,
        kv_bytes_per_token=memory.block_bytes / memory.block_size,
        attention_flops=sum(4 * site.heads * site.head_dim for site in model.sites),
        overhead_s=1e-3,
        bandwidth=40e9,
        rate=400e9,
    )


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: a step frees and takes the same large activations again and again, and giving them back
    to the kernel each time costs a page fault per 4 KiB (a tenth of a long prefill's time)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):  # another C library: slower, not wrong
        pass
