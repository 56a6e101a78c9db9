"""Fixtures of all tests."""

from __future__ import annotations

import pytest

import hasten  # before torch, so that its OpenMP settings hold

assert hasten.__version__


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`device`: every device of this machine that the engine runs on."""
    if "device" in metafunc.fixturenames:
        import torch

        metafunc.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
