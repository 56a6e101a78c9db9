"""The Triton kernels, interpreted on the CPU (`tests/conftest.py` says so to Triton), against the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.kernels.forests import make_forest_world
from tests.kernels.test_forest import TOLERANCE, with_forest
from tests.kernels.worlds import poisoned, run

from hasten.kernels import ReferenceKernels

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def attention() -> Callable[..., None]:
    from hasten.kernels.triton import forest

    return forest.attention


@pytest.mark.parametrize("seed", range(6))
def test_interpreted_kernels_are_the_reference(seed: int, attention: Callable[..., None]) -> None:
    rng = np.random.default_rng(seed)
    dtype = torch.float32 if seed % 3 else torch.bfloat16
    plain = make_forest_world(
        rng, dtype, kv_heads=1 + seed % 2, group=(1, 2, 7)[seed % 3], dim=(24, 64)[seed % 2], spans=9, longest=200, widest=4,
        window=(None, 100)[seed // 3], weighted=seed % 2 == 0, trees=seed % 2 == 1,
    )  # fmt: skip
    expected, expected_lse = run(ReferenceKernels(), plain)
    world = with_forest(plain)
    assert world.index.forest is not None
    out, lse = poisoned(*world.q.shape, dtype=dtype), poisoned(*world.q.shape[:2], dtype=torch.float32)
    attention(world.index.forest, out=out, lse=lse, **world.arguments())
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])
    torch.testing.assert_close(lse, expected_lse, atol=1e-3, rtol=1e-3)
    attention(world.index.forest, out=out.fill_(float("nan")), **world.arguments())
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])
