"""Round to nearest: weights of a few bits without any calibration, the baseline of every quantisation method.

Each row of a weight is cut into groups of input columns (as in ZeroQuant, Yao et al., 2022), and the values of a group are
rounded to the nearest of 2^bits evenly spaced levels between its smallest and largest. They are put back into the run dtype at
once and stored dense: a control that shows what the bits cost in quality, and is never timed. Embedding, norms, routers of
experts and biases stay as they are, the head too unless asked for. Not exact. O(weights) at load. Unlike the round-to-nearest
of GPTQ (Frantar et al., 2022) the offset of a group is not rounded to a level, so that both ends of its range are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.engine.technique import Technique
from hasten.engine.weights.dense import DenseWeights, WeightContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    bits: int = 2
    """Bits of a weight, 2 to 8."""
    group: int = 64
    """Input columns that share a range; the last group of a row may be narrower."""
    head: bool = False
    """Whether the head is rounded too."""


class RoundToNearest:
    """Makes the stores of a model."""

    def __init__(self, context: WeightContext, options: Options) -> None:
        if not 2 <= options.bits <= 8:
            raise ValueError(f"round-to-nearest: bits must be 2 to 8, got {options.bits}")
        if options.group < 1:
            raise ValueError(f"round-to-nearest: group must be at least 1 input column, got {options.group}")
        self._context = context
        self._options = options

    def __call__(self, weight: Tensor, bias: Tensor | None = None, *, name: str = "") -> DenseWeights:
        if name != "lm_head" or self._options.head:
            weight = rounded(weight, self._options.bits, self._options.group)
        return DenseWeights(weight, bias, self._context)


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """`weight` [out, in] with every value at the nearest of its group's 2^bits levels, in a fresh tensor of its dtype. Off by
    at most half a step, (largest - smallest) / (2^bits - 1) / 2, and by the rounding to the dtype."""
    rows, columns = weight.shape
    padded = F.pad(weight[None], (0, -columns % group), mode="replicate")[0]  # repeats a value: no group's range changes
    groups = padded.view(rows, -1, group).double()  # so that rounding twice changes nothing
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    top = 2**bits - 1
    span = high - low
    level = torch.where(span > 0, (groups - low) * top / span, 0.0).round_()
    flat: Tensor = (low + level * span / top).to(weight.dtype).view(rows, -1)
    return flat[:, :columns].contiguous()


TECHNIQUE = Technique(
    name="round-to-nearest",
    seam="weights",
    summary="weights rounded to a few bits and stored dense: a control of quality, not for speed",
    exact=False,
    sets={"weights.store": "round-to-nearest"},
    options=Options,
    make=RoundToNearest,
    paper="the baseline of GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2022",
)
