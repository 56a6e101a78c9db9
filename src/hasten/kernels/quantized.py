"""Weights of 8 and 4 bits: what a kernel multiplies, and the plain rounding that makes them.

A row of a weight [out, in] is cut into groups of `group` input columns. Value = (level - zero) * scale, with levels
unsigned, and scale and zero point of a group. Scales are kept in float16 times one power of two for the whole weight: the
rounding to levels uses the scale as it is kept, so nothing is lost by that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 64
"""Outputs that a native kernel reads together."""
GROUPS = (32, 64, 128, 256)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """levels uint8 [out, in], each below 2^bits; scales float16 [out, groups], to be multiplied by `unit`; zeros uint8
    [out, groups], or None where every zero point is half of the range. The last group of a row may be narrower."""

    levels: Tensor
    scales: Tensor
    zeros: Tensor | None
    unit: float
    bits: int
    group: int

    def __post_init__(self) -> None:
        rows, columns = self.levels.shape
        groups = -(-columns // self.group)
        if self.bits not in (4, 8) or self.group not in GROUPS:
            raise ValueError(f"weights of 4 or 8 bits in groups of {GROUPS} are wanted, got {self.bits} and {self.group}")
        for name, part in (("scales", self.scales), ("zeros", self.zeros)):
            if part is not None and part.shape != (rows, groups):
                raise ValueError(
                    f"{name} of a weight {list(self.levels.shape)} must be [{rows}, {groups}], got {list(part.shape)}"
                )

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels.shape[0], self.levels.shape[1]

    @property
    def nbytes(self) -> int:
        """A level takes a byte here, of 4 bits too."""
        return self.levels.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)

    @property
    def zero(self) -> int:
        """The zero point of every group without one of its own."""
        return 1 << (self.bits - 1)

    def select(self, outputs: Tensor) -> QuantizedWeight:
        """The chosen outputs, int64 [n], below one another."""
        zeros = None if self.zeros is None else self.zeros[outputs]
        return QuantizedWeight(self.levels[outputs], self.scales[outputs], zeros, self.unit, self.bits, self.group)

    def to(self, device: torch.device) -> QuantizedWeight:
        zeros = None if self.zeros is None else self.zeros.to(device)
        return QuantizedWeight(self.levels.to(device), self.scales.to(device), zeros, self.unit, self.bits, self.group)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, [out, in]."""
        columns = self.levels.shape[1]
        zeros = self.zero if self.zeros is None else _spread(self.zeros.float(), self.group, columns)
        return ((self.levels.float() - zeros) * _spread(self.scales.float() * self.unit, self.group, columns)).to(dtype)


def round_to_nearest(weight: Tensor, bits: int, group: int, *, symmetric: bool = True) -> QuantizedWeight:
    """The nearest levels. Symmetric: the value of the largest magnitude in a group gets the level at the range's long end,
    so all 2^bits levels are used. Otherwise the range of a group, widened to hold 0, is divided evenly."""
    rows, columns = weight.shape
    groups, top = -(-columns // group), (1 << bits) - 1
    # A few rows at a time, all in the processor's caches.
    few = max(1, (1 << 18) // (groups * group))
    low, high = (torch.empty(rows, groups, device=weight.device) for _ in range(2))
    for at in range(0, rows, few):
        part = _grouped(weight[at : at + few], group)
        torch.amin(part, -1, out=low[at : at + few])
        torch.amax(part, -1, out=high[at : at + few])
    if symmetric:
        scale = torch.where(high >= -low, high, low) / -(1 << (bits - 1))
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low) / top
    scales, unit = kept_scales(scale)
    kept = scales.float() * unit
    safe = torch.where(kept == 0, 1.0, kept)
    zeros = None if symmetric else (-low / safe).round_().clamp_(0, top).to(torch.uint8)
    shift = torch.full_like(safe, 1 << (bits - 1)) if zeros is None else zeros.float()
    levels = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    for at in range(0, rows, few):
        part = _grouped(weight[at : at + few], group)
        part = part.div(safe[at : at + few, :, None]).add_(shift[at : at + few, :, None]).round_().clamp_(0, top)
        levels[at : at + few] = part.view(len(part), -1)[:, :columns]
    return QuantizedWeight(levels, scales, zeros, unit, bits, group)


def _grouped(rows: Tensor, group: int) -> Tensor:
    """[n, columns] -> float32 [n, groups, group], zeros past the end."""
    missing = -rows.shape[1] % group
    wide = rows.float() if not missing else F.pad(rows.float(), (0, missing))
    return wide.view(len(rows), -1, group)


def stacked(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Several weights of one form below one another."""
    if len(weights) == 1:
        return weights[0]
    unit = max(weight.unit for weight in weights)
    zeros: Tensor | None = None
    if any(weight.zeros is not None for weight in weights):
        zeros = torch.cat(
            [torch.full_like(w.scales, w.zero, dtype=torch.uint8) if w.zeros is None else w.zeros for w in weights]
        )
    scales = torch.cat([weight.scales * (weight.unit / unit) for weight in weights])
    return QuantizedWeight(torch.cat([w.levels for w in weights]), scales, zeros, unit, weights[0].bits, weights[0].group)


def kept_scales(scales: Tensor) -> tuple[Tensor, float]:
    """Scales as they are kept: float16, and the power of two that puts the largest near the top of float16's range."""
    largest = float(scales.abs().max()) if scales.numel() else 0.0
    unit = 2.0 ** (torch.tensor(largest).frexp().exponent.item() - 15) if largest else 1.0
    return (scales / unit).to(torch.float16), unit


def round_activations(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """x [T, in] as whole numbers in [-127, 127] (float32 [T, groups, group], zeros past the end) and the scales of its groups
    (float32 [T, groups])."""
    rows, columns = x.shape
    groups = F.pad(x.float(), (0, -columns % group)).view(rows, -(-columns // group), group)
    largest = groups.abs().amax(-1)
    inverse = torch.where(
        largest > 0, torch.full_like(largest, 127.0) / largest, 0.0
    )  # 127.0 / x would be a rounded reciprocal
    return (groups * inverse[..., None]).round(), largest / 127.0


def _spread(values: Tensor, group: int, columns: int) -> Tensor:
    """[out, groups] -> [out, columns]."""
    return values.repeat_interleave(group, 1)[:, :columns]
