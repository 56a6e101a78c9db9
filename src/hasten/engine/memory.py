"""Memory: the weights and the KV pool of one device, and the lock that guards the books over it.

Lanes (loops) share a `Memory`; the tensors live here, the books (`Books`) say who owns which block of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from hasten.engine.executors.step import Model
from hasten.engine.host_pool import HostPool
from hasten.engine.kv.host import Run, Traffic
from hasten.engine.kv.jobs import Job
from hasten.engine.kv.planes import DENSE, Form
from hasten.engine.technique import ConfigError
from hasten.kernels.pages import well_placed

SHARE = 0.4
"""Share of free memory the KV pool takes at most when no size is given. Untouched pages cost nothing on the CPU."""


class Memory:
    """`blocks` KV blocks of `block_size` slots in every site, and `host_blocks` in the host tier.

    `form`: how keys and values lie in the planes of a site (`kv/planes.py`). `planes` [blocks, ...]: those of all sites, in one
    order: a block's bytes are its rows of them, one after another."""

    def __init__(self, model: Model, blocks: int, block_size: int, host_blocks: int = 0, form: Form = DENSE) -> None:
        self.model = model
        self.blocks = blocks
        self.block_size = block_size
        self.host_blocks = host_blocks
        self.lock = threading.RLock()
        self.traffic = Traffic()
        """A call is one copy of one plane."""
        self._copier: ThreadPoolExecutor | None = None
        self._closing: list[Callable[[], None]] = []
        self.planes: list[Tensor] = []
        self._sites: list[tuple[int, str]] = []
        for number, site in enumerate(model.sites):
            wanted = form.planes(site.kv_heads, site.head_dim, block_size, model.dtype)
            site.form, site.block_size = form, block_size
            site.planes = tuple(
                well_placed(torch.empty(blocks, *plane.shape, dtype=plane.dtype, device=model.device)) for plane in wanted
            )
            self.planes += site.planes
            self._sites += [(number, plane.name) for plane in wanted]
        self._host = self.second_pool(host_blocks) if host_blocks else None

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all sites."""
        return self.nbytes // self.blocks

    @property
    def host_planes(self) -> list[Tensor]:
        """Those of the host tier [host_blocks, ...], in the order of `planes`."""
        return self._host.tensors if self._host is not None else []

    def second_pool(self, blocks: int) -> HostPool:
        """One more pool of blocks in host memory."""
        if self._copier is None:
            self._copier = ThreadPoolExecutor(1, thread_name_prefix="hasten-copier")
        return HostPool(self.planes, blocks, self._copier, self.traffic, self._sites, self._closing.append)

    def copy_out(self, runs: Seq[Run]) -> Job:
        assert self._host is not None, "no host tier"
        return self._host.copy_out(runs)

    def copy_in(self, runs: Seq[Run]) -> Job:
        assert self._host is not None, "no host tier"
        return self._host.copy_in(runs)

    def on_close(self, call: Callable[[], None]) -> None:
        """Have `call` called before the memory is given up."""
        self._closing.append(call)

    def close(self) -> None:
        while self._closing:
            self._closing.pop()()
        if self._copier is not None:
            self._copier.shutdown(wait=True)


def block_bytes(model: Model, block_size: int, form: Form = DENSE) -> int:
    """Bytes of one block over all sites, keys and values."""
    return sum(
        plane.nbytes for site in model.sites for plane in form.planes(site.kv_heads, site.head_dim, block_size, model.dtype)
    )


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_meminfo("MemAvailable")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)


def _meminfo(name: str) -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30


def pool_blocks(model: Model, block_size: int, max_rows: int, asked_bytes: int | None, form: Form = DENSE) -> int:
    """How many blocks the pool gets: `asked_bytes` worth, or SHARE of free memory, at most `max_rows` full contexts."""
    each = block_bytes(model, block_size, form)
    if asked_bytes is None:
        most = max_rows * -(-model.max_length // block_size)
        return max(1, min(most, int(SHARE * free_bytes(model.device)) // each))
    if asked_bytes < each:
        raise ConfigError(f"kv.memory_bytes={asked_bytes} holds no block; one of {block_size} tokens takes {each} bytes")
    return asked_bytes // each
