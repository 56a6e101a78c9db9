"""What attention takes on one thread of this machine: a table T(query rows, keys), measured once per process and shape."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hasten.kernels.base import ViewIndex
from hasten.kernels.cpu import CpuKernels
from hasten.kernels.forest import REST, Forest

ROWS = (1, 2, 4, 8, 16, 64, 256)
KEYS = (32, 256, 2048)
_ROWS, _KEYS = (np.array(grid, dtype=np.float64) for grid in (ROWS, KEYS))
REPEATS = 3
POOL_BYTES = 32 << 20
"""Of keys, and as many of values: measurements go round in it, so that they read from memory as a step does."""
PIECES = 8


class AttentionCosts:
    """The measured table, interpolated linearly in both directions; beyond its end time grows in proportion. Measured when
    first asked: 0.1 s, once for each kernel library, dtype, head dimension and block size."""

    def __init__(self, kernels: CpuKernels, dtype: torch.dtype, dim: int, block_size: int) -> None:
        self._of = (kernels.name, dtype, dim, block_size)

    @property
    def merge(self) -> float:
        """Seconds that one more task costs each of its query rows: for keys in a tile of their own, a result written, read
        and merged."""
        return _measured(*self._of)[1]

    def seconds(self, rows: Any, keys: Any) -> npt.NDArray[np.float64]:
        """T of numbers of query rows (of one KV head) and of keys, or arrays of them."""
        table, _ = _measured(*self._of)
        i, a, more_rows = _place(_ROWS, rows)
        j, b, more_keys = _place(_KEYS, keys)
        few = table[i, j] + (table[i, j + 1] - table[i, j]) * b
        many = table[i + 1, j] + (table[i + 1, j + 1] - table[i + 1, j]) * b
        result: npt.NDArray[np.float64] = (few + (many - few) * a) * (more_rows * more_keys)
        return result


def _place(grid: npt.NDArray[np.float64], values: Any) -> tuple[Any, Any, Any]:
    """Of values on a grid: the point before each, how far it is to the next, and what to multiply with beyond the last."""
    inside = np.minimum(np.maximum(values, grid[0]), grid[-1])
    at = np.maximum(np.searchsorted(grid, inside) - 1, 0)
    return at, (inside - grid[at]) / (grid[at + 1] - grid[at]), np.maximum(1.0, values / grid[-1])


@functools.cache
def _measured(name: str, dtype: torch.dtype, dim: int, block_size: int) -> tuple[npt.NDArray[np.float64], float]:
    """Seconds [len(ROWS), len(KEYS)], and those of one merge."""
    bench = _Bench(CpuKernels(name), dtype, dim, block_size)
    table = np.array([[bench.seconds(rows, keys) for keys in KEYS] for rows in ROWS])
    # More rows or keys never take less time: what noise says otherwise is not to be planned by.
    table = np.maximum.accumulate(np.maximum.accumulate(table, 0), 1)
    rows, keys = ROWS[-2], KEYS[0]
    more = bench.seconds(rows, PIECES * keys, PIECES) - bench.seconds(rows, PIECES * keys)
    return table, max(more / ((PIECES - 1) * rows), 1e-9)


class _Bench:
    def __init__(self, kernels: CpuKernels, dtype: torch.dtype, dim: int, block_size: int) -> None:
        blocks = max(POOL_BYTES // (block_size * dim * dtype.itemsize), 2 * -(-KEYS[-1] // block_size))
        self._k, self._v = (torch.full((blocks, 1, block_size, dim), 0.01, dtype=dtype) for _ in range(2))
        self._kernels, self._took = kernels.timed()
        self._size, self._next = block_size, 0
        self._q = torch.full((ROWS[-1], 1, dim), 0.01, dtype=dtype)
        self._out = torch.empty_like(self._q)

    def seconds(self, rows: int, keys: int, pieces: int = 1) -> float:
        """Of `rows` queries over `keys` keys, in so many nodes: the least of some calls, each over other keys."""
        least = np.inf
        for _ in range(REPEATS + 1):  # the first finds code and scratch cold
            index = self._index(rows, keys, pieces)
            self._kernels.attention(self._q[:rows], self._k, self._v, index, 0.1, self._out[:rows])
            least = min(least, self._took())
        return float(least)

    def _index(self, rows: int, keys: int, pieces: int) -> ViewIndex:
        each = -(-keys // pieces // self._size)  # blocks of a piece
        count = each * pieces
        if self._next + count > len(self._k):
            self._next = 0
        runs = np.zeros((count, 4), dtype=np.int32)
        runs[:, 0] = np.arange(self._next, self._next + count)
        runs[:, 2] = self._size
        runs[each - 1 :: each, 2] = keys // pieces - (each - 1) * self._size
        self._next += count
        index = ViewIndex.from_numpy(np.array([0, rows]), np.full(rows, keys), runs, np.array([0, count]))
        if pieces > 1:  # a path of nodes under the same rows, each a task
            numbers, every = np.arange(pieces), np.arange(rows)
            nodes = np.zeros((pieces, 7), dtype=np.int32)
            nodes[:, 1], nodes[:, 2] = numbers * each, (numbers + 1) * each
            nodes[:, 3], nodes[:, 4], nodes[:, 6] = numbers * (keys // pieces), keys // pieces, rows
            nodes[-1, [2, 4]] = REST
            index.forest = Forest(
                nodes,
                every.astype(np.int32),
                np.stack([numbers, 0 * numbers, numbers * 0 + REST], 1).astype(np.int32),
                (np.arange(rows + 1) * pieces).astype(np.int32),
                np.stack([np.tile(numbers, rows), np.repeat(every, pieces)], 1).astype(np.int32),
            )
        return index
