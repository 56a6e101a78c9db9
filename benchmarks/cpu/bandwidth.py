"""What the machine can do right now, and the least time that leaves for a case.

    python bandwidth.py FOLDER_FOR_THE_COMPILED_FILE

Reading: torch's sum over 1 GiB of int64 with two threads, the median of five. Hand-written AVX-512 loops with and without
prefetching, several streams a thread and huge pages read no faster on the machines where this was tried; memory is the
limit. Arithmetic: dot-product instructions on registers (`rates.cpp`), which no matrix product can exceed.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from checkpoint import tensor_shapes

_BUFFER_BYTES = 1 << 30
_ROUNDS = 5_000_000
WEIGHT_BYTES = {"bf16": 2.0, "int8": 1.0, "int4": 0.5}
"""Bytes of a weight in each format without scales: no engine reads less."""
KV_BYTES = {"bf16": 2.0, "int8": 1.0, "int4": 1.0}
"""Bytes of a cached number, as the engine that keeps the fewest does."""


class Bandwidth:
    """Keeps its buffer, since filling it takes longer than reading it."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._buffer = torch.ones(_BUFFER_BYTES // 8, dtype=torch.int64)

    def measure(self) -> float:
        """Bytes read per second."""
        times = []
        for _ in range(6):
            began = time.perf_counter()
            self._buffer.sum()
            times.append(time.perf_counter() - began)
        return _BUFFER_BYTES / median(times[1:])


class Arithmetic:
    """Operations per second of all threads for "bf16" and "int8"; int4 weights are multiplied as int8. Without a compiler or
    the instructions there is no entry."""

    def __init__(self, build: Path, threads: int) -> None:
        self._threads = threads
        self._works: dict[str, Callable[[int], int]] = {}
        library = build / "rates.so"
        source = Path(__file__).with_name("rates.cpp")
        command = ["g++", "-O3", "-funroll-loops", "-march=native", "-shared", "-fPIC", source, "-o", library]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError):
            return
        loaded = ctypes.CDLL(str(library))
        for name in ("bf16", "int8"):
            work = getattr(loaded, f"{name}_rate")
            work.argtypes, work.restype = [ctypes.c_int64], ctypes.c_int64
            if work(1):
                self._works[name] = work

    def measure(self) -> dict[str, float]:
        found = {}
        with ThreadPoolExecutor(self._threads) as pool:
            for name, work in self._works.items():
                began = time.perf_counter()
                done = sum(pool.map(work, [_ROUNDS] * self._threads))
                found[name] = done / (time.perf_counter() - began)
        return found


def bound_s(
    config: dict[str, Any], format: str, case: dict[str, int | str], read: float, rates: dict[str, float]
) -> float | None:
    """The least seconds of a case: of a prefill of `tokens`, or of a decode step of `sequences` with `context` tokens each.

    A step reads every weight once (the embedding is the head) and every cached key and value once; it multiplies every weight
    with every row, a prefill the head's with the last only. Reading and multiplying may overlap, so the slower one counts.
    None where the rate that is needed could not be measured."""
    sizes = {name: _product(shape) for name, shape in tensor_shapes(config).items() if len(shape) > 1}
    head = sizes["model.embed_tokens.weight"]
    blocks = sum(sizes.values()) - head
    layers, dim = config["num_hidden_layers"], config["head_dim"]
    rate = rates.get("bf16" if format == "bf16" else "int8")
    if rate is None:
        return None
    if case["what"] == "prefill":
        tokens = int(case["tokens"])
        # Scores and weighted values are in bf16 at best, half of the square being masked; a lower bound may count them as fast.
        attention = 4 * layers * config["num_attention_heads"] * dim * tokens * (tokens + 1) / 2
        operations = 2 * blocks * tokens + 2 * head + attention
        return max(operations / rate, (blocks + head) * WEIGHT_BYTES[format] / read)
    sequences, context = int(case["sequences"]), int(case["context"])
    cached = 2 * layers * config["num_key_value_heads"] * dim * context * sequences
    traffic = (blocks + head) * WEIGHT_BYTES[format] + cached * KV_BYTES[format]
    return max(traffic / read, 2 * (blocks + head) * sequences / rate)


def _product(shape: tuple[int, ...]) -> int:
    out = 1
    for size in shape:
        out *= size
    return out


def main() -> None:
    bandwidth = Bandwidth(2)
    print("read GB/s", *(f"{bandwidth.measure() / 1e9:.1f}" for _ in range(3)))
    arithmetic = Arithmetic(Path(sys.argv[1]), 2)
    for _ in range(3):
        print("arithmetic Tops/s", {name: round(rate / 1e12, 3) for name, rate in arithmetic.measure().items()})


if __name__ == "__main__":
    main()
