"""hasten: low-latency LLM inference with the published techniques side by side, each switched on by its name.

The public names are imported when first used; ``import hasten`` and the command line never wait for torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.engine.async_engine import AsyncEngine
    from hasten.engine.config import EngineConfig
    from hasten.engine.decoding.constraints.compiling import After
    from hasten.engine.decoding.constraints.spec import ConstraintSpec
    from hasten.engine.llm import LLM
    from hasten.engine.request import Request, SamplingParams, Segment

# At its end a kernel's threads spin for the next kernel to come. libgomp's own figure is milliseconds: when anything else wants
# a core, every kernel then waits out the scheduler (docs/measurements.md, "Threads"). About 0.3 ms covers the gaps within a
# step. Read when the OpenMP library loads, so it must stand before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "After",
    "AsyncEngine",
    "ConstraintSpec",
    "EngineConfig",
    "Request",
    "SamplingParams",
    "Segment",
    "__version__",
]

_HOME = {
    "LLM": "hasten.engine.llm",
    "After": "hasten.engine.decoding.constraints.compiling",
    "ConstraintSpec": "hasten.engine.decoding.constraints.spec",
    "AsyncEngine": "hasten.engine.async_engine",
    "EngineConfig": "hasten.engine.config",
    "Request": "hasten.engine.request",
    "SamplingParams": "hasten.engine.request",
    "Segment": "hasten.engine.request",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
