"""Workloads: traces of real services, generators, and what can be done with them.

`load("azure-llm-2023-conv[0:200]")`, `load("poisson:rate=4,requests=500")`, `load("my-trace.jsonl")`: see `spec`.
"""

from __future__ import annotations

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError


def load(spec: str) -> Workload:
    """The workload that a name, a path or a generator's name with options stands for (see `spec.load`)."""
    from hasten.lab.workloads import spec as specs  # the loaders and generators; not needed for the words alone

    return specs.load(spec)


def names() -> list[str]:
    """What `load` knows by name."""
    from hasten.lab.workloads import spec as specs

    return specs.names()


__all__ = ["TimedRequest", "Workload", "WorkloadError", "load", "names"]
