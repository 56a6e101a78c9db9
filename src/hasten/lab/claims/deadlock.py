"""The guard of the claim `splitfuse`: a deadlock reset changes nobody's tokens."""

from __future__ import annotations

import numpy as np

from hasten.engine.events import Kind
from hasten.lab.claims.base import Guard
from hasten.lab.claims.sides import Side, Sides
from hasten.lab.workloads.base import TimedRequest, Workload

BLOCKS, SIZE = 48, 16


def guard(seed: int) -> Guard:
    """Memory that fills up with half-done answers: SplitFuse resets, and every token is the one that ample memory gives."""
    random = np.random.default_rng(seed)
    work = Workload(
        name="more than fits",
        requests=[
            TimedRequest(id=str(i), arrival_s=0.0, prompt_tokens=int(random.integers(20, 60)), output_tokens=200)
            for i in range(8)
        ],
    )
    common = (
        "model.dtype=float32",
        "executor.deterministic=true",
        "kv.reuse=none",
        f"kv.block_size={SIZE}",
        "model.max_length=512",
    )
    engines = Sides([Side("ample", ("whole-prompts",), ("kv.memory_bytes=40000000",))], common=common)
    expected = engines.replay("ample", work)[1]
    engines.close()
    tight = f"kv.memory_bytes={BLOCKS * _block_bytes(SIZE)}"
    engines = Sides([Side("tight", ("splitfuse:tokens=128",), (tight,))], common=common)
    run, got = engines.replay("tight", work)
    engines.close()
    resets = int((run.columns["kind"] == Kind.PREEMPTED).sum())
    return Guard(
        "equal tokens after deadlock resets",
        resets > 0 and got == expected,
        f"8 answers of 200 tokens in {BLOCKS} blocks of {SIZE}: {resets} sequences started over; float32, deterministic "
        "kernels",
    )


def _block_bytes(size: int) -> int:
    """Bytes of a float32 KV block of the built-in model."""
    from hasten.engine.build import build
    from hasten.engine.config import EngineConfig
    from hasten.engine.memory import block_bytes

    built = build(EngineConfig.build(set_=["model.dtype=float32", "kv.memory_bytes=10000000", f"kv.block_size={size}"]))
    try:
        return int(block_bytes(built.parts.model, size))
    finally:
        built.engine.executor.close()
