"""The cost model: predicted seconds of a step from what it computes and reads.

A step of T tokens takes a time that is flat while reading the weights dominates and rises with T once multiplying does: the
roofline of Williams et al. (2009), with the fixed overhead below it. That curve is kept as a broken line through `knots`,
computed from a device's published figures or measured: kernels change with the number of rows, and experts are read as tokens
touch them. The rest is linear: a cost per sequence, per row drawn from, per cached token read and per pair of query and key,
and copies to a slower tier at a bandwidth. All terms have units a person can check.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hasten.engine.technique import ConfigError

if TYPE_CHECKING:
    from hasten.engine.scheduling.base import StepPlan
    from hasten.engine.sequence import Span


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step does: `tokens` computed, `rows` (sequences) they belong to, `heads` rows drawn from, `cached` tokens its
    attention reads, new ones included, and `pairs` of query and key."""

    tokens: int
    rows: int
    heads: int
    cached: int
    pairs: int


def span_pairs(new: int, before: int) -> int:
    """Pairs of query and key when `new` tokens attend to `before` earlier ones and causally to themselves."""
    return new * before + new * (new + 1) // 2


def shape_of_spans(spans: Iterable[Span]) -> StepShape:
    """Of spans whose views already hold their new entries."""
    tokens = rows = heads = cached = pairs = 0
    for span in spans:
        new, held = span.count, span.sequence.view.length if span.sees is None else span.behind + span.sees[1] - span.sees[0]
        tokens += new
        rows += 1
        heads += len(span.logits)
        cached += held
        pairs += span_pairs(new, held - new)
    return StepShape(tokens, rows, heads, cached, pairs)


def shape_of_plan(plan: StepPlan) -> StepShape:
    """Of a plan whose work has not begun."""
    tokens = heads = cached = pairs = 0
    for work in plan.work:
        new, before = work.count + work.drafts, work.sequence.view.length
        tokens += new
        heads += work.drafts + (work.count == work.sequence.remaining)
        cached += before + new
        pairs += span_pairs(new, before)
    return StepShape(tokens, len(plan.work), heads, cached, pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """`knots`: tokens of a step, ascending, with `knot_s` seconds each (overhead, weights and everything per token; linear
    between, flat below the first, the last slope beyond unless it falls). `row_s` per sequence, `head_s` per row drawn from,
    `cached_s` per cached token read, `pair_s` per pair of query and key. `copy_s` per copy between tiers (a run of contiguous
    blocks, in all layers) and `copy_token_s` per token whose KV it carries. Raises ValueError for knots that do not ascend and
    for negative terms."""

    knots: tuple[int, ...]
    knot_s: tuple[float, ...]
    row_s: float = 0.0
    head_s: float = 0.0
    cached_s: float = 0.0
    pair_s: float = 0.0
    copy_s: float = 0.0
    copy_token_s: float = 0.0
    _slopes: tuple[float, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        if len(self.knots) < 2 or len(self.knots) != len(self.knot_s):
            raise ValueError("a cost model needs at least two knots with one time each")
        if any(b <= a for a, b in pairwise(self.knots)):
            raise ValueError(f"knots must ascend, got {self.knots}")
        terms = (*self.knot_s, self.row_s, self.head_s, self.cached_s, self.pair_s, self.copy_s, self.copy_token_s)
        if not all(0 <= seconds < inf for seconds in terms):
            raise ValueError(f"the terms of a cost model must be seconds from 0 on, got {terms}")
        pairs = list(zip(self.knots, self.knot_s, strict=True))
        slopes = tuple((t1 - t0) / (n1 - n0) for (n0, t0), (n1, t1) in pairwise(pairs))
        object.__setattr__(self, "_slopes", slopes)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> CostModel:
        """From the values that `dataclasses.asdict` or JSON give. Raises ConfigError for others."""
        try:
            given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
            given.pop("_slopes", None)
            return cls(**given)
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"this is no cost model: {error}") from None

    @classmethod
    def read(cls, path: str) -> CostModel:
        """From a calibration file. Raises ConfigError."""
        try:
            return cls.of(json.loads(Path(path).read_text(encoding="utf-8"))["costs"])
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no calibration ({error}); `hasten calibrate --out` writes one") from None

    def tokens(self, count: int) -> float:
        """Seconds of a step of `count` tokens before anything that depends on context."""
        i = bisect_right(self.knots, count) - 1
        if i < 0:
            return self.knot_s[0]
        if i == len(self._slopes):  # a last stretch that noise made fall must not lead below zero
            return self.knot_s[-1] + (count - self.knots[-1]) * max(0.0, self._slopes[-1])
        return self.knot_s[i] + (count - self.knots[i]) * self._slopes[i]

    def step(self, shape: StepShape) -> float:
        """Seconds of a step."""
        if shape.tokens == 0:
            return 0.0
        fixed = self.tokens(shape.tokens) + shape.rows * self.row_s + shape.heads * self.head_s
        return fixed + shape.cached * self.cached_s + shape.pairs * self.pair_s

    def copy(self, runs: int, tokens: int) -> float:
        """Seconds of copying the KV of `tokens` tokens between tiers, in so many runs of contiguous blocks."""
        return runs * self.copy_s + tokens * self.copy_token_s

    def decode_run(self, rows: int, cached: int, steps: int) -> npt.NDArray[np.float64]:
        """Seconds float64 [steps] of successive steps in which the same `rows` sequences get one token each; the first reads
        `cached` tokens. Each equals `step` of its shape bit for bit."""
        fixed = self.tokens(rows) + rows * self.row_s + rows * self.head_s
        read = cached + rows * np.arange(steps, dtype=np.int64)
        return fixed + read * self.cached_s + read * self.pair_s


def roofline(
    *,
    read_bytes: Callable[[int], float],
    flops_per_token: float,
    head_flops: float,
    kv_bytes_per_token: float,
    attention_flops: float,
    overhead_s: float,
    bandwidth: float,
    rate: float,
    attention_rate: float | None = None,
    copy_s: float = 0.0,
    copy_token_s: float = 0.0,
) -> CostModel:
    """The cost model of a device known by its memory bandwidth (bytes/s) and arithmetic rates (FLOP/s) alone.

    `read_bytes(tokens)`: weight bytes that a step of so many tokens reads (more tokens touch more experts); `flops_per_token`
    of the weights, `head_flops` per row drawn from, `attention_flops` per pair."""
    token_s = flops_per_token / rate
    ridge = next(count for i in range(1, 31) if (count := 2**i) * token_s >= read_bytes(count) / bandwidth)
    # Within the last octave before the ridge both lines matter; elsewhere powers of two follow the curve closely enough.
    fine = {ridge // 2 + i * max(1, ridge // 32) for i in range(16)}
    knots = tuple(sorted({2**i for i in range(ridge.bit_length() + 1)} | {k for k in fine if k > 0}))
    return CostModel(
        knots=knots,
        knot_s=tuple(overhead_s + max(read_bytes(n) / bandwidth, n * token_s) for n in knots),
        head_s=head_flops / rate,
        cached_s=kv_bytes_per_token / bandwidth,
        pair_s=attention_flops / (attention_rate or rate),
        copy_s=copy_s,
        copy_token_s=copy_token_s,
    )
