"""Every test here runs on each native library that can be loaded, against the reference."""

from __future__ import annotations

import pytest
import torch

from hasten.kernels import Kernels, ReferenceKernels
from hasten.kernels.cpu import CpuKernels, native

NAMES = native.available()


@pytest.fixture(
    params=NAMES or [pytest.param("none", marks=pytest.mark.skip(reason="no native library is built (make native)"))]
)
def native_kernels(request: pytest.FixtureRequest) -> Kernels:
    return CpuKernels(request.param)


@pytest.fixture(params=["reference", *NAMES])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return ReferenceKernels() if request.param == "reference" else CpuKernels(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def threads():
    """Sets torch's thread count, which the native kernels follow, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
