"""Weights of 8 or 4 bits as a store: rounded once at load, multiplied by `Kernels.quantized_linear`.

Every step reads a half or a quarter of the bytes that bfloat16 takes, which is what a small batch waits for; a large one
multiplies whole numbers at twice the rate. Activations are rounded to int8 on the way in. The techniques `int8` and `int4`
differ in their numbers only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.engine.executors.step import changed
from hasten.engine.weights.dense import DenseWeights, WeightContext
from hasten.kernels.quantized import QuantizedWeight, round_to_nearest

Round = Callable[[Tensor], QuantizedWeight]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """bits: 4 or 8. group: input columns that share a scale. symmetric: no zero points."""

    bits: int
    group: int
    symmetric: bool = True

    def round(self, weight: Tensor) -> QuantizedWeight:
        return round_to_nearest(weight, self.bits, self.group, symmetric=self.symmetric)


class QuantizedWeights:
    """A weight [out, in] in levels, as `Kernels.pack` gave it; `round` makes levels again where values change. An `Embedding`
    too: of a tied model one store is both."""

    def __init__(self, packed: Any, bias: Tensor | None, dtype: torch.dtype, round: Round, context: WeightContext) -> None:
        self._shape: tuple[int, int] = packed.shape
        if bias is not None and bias.shape != self._shape[:1]:
            raise ValueError(f"a weight {list(self._shape)} cannot have a bias {list(bias.shape)}")
        self._bias, self._dtype, self._round, self._context = bias, dtype, round, context
        self._packed = packed
        self._recordable = context.kernels.name != "reference"

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    @property
    def nbytes(self) -> int:
        nbytes: int = self._packed.nbytes
        return nbytes

    def apply(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = x.new_empty(x.shape[0], self._shape[0])
        self._context.kernels.quantized_linear(x, self._packed, self._bias, out)
        return out

    def native(self, rows: int) -> bool:
        return self._recordable

    @property
    def packed(self) -> Any:
        return self._packed

    def levels(self) -> QuantizedWeight:
        found: QuantizedWeight = self._context.kernels.unpack(self._packed)
        return found

    def dense(self) -> Tensor:
        return self.levels().dense(self._dtype)

    def rows(self, ids: Tensor) -> Tensor:
        out = torch.empty(len(ids), self.shape[1], dtype=self._dtype, device=ids.device)
        self._context.kernels.quantized_rows(self._packed, ids, out)
        return out

    def slice(self, inputs: Tensor | None, outputs: Tensor | None) -> DenseWeights | QuantizedWeights:
        """Chosen outputs stay levels; chosen inputs tear groups apart, so they become dense."""
        weight, bias = self.levels(), self._bias
        if outputs is not None:
            weight = weight.select(outputs)
            bias = bias[outputs] if bias is not None else None
        if inputs is not None:
            return DenseWeights(weight.dense(self._dtype)[:, inputs], bias, self._context)
        return QuantizedWeights(self._context.kernels.pack(weight), bias, self._dtype, self._round, self._context)

    def patch(self, indices: tuple[Tensor, Tensor], values: Tensor) -> Callable[[], None]:
        """The rows concerned are rounded again."""
        old, weight = self._packed, self.dense()
        weight[indices] = values.to(weight.dtype)
        self._put(self._context.kernels.pack(self._round(weight)))
        return lambda: self._put(old)

    def _put(self, packed: Any) -> None:
        self._packed = packed
        changed()

    def fold(self, delta: Tensor) -> bool:
        """A small delta would be rounded away."""
        return False


@dataclass(frozen=True, slots=True)
class MakeQuantized:
    """Makes the stores of a model. The head has a form of its own (None: the run dtype): with a large vocabulary it is a
    quarter of the bytes, and no layer comes after it to make up for its errors. `embedding`: the form of one that is not
    tied to the head; None: tokens are looked up in what the checkpoint holds."""

    form: Form
    head: Form | None
    embedding: Form | None
    context: WeightContext

    @property
    def lookups(self) -> bool:
        return self.embedding is not None

    def __call__(self, weight: Tensor, bias: Tensor | None = None, *, name: str = "") -> DenseWeights | QuantizedWeights:
        form = {"lm_head": self.head, "model.embed_tokens": self.embedding}.get(name, self.form)
        if form is None:
            return DenseWeights(weight, bias, self.context)
        return QuantizedWeights(self.context.kernels.pack(form.round(weight)), bias, weight.dtype, form.round, self.context)
