"""Kernels: one function, several implementations. `load` picks the best one this machine offers."""

from __future__ import annotations

import os

import torch

from hasten.kernels.base import Activation, Kernels, ViewIndex
from hasten.kernels.reference import ReferenceKernels

__all__ = ["Activation", "Kernels", "ReferenceKernels", "ViewIndex", "load"]


def load(device: str = "cpu", name: str | None = None) -> Kernels:
    """The kernels for a device: on the CPU the native library for the best instruction set the processor has.

    `name`, or on the CPU the environment variable HASTEN_KERNELS, forces one of reference, generic, avx2, avx512, avx512bf16;
    ValueError for any other name, RuntimeError where that library is not built or the processor lacks its instructions.
    Without a native library the reference serves. Other devices have the reference only.
    """
    from hasten.kernels.cpu import CpuKernels, native

    on_cpu = torch.device(device).type == "cpu"
    if name is None and on_cpu:
        name = os.environ.get("HASTEN_KERNELS") or None
    if name is not None and name != "reference":
        if name not in native.NEEDS:
            raise ValueError(f"no kernels are called {name!r}; there are {', '.join(['reference', *native.NEEDS])}")
        if not on_cpu:
            raise RuntimeError(f"kernels {name!r} run on the CPU only, not on {device}")
        return CpuKernels(name)
    if name is None and on_cpu:
        for best in native.NEEDS:
            try:
                return CpuKernels(best)
            except RuntimeError:  # not built, or not for this processor
                continue
    return ReferenceKernels()
