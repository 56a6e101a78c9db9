"""Finds and loads the native library of entropy coding, built from the C++ in kernels/entropy."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import hasten  # not hasten.kernels, which imports torch

INTERFACE = 2
PATH = Path(hasten.__path__[0], "kernels", "entropy", "libhasten_entropy.so")
_FAULTS = {
    -1: "counts must begin with 0, rise in every channel and end with their total",
    -2: "the arguments do not fit each other",
    -3: "the stream has no room",
}
_CORRUPT = {-4: "the stream ends too early", -5: "the stream is damaged, or of other counts"}


class CorruptStream(ValueError):
    """Not what the encoder wrote."""


@functools.cache
def library() -> ctypes.CDLL:
    """The library. Raises RuntimeError where it is not built or of other sources."""
    if not PATH.exists():
        raise RuntimeError(f"entropy coding needs the native library {PATH.name}, which is not built (make native)")
    try:
        loaded = ctypes.CDLL(str(PATH))
    except OSError as error:
        raise RuntimeError(f"the native library of entropy coding cannot be loaded: {error}") from error
    if not hasattr(loaded, "hasten_entropy_interface") or loaded.hasten_entropy_interface() != INTERFACE:
        raise RuntimeError(f"the library of entropy coding was built from other sources: build {PATH.name} anew (make native)")
    for name in ("encode", "decode", "place"):
        function = getattr(loaded, f"hasten_entropy_{name}")
        function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int64
    return loaded


def check(result: int) -> int:
    """What a function of the library returned; raises what it says went wrong."""
    if result >= 0:
        return result
    if result in _CORRUPT:
        raise CorruptStream(_CORRUPT[result])
    if result in _FAULTS:
        raise ValueError(_FAULTS[result])
    raise MemoryError("entropy coding: memory is short")
