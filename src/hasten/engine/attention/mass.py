"""Attention mass: how much of what a token attends to lies in which range of the keys before it.

A wrapper around the attention policy. It is asked only in steps with a span that has a `Measure`, and then only for the rows
named there; all other steps, recorded ones among them, are the policy's own.

The mass of a range J for a row is the sum over its keys of softmax(scores), which is exp(lse_J - lse), where lse_J is the log
of the sum of exp(score) over the keys of J and lse that over all keys. So the wanted ranges, and all the rest as one, are
attended to one after another by the paged kernel, which says lse_J of each row, streams the keys and never has a row's scores
in memory; the softmax of these logs over the parts is the mass. A range is only looked at by rows that do not stand before it.
Mean of heads, in float32, and mean of layers, kept as the step goes.

Cost, a layer: attention once more for the rows asked for, in one call of the kernel for each range (the half of it that
multiplies values is thrown away; short ranges leave tiles half empty), and float32 [ranges, rows, heads]. It grows as attention
does; nothing in steps where nobody asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.engine.attention.base import AttentionPolicy
from hasten.engine.batch import Batch
from hasten.engine.executors.step import Site, Step
from hasten.engine.kv.variants import Measure
from hasten.engine.kv.view import View
from hasten.kernels import Kernels, ViewIndex


def measures(batch: Batch) -> bool:
    """Whether anything is to be measured in this step."""
    return any(span.measure is not None for span in batch.spans)


@dataclass(frozen=True, slots=True)
class Part:
    """Keys that lie together, for the rows from `first` on; `column`: which of the wanted ranges they are, -1: none."""

    first: int
    column: int
    index: ViewIndex


@dataclass(slots=True)
class Asked:
    """`rows` int64 [m] of the step. The parts cover everything that the rows see. `mean` float32 [m, ranges] of `layers`."""

    rows: Tensor
    parts: list[Part]
    mean: Tensor
    layers: int = 0

    def add(self, mass: Tensor) -> None:
        """Take in one more layer's."""
        self.layers += 1
        self.mean += (mass - self.mean) / self.layers


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
        asked: dict[int, Asked] | None = step.index.cache.get("mass")
        if asked is None:
            asked = step.index.cache["mass"] = ask(step.batch, step.x.device)
            step.mass = {span: one.mean for span, one in asked.items()} or None
        for one in asked.values():
            queries = q.index_select(0, one.rows)
            one.add(mass(step.kernels, queries, site.k, site.v, one.parts, one.mean.shape[1], site.scale))
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


def ask(batch: Batch, device: torch.device) -> dict[int, Asked]:
    """What is wanted of a step, by the number of the span."""
    found = {}
    for number, span in enumerate(batch.spans):
        if span.measure is not None:
            rows = batch.span_offsets[number] + span.measure.rows
            parts = parts_of(span.measure, batch.positions[rows], span.sequence.view, device)
            mean = torch.zeros(len(rows), len(span.measure.ranges), device=device)
            found[number] = Asked(torch.from_numpy(rows.astype(np.int64)).to(device), parts, mean)
    return found


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
