"""Pools of KV blocks in host memory, and the copies between them and the device's pool."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.engine.kv.blockfile import Plane, Planes
from hasten.engine.kv.host import Run, Traffic
from hasten.engine.kv.jobs import Job


class HostPool:
    """`blocks` blocks like those of `device`, the planes of all sites [blocks, ...] in one order (`kv.host.SecondPool`).
    `copier`: one thread, which all pools share so that copies take place in the order asked for. `sites`: that each plane
    belongs to, with its name there."""

    def __init__(
        self,
        device: Seq[Tensor],
        blocks: int,
        copier: ThreadPoolExecutor,
        traffic: Traffic,
        sites: Seq[tuple[int, str]],
        on_close: Callable[[Callable[[], None]], None],
    ) -> None:
        """`on_close(f)`: have `f` called before the memory is given up."""
        self.blocks = blocks
        self.on_close = on_close
        self._device = device
        self._copier = copier
        self._traffic = traffic
        pin = bool(device) and device[0].device.type == "cuda"
        self.tensors = [torch.empty(blocks, *here.shape[1:], dtype=here.dtype, pin_memory=pin) for here in device]
        self._sites = sites

    @property
    def planes(self) -> tuple[Plane, ...]:
        """Raises Unusable for dtypes that cannot be stored."""
        return tuple(
            Plane(site, name, tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
            for (site, name), tensor in zip(self._sites, self.tensors, strict=True)
        )

    @property
    def block_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors) // self.blocks

    def copy_out(self, runs: Seq[Run]) -> Job:
        return self._copy(runs, out=True)

    def copy_in(self, runs: Seq[Run]) -> Job:
        return self._copy(runs, out=False)

    def _copy(self, runs: Seq[Run], out: bool) -> Job:
        def work() -> float:
            began = time.perf_counter()
            calls = 0
            for pool, host in zip(self._device, self.tensors, strict=True):
                for block, other, count in runs:  # contiguous on both sides: one plain copy
                    here, there = pool[block : block + count], host[other : other + count]
                    (there if out else here).copy_(here if out else there)
                    calls += 1
            self._traffic.count(out, calls, sum(count for _, _, count in runs))
            return time.perf_counter() - began

        return Job(self._copier.submit(work))

    def read(self, blocks: Seq[int]) -> Planes:
        return [array[blocks[0] : blocks[0] + len(blocks)] for array in self._arrays()]

    def write(self, blocks: Seq[int], planes: Planes) -> None:
        for array, plane in zip(self._arrays(), planes, strict=True):
            array[blocks[0] : blocks[0] + len(blocks)] = plane

    def _arrays(self) -> list[np.ndarray[Any, Any]]:
        """The same memory as numpy arrays, bfloat16 as its bit patterns."""
        return [(t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy() for t in self.tensors]
