"""The batch-invariant linear layer: right, and the same bits in any batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.worlds import poisoned


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    rows=st.sampled_from([0, 1, 2, 3, 4, 5, 7, 64, 66, 131]),
    inner=st.sampled_from([1, 8, 17, 32, 96, 200, 1031]),
    outputs=st.sampled_from([1, 5, 8, 24, 70, 257]),
    spare=st.sampled_from([0, 5]),
    biased=st.booleans(),
    seed=st.integers(0, 999),
)
def test_is_a_linear_layer(rows, inner, outputs, spare, biased, seed, kernels, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inner + spare, generator=generator).to(dtype)[:, :inner]
    w = torch.randn(outputs, inner + spare, generator=generator).to(dtype)[:, spare:]
    bias = torch.randn(outputs, generator=generator).to(dtype) if biased else None
    out = poisoned(rows, outputs + spare, dtype=dtype)[:, :outputs]
    kernels.linear(x, w, bias, out)
    expected = F.linear(x.double(), w.double(), None if bias is None else bias.double())
    size = inner**0.5
    tolerance = dict(atol=2e-6 * size, rtol=1e-5) if dtype == torch.float32 else dict(atol=2e-3 * size, rtol=1e-2)
    torch.testing.assert_close(out.double(), expected, **tolerance)


@pytest.mark.parametrize("inner", [96, 1000])
def test_bits_do_not_depend_on_the_batch(kernels, dtype, inner, threads):
    rows, outputs = 75, 131
    x, w, bias = torch.randn(rows, inner).to(dtype), torch.randn(outputs, inner).to(dtype), torch.randn(outputs).to(dtype)
    whole = poisoned(rows, outputs, dtype=dtype)
    kernels.linear(x, w, bias, whole)
    for count in (1, 3):
        threads(count if kernels.name != "reference" else 2)  # torch's own products may follow the thread count
        for first, end in ((0, 1), (3, 5), (4, 7), (1, 5), (6, 11), (9, 75), (74, 75)):
            out = poisoned(end - first, outputs, dtype=dtype)
            kernels.linear(x[first:end], w, bias, out)
            assert torch.equal(out, whole[first:end]), (first, end)
