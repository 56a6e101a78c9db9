"""Fixtures of all tests."""

from __future__ import annotations

import os

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # read when torch is imported; threads of torch's that wait for each other's cores take ages
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

import hasten  # before torch, so that its OpenMP settings hold

assert hasten.__version__
settings.register_profile("shared machine", deadline=None)  # where others run too, an example may take any time
settings.load_profile("shared machine")
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported, whoever does it


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`device`: every device of this machine that the engine runs on."""
    if "device" in metafunc.fixturenames:
        import torch

        metafunc.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
