"""Kernels recorded and run again: the calls of a forward pass as one native call.

While a `Tape` is recording, the functions of a `CpuKernels` check their arguments and keep them packed instead of
computing. What is recorded may be run any number of times on the same memory with any number of rows up to the recorded one
(`plan.cpp`)."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from struct import Struct

from hasten.kernels.cpu import native

_RUN = Struct("4q").pack
_OP = Struct("2q").pack
# In the order of plan.cpp; the kind of op whose time a kernel's is.
RECORDABLE = {
    "rms_norm": "norm",
    "add_rms_norm": "norm",
    "act_mul": "activation",
    "rope_and_store": "rope",
    "attention": "attention",
    "linear": "linear",
    "quantized_linear": "linear",
}
_NUMBERS = {name: number for number, name in enumerate(RECORDABLE)}


class Tape:
    """The calls of the thread that made it, in order."""

    def __init__(self) -> None:
        self._calls: list[tuple[int, bytes]] = []
        self._thread = threading.get_ident()

    def stand_in(self, name: str, function: Callable[[bytes], int]) -> Callable[[bytes], int]:
        """What takes a native function's place: in this thread it records (0: nothing is wrong), in others it calls it."""

        def record(arguments: bytes) -> int:
            if threading.get_ident() != self._thread:
                return function(arguments)
            if name not in RECORDABLE:
                raise RuntimeError(f"{name} cannot be part of a plan")
            self._calls.append((_NUMBERS[name], arguments))
            return 0

        return record

    def cut(self, lib: ctypes.CDLL) -> Segment:
        """What was recorded since the last cut."""
        calls, self._calls = self._calls, []
        return Segment(calls, lib)


class Segment:
    """Recorded calls, laid out for the library."""

    def __init__(self, calls: list[tuple[int, bytes]], lib: ctypes.CDLL) -> None:
        self._run = lib.hasten_run_plan
        self._arguments = ctypes.create_string_buffer(b"".join(packed for _, packed in calls) or b"\0")
        at = ctypes.addressof(self._arguments)
        ops = b""
        for kind, packed in calls:
            ops += _OP(kind, at)
            at += len(packed)
        self._ops = ctypes.create_string_buffer(ops or b"\0")
        self._address, self._count = ctypes.addressof(self._ops), len(calls)

    def __bool__(self) -> bool:
        return self._count > 0

    def run(self, rows: int, seconds: KernelSeconds | None = None) -> None:
        """Raises IndexError for a position or slot out of range; nothing from that layer on was computed then."""
        if self._run(_RUN(self._address, self._count, rows, 0 if seconds is None else seconds.address)):
            raise IndexError("a position or slot of the step is out of range")


class KernelSeconds:
    """Where runs of segments leave how long each kernel took."""

    def __init__(self) -> None:
        self._seconds = (ctypes.c_double * len(RECORDABLE))()
        self.address = ctypes.addressof(self._seconds)

    def by_kind(self) -> dict[str, float]:
        sums = dict.fromkeys(RECORDABLE.values(), 0.0)
        for kind, seconds in zip(RECORDABLE.values(), self._seconds, strict=True):
            sums[kind] += seconds
        return sums


class IndexCell:
    """Where recorded attention calls find the index of the step at hand: stands in for a prepared `ViewIndex` of `tokens`."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.groups, self.block_end, self.slot_end = tokens, 1, 0, 0
        self._cell = ctypes.create_string_buffer(len(native.INDEX(*[0] * 11)))
        self.address = ctypes.addressof(self._cell)

    def set(self, address: int) -> None:
        """Copy the packed index at an address."""
        ctypes.memmove(self.address, address, len(self._cell))
