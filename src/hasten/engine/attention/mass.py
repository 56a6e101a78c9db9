"""Attention mass: how much of what a token attends to lies in which range of the keys before it.

A wrapper around the attention policy. It is asked only in steps with a span that has a `Measure`, and then only for the rows
named there; all other steps, recorded ones among them, are the policy's own.

The same tells, layer by layer, when rows that mend chunks may leave the step (`Mending`): the mass of the question's rows on
each chunk is shown to whoever ranks them. These rows, and those that are measured, are none that leave.

The mass of a range J for a row is the sum over its keys of softmax(scores), which is exp(lse_J - lse), where lse_J is the log
of the sum of exp(score) over the keys of J and lse that over all keys. So the wanted ranges, and all the rest as one, are
attended to one after another by the paged kernel, which says lse_J of each row, streams the keys and never has a row's scores
in memory; the softmax of these logs over the parts is the mass. A range is only looked at by rows that do not stand before it.
Mean of heads, in float32, and mean of layers, kept as the step goes.

Cost, a layer: attention once more for the rows asked for, in one call of the kernel for each range (the half of it that
multiplies values is thrown away; short ranges leave tiles half empty), and float32 [ranges, rows, heads]. It grows as attention
does; nothing in steps where nobody asks. The ranking is done on the host: on a GPU every layer waits for it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hasten.engine.attention.base import AttentionPolicy
from hasten.engine.batch import Batch
from hasten.engine.executors.step import Site, Step
from hasten.engine.kv.base import Ints
from hasten.engine.kv.variants import Measure, Mending
from hasten.engine.kv.view import View
from hasten.kernels import Kernels, ViewIndex

_log = logging.getLogger(__name__)


def measures(batch: Batch) -> bool:
    """Whether anything is to be measured in this step."""
    return any(span.measure is not None or span.mending is not None for span in batch.spans)


@dataclass(frozen=True, slots=True)
class Part:
    """Keys that lie together, for the rows from `first` on; `column`: which of the wanted ranges they are, -1: none."""

    first: int
    column: int
    index: ViewIndex


@dataclass(slots=True)
class Asked:
    """`rows` int64 [m] of the step as it began. The parts cover everything that the rows see. `mean` float32 [m, ranges] of
    `layers`."""

    rows: Tensor
    parts: list[Part]
    mean: Tensor
    layers: int = 0

    def add(self, mass: Tensor) -> None:
        """Take in one more layer's."""
        self.layers += 1
        self.mean += (mass - self.mean) / self.layers


@dataclass(slots=True)
class Watched:
    """A question on whose ranking of chunks it depends how long they are mended. `rows` int64 [m]: its rows; `mends`: by the
    number of a chunk those that still mend it, int [n]; rows of the step as it began. `low` int [chunks]: in how many layers in
    a row each chunk was ranked low by now."""

    rows: Tensor
    parts: list[Part]
    mends: dict[int, Ints]
    mending: Mending
    low: npt.NDArray[np.int64]

    def rank(self, mass: Tensor) -> list[Ints]:
        """Take in one more layer's mass [m, chunks]; the rows that need not go on."""
        try:
            low = self.mending.low(mass.mean(0).cpu().numpy())
        except Exception:
            _log.exception("the repair could not rank chunks; they are mended in all layers")
            self.mends.clear()
            return []
        self.low = np.where(low, self.low + 1, 0)
        return [self.mends.pop(number) for number in list(self.mends) if self.low[number] >= self.mending.window]


@dataclass(slots=True)
class Questions:
    """All that is asked of a step: by the number of its span, and on whose ranking something depends."""

    asked: dict[int, Asked]
    watched: list[Watched]


@dataclass(slots=True, eq=False)
class MeasuredAttention:
    """`inner` must be a policy that leaves rotated queries where it got them and rotated keys in a dense store, as those do
    that support `link`."""

    inner: AttentionPolicy
    supports: frozenset[str] = field(init=False)
    native: bool = field(init=False)

    def __post_init__(self) -> None:
        self.supports, self.native = self.inner.supports, self.inner.native

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        out: Tensor = self.inner.attend(site, q, k, v, step)
        if step.workspace is not None:  # the step is being recorded: it has no spans
            return out
        questions: Questions | None = step.asked
        if questions is None:
            questions = step.asked = ask(step.batch, step.x.device)
            step.mass = {span: one.mean for span, one in questions.asked.items()} or None

        def of(rows: Tensor, parts: list[Part], ranges: int) -> Tensor:
            return mass(step.kernels, q.index_select(0, step.at(rows)), site.k, site.v, parts, ranges, site.scale)

        for one in questions.asked.values():
            one.add(of(one.rows, one.parts, one.mean.shape[1]))
        for watched in questions.watched:
            if watched.mends:
                for rows in watched.rank(of(watched.rows, watched.parts, len(watched.low))):
                    step.leave(rows)
        return out

    def before_step(self, index: ViewIndex) -> None:
        self.inner.before_step(index)

    def open(self, sequence: Any) -> None:
        self.inner.open(sequence)

    def fork(self, sequence: Any, child: Any) -> None:
        self.inner.fork(sequence, child)

    def truncate(self, sequence: Any, length: int) -> None:
        self.inner.truncate(sequence, length)

    def close(self, sequence: Any) -> None:
        self.inner.close(sequence)

    def swap_out(self, sequence: Any) -> None:
        self.inner.swap_out(sequence)

    def swap_in(self, sequence: Any) -> None:
        self.inner.swap_in(sequence)

    def after_prefill(self, sequence: Any) -> None:
        self.inner.after_prefill(sequence)

    def after_step(self) -> None:
        self.inner.after_step()


def ask(batch: Batch, device: torch.device) -> Questions:
    """What is wanted of a step that begins."""
    questions = Questions({}, [])

    def where(measure: Measure, first: int, view: View) -> tuple[Tensor, list[Part]]:
        rows = first + measure.rows.astype(np.int64)
        return torch.from_numpy(rows).to(device), parts_of(measure, batch.positions[rows], view, device)

    for number, span in enumerate(batch.spans):
        first, view, mending = int(batch.span_offsets[number]), span.sequence.view, span.mending
        if span.measure is not None:
            rows, parts = where(span.measure, first, view)
            questions.asked[number] = Asked(rows, parts, torch.zeros(len(rows), len(span.measure.ranges), device=device))
        if mending is not None:
            rows, parts = where(mending.question, first, view)
            mends = {chunk: first + some for chunk, some in mending.rows.items()}
            low = np.zeros(len(mending.question.ranges), dtype=np.int64)
            questions.watched.append(Watched(rows, parts, mends, mending, low))
    return questions


def parts_of(measure: Measure, positions: np.ndarray, view: View, device: torch.device) -> list[Part]:
    """Everything in `view` up to the last row that is measured: a part for each range, and one for all that is in none.
    `positions` int32 [m] of the rows."""
    end = int(measure.tokens[-1]) + 1
    parts: list[Part] = []

    def add(column: int, pieces: list[tuple[int, int]]) -> None:
        first = int(np.searchsorted(measure.tokens, pieces[0][0]))
        runs = np.concatenate([view.part(start, stop) for start, stop in pieces])
        rows, views = np.array([0, len(positions) - first]), np.array([0, len(runs)])
        parts.append(Part(first, column, ViewIndex.from_numpy(rows, positions[first:], runs, views, device=device)))

    between: list[tuple[int, int]] = []
    at = 0
    for column, (start, stop) in enumerate(measure.ranges):
        add(column, [(start, min(stop, end))])
        between.append((at, start))
        at = stop
    between = [(start, stop) for start, stop in [*between, (at, end)] if start < stop]
    if between:
        add(-1, between)
    return parts


def mass(kernels: Kernels, q: Tensor, k_cache: Tensor, v_cache: Tensor, parts: list[Part], ranges: int, scale: float) -> Tensor:
    """Float32 [m, ranges]: the mass of each row on each wanted range, mean of heads. `q` [m, query heads, head_dim], rotated,
    contiguous; caches as the kernels have them."""
    norms = torch.full((len(parts), *q.shape[:2]), -torch.inf, device=q.device)
    unused = torch.empty_like(q)
    for part, norm in zip(parts, norms, strict=True):
        first = part.first
        kernels.attention(q[first:], k_cache, v_cache, part.index, scale, unused[first:], lse=norm[first:])
    shares = norms.softmax(0).mean(-1)
    out = torch.zeros(len(q), ranges, device=q.device)
    for part, share in zip(parts, shares, strict=True):
        if part.column >= 0:
            out[:, part.column] = share
    return out
