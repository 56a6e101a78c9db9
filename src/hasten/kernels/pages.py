"""Where large memory lies. On huge pages, where the system grants them: reading scattered KV blocks and long weights then
misses the processor's table of pages a few hundred times less often (measured in a virtual machine: 5 to 15 % more bandwidth).
Spread over the nodes of a machine whose processors have memory of their own: threads on all of them read all of it, and
bandwidth adds up."""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import re
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

HUGE = 2 << 20
"""Bytes of a huge page of x86 and of most ARM systems."""
NODES = Path("/sys/devices/system/node/has_memory")
_MBIND = {"x86_64": 237, "aarch64": 235}
"""Number of the system call, which the C library does not wrap."""
_INTERLEAVE = 3


def well_placed(tensor: Tensor) -> Tensor:
    """Ask that a fresh tensor's memory, not yet written to, lie as said above; returns the tensor. Only wishes: Linux grants
    huge pages where `/sys/kernel/mm/transparent_hugepage/enabled` says always or madvise."""
    if tensor.is_cpu and tensor.nbytes >= 2 * HUGE:
        page = mmap.PAGESIZE
        start = -(-tensor.data_ptr() // page) * page
        size = tensor.data_ptr() + tensor.nbytes - start
        advise = _madvise()
        if advise is not None:
            advise(start, size, mmap.MADV_HUGEPAGE)
        nodes = memory_nodes(NODES)
        if len(nodes) > 1:
            interleave(start, size, nodes)
    return tensor


@functools.cache
def memory_nodes(path: Path) -> tuple[int, ...]:
    """The numbers in a list of Linux, "0-1,4"; none where there is no such file."""
    try:
        spans = re.findall(r"(\d+)(?:-(\d+))?", path.read_text())
    except OSError:
        return ()
    return tuple(node for first, last in spans for node in range(int(first), int(last or first) + 1))


def interleave(address: int, size: int, nodes: tuple[int, ...]) -> bool:
    """Spread pages not yet written to over memory nodes, one after the other; whether the system did."""
    number = _MBIND.get(platform.machine())
    if number is None:
        return False
    mask = (ctypes.c_ulong * (max(nodes) // 64 + 1))()
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    call = ctypes.CDLL(None).syscall
    call.restype = ctypes.c_long
    bits = ctypes.c_ulong(64 * len(mask) + 1)  # the system reads one bit less than it is told
    return bool(call(number, ctypes.c_ulong(address), ctypes.c_ulong(size), _INTERLEAVE, mask, bits, 0) == 0)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    wish: Callable[[int, int, int], int] = function
    return wish
