"""What this machine can do right now: the yardsticks a step is held against."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from hasten.engine.weights.dense import can_pack


def seconds(work: Callable[[], object], at_least_s: float = 0.3, at_least: int = 5) -> list[float]:
    """Durations of repeated calls, after two that do not count."""
    work()
    work()
    out: list[float] = []
    began = time.perf_counter()
    while len(out) < at_least or time.perf_counter() - began < at_least_s:
        start = time.perf_counter()
        work()
        out.append(time.perf_counter() - start)
    return out


def processor() -> str:
    """What this machine calls its processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@dataclass(frozen=True, slots=True)
class Limits:
    """`read` bytes/s of streaming reads; `matmul` FLOP/s of a packed oneDNN product in the run dtype, or in float32 on a
    processor that has no instructions for that."""

    read: float
    matmul: float


def measure(dtype: torch.dtype = torch.bfloat16) -> Limits:
    """Both limits, each the median of about 0.3 s. The read buffer (400 MB) is larger than any cache."""
    if not can_pack(dtype):
        dtype = torch.float32
    block = torch.ones(100_000_000, dtype=torch.float32)
    read = block.nbytes / median(seconds(block.sum))
    x = torch.randn(512, 2048).to(dtype)
    weight = torch.randn(4096, 2048).to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 512)
    work = seconds(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    return Limits(read, 2 * 512 * 2048 * 4096 / median(work))
