"""Finds, loads and types the native libraries: one for each instruction set, built from the C++ beside this file."""

from __future__ import annotations

import ctypes
import functools
import re
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_void_p
from pathlib import Path

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


class Index(ctypes.Structure):
    """`Index` of attention.cpp: a `ViewIndex` as pointers, made once per step."""

    _fields_ = [
        (name, c_void_p) for name in ("span_offsets", "positions", "runs", "run_offsets", "lengths", "ancestors", "is_tree")
    ] + [(name, c_int64) for name in ("spans", "groups", "words")]


class Rope(ctypes.Structure):
    """`Rope` of norm.cpp."""

    _fields_ = [(name, c_void_p) for name in ("q", "k", "v", "k_cache", "v_cache", "cos_sin", "positions", "slots")] + [
        (name, c_int64)
        for name in (
            *("q_stride", "k_stride", "v_stride", "tokens", "heads", "kv_heads"),
            *("dim", "half", "table_rows", "blocks", "block_size"),
        )
    ]


def _types(text: str) -> list[object]:
    """Argument types, a letter each: p pointer, i int, l int64, f float, x Index *, r Rope *, s char *."""
    kinds = {
        "p": c_void_p,
        "i": c_int,
        "l": c_int64,
        "f": c_float,
        "x": POINTER(Index),
        "r": POINTER(Rope),
        "s": c_char_p,
    }
    return [kinds[letter] for letter in text]


_SIGNATURES: dict[str, tuple[str, object]] = {
    "rms_norm": ("ippplllllllf", None),
    "add_rms_norm": ("ipppplllllf", None),
    "act_mul": ("iippllll", None),
    "rope_and_store": ("ir", c_int),
    "copy_blocks": ("ppplll", c_int),
    "measure_views": ("pplpp", c_int),
    "attention": ("ixppppppllllllfi", None),
    "merge": ("ipppplll", None),
    "linear": ("ippppllllll", None),
    "sample": ("iplllpppppp", c_int64),
}


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
    for function, (arguments, result) in _SIGNATURES.items():
        bound = getattr(loaded, f"hasten_{function}")
        bound.argtypes, bound.restype = _types(arguments), result
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
