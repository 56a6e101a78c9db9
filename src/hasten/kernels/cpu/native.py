"""Finds, loads and types the native libraries: one for each instruction set, built from the C++ beside this file."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path
from struct import Struct

import torch

FOLDER = Path(__file__).parent

# Instruction sets from best to plainest, and the processor flags (of /proc/cpuinfo) each needs.
_AVX2 = {"avx2", "fma", "f16c"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
NEEDS: dict[str, set[str]] = {
    "avx512bf16": _AVX512 | {"avx512_bf16", "avx512_vnni"},
    "avx512": _AVX512,
    "avx2": _AVX2,
    "generic": set(),
}


# Every function of the libraries takes one pointer to its arguments: packed into bytes they cross in a fifth of the time that
# ctypes needs for a dozen arguments. Each field is eight bytes, q for pointers and integers, d for real numbers, in the order
# of the C++ struct of the same name.
INTERFACE = 8
INDEX = Struct("11q").pack
FOREST = Struct("8q2d").pack
CHECK_FOREST = Struct("3q").pack
ATTENTION = Struct("16qd3q").pack
MEASURE_VIEWS = Struct("11q").pack
MERGE = Struct("8q").pack
ROPE = Struct("23q").pack
RMS_NORM = Struct("11qd").pack
ADD_RMS_NORM = Struct("10qd").pack
ACT_MUL = Struct("8q").pack
COPY_BLOCKS = Struct("6q").pack
LINEAR = Struct("11q").pack
QUANTIZED = Struct("16qd").pack
QUANTIZED_ROWS = Struct("13qd").pack
SAMPLE = Struct("11q").pack
APPLY_MASK = Struct("9q").pack

_RETURNS_NOTHING = (
    *("attention", "attention_alone", "merge", "rms_norm", "add_rms_norm", "act_mul"),
    *("linear", "quantized_linear"),
)
_RETURNS_INTEGER = (
    *("measure_views", "check_forest", "kv_bytes", "rope_and_store", "copy_blocks", "sample", "run_plan"),
    *("quantized_rows", "apply_mask"),
)


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """The library of one instruction set. Raises RuntimeError where it is not built or cannot run here."""
    path = FOLDER / f"libhasten_{name}.so"
    if not path.exists():
        raise RuntimeError(f"no native kernels {name!r}: {path.name} is not built (make native)")
    missing = NEEDS[name] - _processor_flags()
    if missing:
        raise RuntimeError(f"this processor cannot run kernels {name!r}: it lacks {', '.join(sorted(missing))}")
    _share_openmp()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"native kernels {name!r} cannot be loaded: {error}") from error
    if not hasattr(loaded, "hasten_interface") or loaded.hasten_interface() != INTERFACE:
        raise RuntimeError(f"native kernels {name!r} were built from other sources: build {path.name} anew (make native)")
    for function in (*_RETURNS_NOTHING, *_RETURNS_INTEGER):
        bound = getattr(loaded, f"hasten_{function}")
        bound.argtypes, bound.restype = [ctypes.c_char_p], None if function in _RETURNS_NOTHING else ctypes.c_int64
    return loaded


def available() -> list[str]:
    """The names that `library` can load here, best first."""
    found = []
    for name in NEEDS:
        try:
            library(name)
        except RuntimeError:
            continue
        found.append(name)
    return found


def use_threads(count: int) -> None:
    """From now on share what the calling thread computes among `count` threads; other threads' work is not affected."""
    torch.get_num_threads()  # torch gives a thread its number when it is first asked there, which would overrule this one
    ctypes.CDLL(None).omp_set_num_threads(count)


@functools.cache
def _processor_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(flags[1].split()) if flags else frozenset()


@functools.cache
def _share_openmp() -> None:
    """Makes the OpenMP runtime torch uses visible to the libraries, which name no runtime of their own: a second one would
    bring a second pool of threads to fight for the cores."""
    candidates: list[str] = []
    try:
        mapped = Path("/proc/self/maps").read_text()
        candidates += sorted(set(re.findall(r"/\S*/lib(?:gomp|iomp5|omp)[-.]\S*", mapped)))
    except OSError:
        pass
    folder = Path(torch.__file__).parent
    candidates += [str(p) for where in (folder / "lib", folder.with_name("torch.libs")) for p in where.glob("libgomp*.so*")]
    candidates.append("libgomp.so.1")
    for candidate in candidates:
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
            return
        except OSError:
            continue
