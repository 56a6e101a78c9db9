"""Quantised weights in the layout that `quantized.cpp` reads: panels of 64 outputs, each one stream of bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.kernels.pages import well_placed
from hasten.kernels.quantized import PANEL, QuantizedWeight

_PANELS = 16
"""Panels that are packed at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """panels: uint8 [ceil(out / 64), bytes of a panel]; a panel holds, group by group, its words, scales and zero points
    (where `has_zeros`). The rest as in `QuantizedWeight`."""

    panels: Tensor
    shape: tuple[int, int]
    bits: int
    group: int
    has_zeros: bool
    unit: float

    def __post_init__(self) -> None:
        outputs, inner = self.shape
        stream = -(-inner // self.group) * PANEL * (self.group * self.bits // 8 + 2 + self.has_zeros)
        if self.panels.shape != (-(-outputs // PANEL), stream):  # the library would read past their end
            raise ValueError(f"panels {list(self.panels.shape)} cannot hold a weight {list(self.shape)} of {self.bits} bits")

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    def unpacked(self) -> QuantizedWeight:
        """The weight again."""
        outputs, inner = self.shape
        groups = -(-inner // self.group)
        words = self.group * PANEL * self.bits // 8
        parts = self.panels.view(len(self.panels), groups, -1)
        streams = parts[:, :, :words].reshape(len(self.panels), groups, -1, PANEL, 4)
        if self.bits == 4:
            streams = torch.stack((streams & 15, streams >> 4), 3)  # [P, G, words, 2, 64, 4]
            levels = streams.permute(0, 4, 1, 2, 3, 5)
        else:
            levels = streams.permute(0, 3, 1, 2, 4)
        levels = levels.reshape(len(self.panels) * PANEL, -1)[:outputs, :inner].contiguous()
        scales = parts[:, :, words : words + 2 * PANEL].contiguous().view(torch.float16)

        def by_output(part: Tensor) -> Tensor:
            return part.transpose(1, 2).reshape(-1, groups)[:outputs].contiguous()

        zeros = by_output(parts[:, :, words + 2 * PANEL :]) if self.has_zeros else None
        return QuantizedWeight(levels, by_output(scales), zeros, self.unit, self.bits, self.group)


def packed(weight: QuantizedWeight) -> PackedWeight:
    """The panels of a weight; outputs that fill up the last one have scale 0, columns that fill up the last group never count,
    as activations are 0 there."""
    outputs, inner = weight.levels.shape
    groups, panels = weight.scales.shape[1], -(-outputs // PANEL)
    group_bytes = PANEL * (weight.group * weight.bits // 8 + 2 + (weight.zeros is not None))
    streams = well_placed(torch.empty(panels, groups, group_bytes, dtype=torch.uint8))
    # Some panels at a time: copies of all levels of a large head would be most of the memory that a start takes.
    for at in range(0, panels, _PANELS):
        _pack(weight, at * PANEL, streams[at : at + _PANELS])
    return PackedWeight(
        streams.view(panels, -1), (outputs, inner), weight.bits, weight.group, weight.zeros is not None, weight.unit
    )


def _pack(weight: QuantizedWeight, first: int, streams: Tensor) -> None:
    """The outputs from the first one on into their streams [panels, groups, bytes]."""
    panels, groups, _ = streams.shape
    rows, group = slice(first, first + panels * PANEL), weight.group
    levels, scales = weight.levels[rows], weight.scales[rows]
    missing = panels * PANEL - len(levels)
    levels = F.pad(levels, (0, groups * group - levels.shape[1], 0, missing))
    if weight.bits == 4:
        halves = levels.view(panels, PANEL, groups, group // 8, 2, 4)
        words = (halves[..., 0, :] | halves[..., 1, :] << 4).permute(0, 2, 3, 1, 4)
    else:
        words = levels.view(panels, PANEL, groups, group // 4, 4).permute(0, 2, 3, 1, 4)
    scales = F.pad(scales, (0, 0, 0, missing)).view(panels, PANEL, groups).transpose(1, 2).contiguous()
    parts = [words.reshape(panels, groups, -1), scales.view(torch.uint8).view(panels, groups, -1)]
    if weight.zeros is not None:
        parts.append(F.pad(weight.zeros[rows], (0, 0, 0, missing)).view(panels, PANEL, groups).transpose(1, 2))
    torch.cat(parts, 2, out=streams)
