"""The weights seam: how a linear layer is stored and multiplied, and what tokens are looked up in. Shapes belong to the layer,
never to a global config."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Undo(Protocol):
    def __call__(self) -> None:
        """Put the old values back, bit for bit."""
        ...


class Embedding(Protocol):
    """A table [vocabulary, width] that tokens are looked up in. `rows` gives those of ids [n], int64, as [n, width] in the run
    dtype, in memory of their own."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...
    def rows(self, ids: Tensor) -> Tensor: ...


class WeightStore(Protocol):
    """A weight [out, in] with an optional bias [out]. `apply` takes x [T, in] in the run dtype, contiguous rows, and returns
    [T, out]: `out`, if that is given, else fresh. `native`: with so many rows `apply` is a kernel's call and nothing else."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...
    def apply(self, x: Tensor, out: Tensor | None = None) -> Tensor: ...
    def native(self, rows: int) -> bool: ...
    def dense(self) -> Tensor:
        """The weight as a plain tensor [out, in] (a copy where the store is packed)."""
        ...

    def slice(self, inputs: Tensor | None, outputs: Tensor | None) -> WeightStore:
        """A narrower store of the chosen input columns and output rows (int64 indices; None: all)."""
        ...

    def patch(self, indices: tuple[Tensor, Tensor], values: Tensor) -> Undo:
        """Overwrite weight[rows, columns] = values [n]; call what is returned to restore them."""
        ...

    def fold(self, delta: Tensor) -> bool:
        """weight += delta [out, in] for good; False when this store cannot, and the caller keeps a side branch."""
        ...
