"""The machine and the code that a result belongs to."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from pydantic import BaseModel


class Machine(BaseModel):
    """`cores`: what this process may use; `physical_cores`: hyper-threads counted once. `read_bytes_per_s`: streaming reads,
    measured before the claim and after it, since shared machines drift."""

    cpu: str
    cores: int
    physical_cores: int
    memory_bytes: int
    python: str
    torch: str
    kernels: str
    read_bytes_per_s: list[float]


def facts() -> Machine:
    """Of this process and machine, with the read bandwidth as it is now (takes about a second)."""
    import torch

    from hasten import kernels
    from hasten.engine.build import physical_cores
    from hasten.lab.bench.machine import processor

    return Machine(
        cpu=processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        physical_cores=physical_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
        torch=torch.__version__,
        kernels=kernels.load().name,
        read_bytes_per_s=[read_bandwidth()],
    )


def read_bandwidth() -> float:
    """Bytes per second, now."""
    from hasten.lab.bench.machine import measure

    return measure().read


def commit() -> str:
    """The commit this code was checked out at, with `-dirty` when anything but docs/ (where results go) differs from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        name = git("rev-parse", "--short=12", "HEAD")
        return name + ("-dirty" if git("status", "--porcelain", "--", ":/", ":(top,exclude)docs") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
