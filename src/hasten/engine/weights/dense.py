"""Dense weights in the run dtype, the default store.

With the native kernels a weight stays row-major, mapped from its file where that holds the run dtype: few rows are multiplied
by `Kernels.linear`, which reads the weight once at the memory's bandwidth, many by oneDNN through torch. Measured on two EPYC
cores in bfloat16 against oneDNN's packed layout: 1.3x to 1.8x at 1 to 2 rows, 1.0x to 1.6x at 4 to 8, 0.8x to 1.04x at 32,
0.94x to 0.99x at 512 (float32: 0.6x to 0.8x at 512); and it needs no packing and no second copy. Without the native kernels a
CPU weight is packed once into oneDNN's layout, which is then the faster one. `Kernels.linear` multiplies everything in
deterministic runs, being batch-invariant, and in bfloat16 on processors that have no instructions for it: oneDNN leaves those
to a plain loop, a fifth as fast (two cores with AVX2, 512 rows: 6 against 31 to 37 GFLOP/s). Exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.engine.executors.step import changed
from hasten.engine.technique import Technique
from hasten.engine.weights.base import Undo
from hasten.kernels import Kernels

_PACK_ROWS = 32
"""Rows of x that packing optimises for: between a decode step and a chunk."""
_FEW_ROWS = 96
"""Up to here the native kernel is faster than oneDNN on a row-major weight."""


@dataclass(slots=True)
class WeightContext:
    """What a store is made with."""

    kernels: Kernels
    deterministic: bool


class DenseWeights:
    def __init__(self, weight: Tensor, bias: Tensor | None, context: WeightContext) -> None:
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise ValueError(f"a weight [out, in] and bias [out] are wanted, got {weight.shape} and {bias}")
        self._shape = (weight.shape[0], weight.shape[1])
        self._itemsize = weight.element_size()
        self._bias = bias
        self._context = context
        native = weight.device.type == "cpu" and context.kernels.name != "reference"
        every = context.deterministic or (native and not can_pack(weight.dtype))
        self._few = 2**31 if every else _FEW_ROWS if native else 0
        self._packed = weight.device.type == "cpu" and self._few == 0 and can_pack(weight.dtype)
        self._weight = self._pack(weight)

    def _pack(self, weight: Tensor) -> Tensor:
        if not self._packed:
            return weight.contiguous()
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS)
        return packed

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    @property
    def nbytes(self) -> int:
        return self._shape[0] * self._shape[1] * self._itemsize

    def apply(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if self._packed:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        elif x.shape[0] <= self._few:
            if out is None:
                out = x.new_empty(x.shape[0], self._shape[0])
            self._context.kernels.linear(x, self._weight, self._bias, out)
            return out
        else:
            product = F.linear(x, self._weight, self._bias)
        return product if out is None else out.copy_(product)

    def native(self, rows: int) -> bool:
        return rows <= self._few

    def dense(self) -> Tensor:
        return self._weight.to_dense() if self._packed else self._weight

    def slice(self, inputs: Tensor | None, outputs: Tensor | None) -> DenseWeights:
        weight, bias = self.dense(), self._bias
        if outputs is not None:
            weight = weight[outputs]
            bias = bias[outputs] if bias is not None else None
        if inputs is not None:
            weight = weight[:, inputs]
        return DenseWeights(weight, bias, self._context)

    def patch(self, indices: tuple[Tensor, Tensor], values: Tensor) -> Undo:
        weight = self.dense()
        old = weight[indices].clone()
        self._write(weight, indices, values)

        def undo() -> None:
            self._write(self.dense(), indices, old)

        return undo

    def _write(self, weight: Tensor, indices: tuple[Tensor, Tensor], values: Tensor) -> None:
        new = weight.clone()  # the loader may have mapped the weight from a file that others read
        new[indices] = values.to(new.dtype)
        self._weight = self._pack(new)
        changed()

    def fold(self, delta: Tensor) -> bool:
        self._weight = self._pack((self.dense().float() + delta.float()).to(delta.dtype))
        changed()
        return True


@dataclass(frozen=True, slots=True, eq=False)
class DenseEmbedding:
    """`weight` [vocabulary, width] in the run dtype, often a view of a mapped file."""

    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def rows(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies weights of this dtype here; else torch does it in a plain loop."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


TECHNIQUE = Technique(
    name="dense",
    seam="weights",
    summary="float32 or bfloat16, packed once for the processor",
    exact=True,
    default=True,
    sets={"weights.store": "dense"},
    make=lambda context, options: lambda weight, bias=None, *, name="": DenseWeights(weight, bias, context),
)
