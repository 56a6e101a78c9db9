"""What the kernels' checks of their arguments share."""

from __future__ import annotations

import torch
from torch import Tensor

IS_BF16 = {torch.float32: 0, torch.bfloat16: 1}


def side_by_side(stride: tuple[int, ...], shape: torch.Size) -> bool:
    """Whether the heads of [T, H, D] follow each other without gaps (or there is nothing to be apart)."""
    return (stride[2] == 1 and (stride[1] == shape[2] or shape[1] == 1)) or not shape[0]


def say(*tensors: Tensor | None) -> str:
    return ", ".join("none" if t is None else f"{list(t.shape)} {str(t.dtype)[6:]} strides {t.stride()}" for t in tensors)
