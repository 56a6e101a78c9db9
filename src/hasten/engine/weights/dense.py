"""Dense weights in the run dtype, the default store.

On the CPU the weight is packed once into the layout that oneDNN's matmul wants, so a step multiplies without reordering. In
deterministic runs it stays row-major and the batch-invariant kernel multiplies it. Exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.engine.technique import Technique
from hasten.engine.weights.base import Undo
from hasten.kernels import Kernels

_PACK_ROWS = 32
"""Rows of x that packing optimises for: between a decode step and a chunk."""


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
        self._packed = not context.deterministic and weight.device.type == "cpu" and _can_pack(weight.dtype)
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

    def apply(self, x: Tensor) -> Tensor:
        if self._packed:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return product
        if self._context.deterministic:
            out = x.new_empty(x.shape[0], self._shape[0])
            self._context.kernels.linear(x, self._weight, self._bias, out)
            return out
        return F.linear(x, self._weight, self._bias)

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
        changed = weight.clone()  # the loader may have mapped the weight from a file that others read
        changed[indices] = values.to(changed.dtype)
        self._weight = self._pack(changed)

    def fold(self, delta: Tensor) -> bool:
        self._weight = self._pack((self.dense().float() + delta.float()).to(delta.dtype))
        return True


def _can_pack(dtype: torch.dtype) -> bool:
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
    make=lambda context, options: lambda weight, bias=None: DenseWeights(weight, bias, context),
)
