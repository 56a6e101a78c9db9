"""Where the weights of a model come from, tensor by tensor: a mapped checkpoint, or nowhere (`dummy`)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor

from hasten.engine.models.checkpoint import Checkpoint, Progress
from hasten.engine.models.published import Format
from hasten.kernels.quantized import QuantizedWeight

_POOL = (1 << 20) + 7
"""Random numbers that dummy weights are tiled from; prime to every usual width, so that rows of one weight differ."""
_STD = 0.02


class Source(ABC):
    """Gives tensors in the run dtype on the run device. `total_bytes`: what `progress` counts up to, in bytes of this
    source."""

    def __init__(self, dtype: torch.dtype, device: torch.device, total_bytes: int, progress: Progress | None) -> None:
        self.dtype = dtype
        self.device = device
        self.total_bytes = total_bytes
        self._progress = progress
        self._done = 0

    @abstractmethod
    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor called `name`; it may be a view of a mapped file, so it must not be written to."""
        ...

    def in_levels(self, name: str) -> bool:
        """Whether the weight called `name` (without `.weight`) is stored in levels."""
        return False

    def levels(self, name: str, rows: int, columns: int) -> QuantizedWeight | None:
        """The weight called `name` (without `.weight`) as the levels it is stored in; None where it is stored plainly."""
        return None

    @abstractmethod
    def skip(self, name: str) -> None:
        """Count the weight called `name` (without `.weight`), which nobody needs, as read."""
        ...

    @abstractmethod
    def fingerprint(self, config: Mapping[str, Any]) -> str: ...

    def stack(self, names: list[str], rows: list[int], *rest: int) -> Tensor:
        """Several tensors [rows[i], *rest] one below the other in a fresh tensor, each let go before the next is
        touched."""
        out = torch.empty(sum(rows), *rest, dtype=self.dtype, device=self.device)
        at = 0
        for name, count in zip(names, rows, strict=True):
            out[at : at + count] = self.take(name, count, *rest)
            at += count
        return out

    def vector(self, name: str, size: int) -> Tensor:
        """A small tensor [size] with memory of its own."""
        return self.take(name, size).clone()

    def _report(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self.total_bytes)


class CheckpointSource(Source):
    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, progress: Progress | None = None,
        format: Format | None = None,
    ) -> None:  # fmt: skip
        super().__init__(dtype, device, checkpoint.nbytes, progress)
        self.checkpoint = checkpoint
        self._format = format

    def in_levels(self, name: str) -> bool:
        return self._format is not None and self._format.holds(self.checkpoint, name)

    def levels(self, name: str, rows: int, columns: int) -> QuantizedWeight | None:
        if self._format is None or not self.in_levels(name):
            return None
        weight = self._format.read(self.checkpoint, name, rows, columns)
        self.skip(name)
        return weight.to(self.device)

    def skip(self, name: str) -> None:
        self._report(sum(e.nbytes for n, e in self.checkpoint.entries.items() if n.startswith(f"{name}.")))

    def take(self, name: str, *shape: int) -> Tensor:
        tensor = self.checkpoint.take(name, shape, self.dtype, self.device)
        self._report(self.checkpoint.entries[name].nbytes)
        return tensor

    def fingerprint(self, config: Mapping[str, Any]) -> str:
        """xxh3 over config.json, the run dtype, every tensor's name, dtype and shape, and a few hundred bytes of each.
        Two trainings of one model differ in nearly every byte; a file edited by hand in a few places may go
        unnoticed."""
        digest = _digest(config, self.dtype)
        for part in self.checkpoint.sample():
            digest.update(part)
        return digest.hexdigest()


class DummySource(Source):
    """Random weights, the same every time: normal with a deviation of 0.02, norms 1, biases 0. Tiled from one block of
    random numbers, begun at another place for every name: as fast as memory can be written."""

    def __init__(
        self, dtype: torch.dtype, device: torch.device, total_bytes: int = 0, progress: Progress | None = None
    ) -> None:
        super().__init__(dtype, device, total_bytes, progress)
        random = torch.randn(_POOL, generator=torch.Generator().manual_seed(0)) * _STD
        self._pool = random.to(device=device, dtype=dtype)

    def take(self, name: str, *shape: int) -> Tensor:
        if len(shape) == 1:
            fill = 0.0 if name.endswith("bias") else 1.0
            out = torch.full(shape, fill, dtype=self.dtype, device=self.device)
        else:
            out = torch.empty(shape, dtype=self.dtype, device=self.device)
            self._fill(out.view(-1), xxhash.xxh3_64_intdigest(name.encode()) % _POOL)
        self._report(out.nbytes)
        return out

    def skip(self, name: str) -> None:
        pass

    def _fill(self, flat: Tensor, begin: int) -> None:
        at, size = 0, flat.shape[0]
        while at < size:
            count = min(size - at, _POOL - begin)
            flat[at : at + count] = self._pool[begin : begin + count]
            at += count
            begin = 0

    def fingerprint(self, config: Mapping[str, Any]) -> str:
        return "dummy-" + _digest(config, self.dtype).hexdigest()


def _digest(config: Mapping[str, Any], dtype: torch.dtype) -> xxhash.xxh3_128:
    return xxhash.xxh3_128(json.dumps([config, str(dtype)], sort_keys=True, default=str).encode())
