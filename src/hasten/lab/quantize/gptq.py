"""GPTQ: rounding a weight one column at a time, each error handed on to the columns still to come.

"GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (Frantar et al., 2022): of all ways to
round W, the one sought makes W x change least for the inputs x that the layer sees, that is, the change weighed by H = sum
of x x^T. With the Cholesky factor of H's inverse the best correction of the remaining columns is one outer product a
column; columns go in blocks so that most of the work is matrix products. Columns keep their order here (no act-order).
O(out in^2 + in^3)."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.kernels.quantized import QuantizedWeight, kept_scales, round_to_nearest

BLOCK = 128


def gptq(weight: Tensor, hessian: Tensor, bits: int, group: int, *, symmetric: bool, damping: float = 0.01) -> QuantizedWeight:
    """weight [out, in], hessian [in, in] (sums of products of inputs). `damping`: what is added to the diagonal, as a share
    of its mean. Scales and zero points of a group are those of plain rounding, from the corrected weight when its turn
    comes."""
    rows, columns = weight.shape
    w = weight.double().clone()
    factor = _inverse_factor(hessian.double(), damping)
    dead = hessian.diagonal() == 0
    w[:, dead] = 0  # inputs that never come: any value will do
    levels = torch.zeros(rows, columns, dtype=torch.uint8)
    top = (1 << bits) - 1
    scales, zeros = [], []
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        errors = torch.zeros(rows, last - first, dtype=torch.float64)
        for column in range(first, last):
            if column % group == 0:
                plain = round_to_nearest(w[:, column : column + group].float(), bits, group, symmetric=symmetric)
                scale = plain.scales[:, 0].double() * plain.unit
                zero = (
                    torch.full((rows,), plain.zero, dtype=torch.float64) if plain.zeros is None else plain.zeros[:, 0].double()
                )
                scales.append(scale)
                zeros.append(zero.to(torch.uint8))
            safe = torch.where(scale == 0, 1.0, scale)
            level = (w[:, column] / safe + zero).round().clamp(0, top)
            levels[:, column] = level.to(torch.uint8)
            error = (w[:, column] - (level - zero) * scale) / factor[column, column]
            w[:, column + 1 : last] -= error[:, None] * factor[column, column + 1 : last]
            errors[:, column - first] = error
        w[:, last:] -= errors @ factor[first:last, last:]
    kept, unit = kept_scales(torch.stack(scales, 1).float())
    return QuantizedWeight(levels, kept, None if symmetric else torch.stack(zeros, 1), unit, bits, group)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped matrix."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def output_error(weight: Tensor, rounded: QuantizedWeight, hessian: Tensor) -> float:
    """||(W - Q) X|| / ||W X||: how much of the layer's output rounding changes."""
    change, whole = (weight.double() - rounded.dense(torch.float64)), weight.double()
    inputs = hessian.double()
    return float(((change @ inputs) * change).sum().clamp(min=0).sqrt() / ((whole @ inputs) * whole).sum().sqrt())
