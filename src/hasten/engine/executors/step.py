"""What flows through the ops of one step, and the ops themselves.

A model is a stack of blocks, each a short list of named ops over one `Step`; the local executor runs them in order. Norms
consume the pending residual delta, so that adding and normalising is one pass. A technique replaces or inserts ops by name
(`Block.replace`, `Block.insert`), native or Python; the rest stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hasten.engine.kv.planes import DENSE, Form
from hasten.kernels import Activation, Kernels, ViewIndex

if TYPE_CHECKING:
    from hasten.engine.attention.base import AttentionPolicy
    from hasten.engine.batch import Batch
    from hasten.engine.weights.base import Embedding, WeightStore


@dataclass(slots=True)
class Site:
    """A position in the stack that owns KV. `cos_sin` float32 [positions, 2, rotary dims / 2], `window` in tokens or None.
    `planes`: its part of the pool, tensors [blocks, ...] in the `form` of the attention policy's choice (`kv/planes.py`)."""

    index: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    cos_sin: Tensor
    window: int | None = None
    planes: tuple[Tensor, ...] = ()
    form: Form = DENSE
    block_size: int = 0

    @property
    def k(self) -> Tensor:
        """Of a dense store: [blocks, kv heads, block size, head_dim], keys rotated."""
        return self.planes[0]

    @property
    def v(self) -> Tensor:
        return self.planes[1]


class Unplannable(RuntimeError):
    """An op that called itself native did something that cannot be recorded."""


_generation = 0


def changed() -> None:
    """Say that the ops of a block, or the memory that a store's weight lies in, are not what they were."""
    global _generation
    _generation += 1


def generation() -> int:
    """A number that differs after every `changed`."""
    return _generation


class Workspace:
    """Memory for what ops leave each other, used again and again: an op's result lives until four more were taken. (Three is
    what the longest-lived, the pending delta, needs.)"""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        self._slabs = [torch.empty(rows * width, dtype=dtype) for _ in range(4)]
        self._next = 0

    def take(self, shape: tuple[int, ...]) -> Tensor:
        slab = self._slabs[self._next]
        self._next = (self._next + 1) % len(self._slabs)
        return slab[: math.prod(shape)].view(shape)


@dataclass(slots=True)
class Step:
    """One forward pass. `x` [T, width]: the residual stream without the pending `delta` [T, width]; `h` [T, ...]: what the
    last op left for the next. `slots` int64 [T]. When rows leave (`narrowing.py`), all of these, `batch` and `index` go on
    without them; whoever holds numbers of rows from before asks `at`."""

    batch: Batch
    index: ViewIndex
    slots: Tensor
    kernels: Kernels
    attention: AttentionPolicy
    deterministic: bool
    x: Tensor
    h: Tensor
    delta: Tensor | None = None
    workspace: Workspace | None = None
    given: Tensor | None = None
    """Memory for the next result of its size."""
    mass: dict[int, Tensor] | None = None
    """Attention mass measured so far, as in `StepResult.mass`: of the layers that are done."""
    asked: Any = None
    """What is measured, for whoever measures it."""
    leaving: list[np.ndarray] = field(default_factory=list)
    """Rows that may leave before the next op, as numbers of the batch that the step began with."""
    place: Tensor | None = None
    """Int64 [rows at the beginning]: where each is now, beyond the last where it left; None: none did."""

    def leave(self, rows: np.ndarray) -> None:
        """Rows int [n], by their numbers at the beginning, need not go on: none that anything later reads but keys and values
        that were stored. Steps that run as recorded calls take them along nonetheless."""
        self.leaving.append(rows)

    def at(self, rows: Tensor) -> Tensor:
        """Where rows int64 [n] of the beginning are now. Not for those that left."""
        return rows if self.place is None else self.place[rows]

    def empty(self, *shape: int) -> Tensor:
        """Memory for an op's result, in the run dtype."""
        if self.workspace is not None:
            return self.workspace.take(shape)
        if self.given is not None and self.given.numel() == math.prod(shape):
            given, self.given = self.given, None
            return given.view(shape)
        return self.x.new_empty(shape)

    def settle(self) -> Tensor:
        """The residual stream, with the pending delta added."""
        if self.delta is not None:
            if self.workspace is not None:
                raise Unplannable("the residual stream is added up by torch")
            self.x += self.delta
            self.delta = None
        return self.x


class Op(Protocol):
    """`name` places it (unique within its block), `kind` groups it in the breakdown.

    An op that does nothing but call kernels on memory from `Step.empty` may say so with a method `native(step)`: it is recorded
    once and then runs without Python (`executors/planned.py`). Any other op is called every time."""

    name: str
    kind: str

    def __call__(self, step: Step, site: Site) -> None: ...


@dataclass(slots=True)
class Norm:
    """h = rms_norm(x + delta)."""

    name: str
    weight: Tensor
    eps: float
    kind: str = "norm"

    def native(self, step: Step) -> bool:
        return True

    def __call__(self, step: Step, site: Site) -> None:
        out = step.empty(*step.x.shape)
        if step.delta is None:
            step.kernels.rms_norm(step.x, self.weight, self.eps, out)
        else:
            step.kernels.add_rms_norm(step.x, step.delta, self.weight, self.eps, out)
            step.delta = None
        step.h = out


@dataclass(slots=True)
class Linear:
    """h = W h (+ bias)."""

    name: str
    store: WeightStore
    kind: str = "linear"

    def __call__(self, step: Step, site: Site) -> None:
        out = None if step.workspace is None else step.empty(step.h.shape[0], self.store.shape[0])
        step.h = self.store.apply(step.h, out)

    def native(self, step: Step) -> bool:
        return self.store.native(step.x.shape[0])

    def width(self, site: Site) -> int:
        return self.store.shape[0]


@dataclass(slots=True)
class Delta:
    """The pending delta is h: the end of an attention or feed-forward half."""

    name: str
    kind: str = "delta"

    def native(self, step: Step) -> bool:
        return True

    def __call__(self, step: Step, site: Site) -> None:
        step.settle()
        step.delta = step.h


@dataclass(slots=True)
class HeadNorm:
    """Normalises every query and key head of the fused h = [q | k | v] in place (Qwen3)."""

    name: str
    q_weight: Tensor
    k_weight: Tensor
    eps: float
    kind: str = "norm"

    def native(self, step: Step) -> bool:
        return True

    def __call__(self, step: Step, site: Site) -> None:
        q, k, _ = split_qkv(step.h, site)
        step.kernels.rms_norm(q, self.q_weight, self.eps, q)
        step.kernels.rms_norm(k, self.k_weight, self.eps, k)


@dataclass(slots=True)
class Attend:
    """h = attention over the site's KV; h comes as the fused [q | k | v], rotation still to be applied."""

    name: str
    kind: str = "attention"

    def native(self, step: Step) -> bool:
        return step.attention.native

    def width(self, site: Site) -> int:
        return site.heads * site.head_dim

    def __call__(self, step: Step, site: Site) -> None:
        q, k, v = split_qkv(step.h, site)
        step.h = step.attention.attend(site, q, k, v, step)


@dataclass(slots=True)
class ActMul:
    """h = activation(gate) * up, where h comes as [gate | up]."""

    name: str
    activation: Activation = "silu"
    kind: str = "activation"

    def native(self, step: Step) -> bool:
        return True

    def __call__(self, step: Step, site: Site) -> None:
        out = step.empty(step.h.shape[0], step.h.shape[1] // 2)
        step.kernels.act_mul(step.h, out, self.activation)
        step.h = out


def split_qkv(fused: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
    """Views [T, heads, head_dim] of a fused row [T, (heads + 2 kv heads) * head_dim]."""
    sizes = (site.heads, site.kv_heads, site.kv_heads)
    q, k, v = fused.view(fused.shape[0], sum(sizes), site.head_dim).split_with_sizes(sizes, 1)
    return q, k, v


@dataclass(slots=True)
class Block:
    """The ops of one physical block (weights). Which site it runs at is the depth program's choice."""

    ops: list[Op]

    def _at(self, name: str) -> int:
        for i, op in enumerate(self.ops):
            if op.name == name:
                return i
        raise KeyError(f"no op is called {name!r}; there are {', '.join(op.name for op in self.ops)}")

    def replace(self, name: str, op: Op) -> Op:
        """Put `op` in the place of the one called `name`, which is returned."""
        i = self._at(name)
        old, self.ops[i] = self.ops[i], op
        changed()
        return old

    def insert(self, after: str, op: Op) -> None:
        self.ops.insert(self._at(after) + 1, op)
        changed()


@dataclass(slots=True)
class Model:
    """A loaded model: embedding, blocks, sites, final norm and head.

    `fingerprint`: hash of the weights, part of every key under which KV is shared. `max_length` in tokens."""

    embedding: Embedding
    blocks: list[Block]
    sites: list[Site]
    norm: Norm
    head: WeightStore
    dtype: torch.dtype
    vocabulary: int
    max_length: int
    fingerprint: str
    embedding_scale: float = 1.0
    weight_bytes: int = 0
    """Without an embedding that the head does not share: no step reads it whole."""
    active_weight_bytes: int = 0
    """Bytes that one token's forward pass reads (experts: only the chosen ones)."""
    active_weights: int = 0
    """Weights that one token is multiplied with, the head's among them."""

    @property
    def width(self) -> int:
        return self.embedding.shape[1]

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def embed(self, tokens: Tensor) -> Tensor:
        """The residual stream [T, width] that tokens int64 [T] begin with, in memory of its own."""
        x = self.embedding.rows(tokens)
        return x if self.embedding_scale == 1.0 else x.mul_(self.embedding_scale)
