"""Norms, activations, rotary embedding with storing, and block copies against the reference and plain formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.worlds import poisoned

from hasten.kernels import ReferenceKernels

REFERENCE = ReferenceKernels()
FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
# One rounding to bfloat16 may fall the other way, and a product of two rounded numbers then differs by two units.
TOLERANCE = {torch.float32: dict(atol=2e-6, rtol=2e-6), torch.bfloat16: dict(atol=1e-6, rtol=1.6e-2)}

widths = st.sampled_from([8, 24, 64, 72, 100, 256, 1000, 4096])


def rows_of(generator: torch.Generator, rows: int, width: int, dtype: torch.dtype, spare: int) -> torch.Tensor:
    """Random rows with a stride of width + spare."""
    return torch.randn(rows, width + spare, generator=generator).mul(3).to(dtype)[:, spare // 2 : spare // 2 + width]


@FEW
@given(rows=st.integers(0, 40), width=widths, spare=st.sampled_from([0, 6]), seed=st.integers(0, 999))
def test_rms_norm(rows, width, spare, seed, native_kernels, dtype):
    generator = torch.Generator().manual_seed(seed)
    x, weight = rows_of(generator, rows, width, dtype, spare), torch.randn(width, generator=generator).to(dtype)
    expected, out = poisoned(rows, width, dtype=dtype), poisoned(rows, width + 3, dtype=dtype)[:, :width]
    REFERENCE.rms_norm(x, weight, 1e-5, expected)
    native_kernels.rms_norm(x, weight, 1e-5, out)
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])

    delta = rows_of(generator, rows, width, dtype, spare)
    sums, again = x.clone(), x.clone()
    REFERENCE.add_rms_norm(sums, delta, weight, 1e-6, expected)
    native_kernels.add_rms_norm(again, delta, weight, 1e-6, out)
    assert torch.equal(again, sums)
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])


def test_rms_norm_of_heads_in_place(kernels, dtype):
    qkv = torch.randn(5, 9 * 40).to(dtype)
    weight = torch.randn(40).to(dtype)
    k = qkv.unflatten(1, (9, 40))[:, 4:6]
    before, expected = qkv.clone(), torch.empty(5, 2, 40, dtype=dtype)
    REFERENCE.rms_norm(k, weight, 1e-5, expected)
    kernels.rms_norm(k, weight, 1e-5, k)
    torch.testing.assert_close(k, expected, **TOLERANCE[dtype])
    untouched = torch.arange(9) // 2 != 2
    assert torch.equal(qkv.unflatten(1, (9, 40))[:, untouched], before.unflatten(1, (9, 40))[:, untouched])


@FEW
@given(rows=st.integers(0, 20), width=widths, seed=st.integers(0, 999), activation=st.sampled_from(["silu", "gelu_tanh"]))
def test_act_mul(rows, width, seed, activation, native_kernels, dtype):
    generator = torch.Generator().manual_seed(seed)
    gate_up = rows_of(generator, rows, 2 * width, dtype, 4)
    if rows:
        gate_up[0, :8] = torch.tensor([0, -0.0, 200, -200, 88, -88, 1e30, -1e30])
    expected, out = (poisoned(rows, width, dtype=dtype) for _ in range(2))
    REFERENCE.act_mul(gate_up, expected, activation)
    native_kernels.act_mul(gate_up, out, activation)
    torch.testing.assert_close(out, expected, **(TOLERANCE[dtype] | dict(atol=1e-5)))


def test_unknown_activation(kernels):
    with pytest.raises(ValueError, match="relu"):
        kernels.act_mul(torch.zeros(1, 8), torch.zeros(1, 4), "relu")


@FEW
@given(
    tokens=st.integers(0, 30),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (7, 1)]),
    dim=st.sampled_from([8, 32, 72, 80, 128]),
    share=st.sampled_from([1.0, 0.5, 0.25, 0.0]),
    seed=st.integers(0, 999),
)
def test_rope_and_store(tokens, heads, dim, share, seed, native_kernels, dtype):
    generator = torch.Generator().manual_seed(seed)
    q_heads, kv_heads = heads
    half, blocks, block_size = int(dim * share) // 2, 6, 8
    qkv = torch.randn(tokens, q_heads + 2 * kv_heads, dim, generator=generator).to(dtype)
    angles = torch.rand(50, half, generator=generator) * 6
    cos_sin = torch.stack([angles.cos(), angles.sin()], 1)
    positions = torch.randint(0, 50, (tokens,), generator=generator, dtype=torch.int32)
    slots = torch.randperm(blocks * block_size, generator=generator)[:tokens].clone()
    slots[::4] = -1
    results = []
    for kernels in (REFERENCE, native_kernels):
        row = qkv.clone()
        q, k, v = row.split([q_heads, kv_heads, kv_heads], 1)
        caches = [torch.full((blocks, kv_heads, block_size, dim), 7.0, dtype=dtype) for _ in range(2)]
        kernels.rope_and_store(q, k, v, cos_sin, positions, slots, *caches)
        assert torch.equal(row[:, q_heads:], qkv[:, q_heads:])  # k and v stay as they were
        results.append((row, *caches))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE[dtype])
    row, k_cache, v_cache = results[0]
    for token in range(tokens):  # the reference itself, as rotations of complex numbers
        turn = torch.complex(*cos_sin[positions[token].long()])
        for head in range(q_heads):
            pairs = torch.complex(*qkv[token, head, : 2 * half].float().unflatten(0, (2, half))) * turn
            turned = torch.cat([pairs.real, pairs.imag, qkv[token, head, 2 * half :].float()])
            torch.testing.assert_close(row[token, head].float(), turned, **TOLERANCE[dtype])
        if slots[token] >= 0:
            assert torch.equal(v_cache[slots[token] // 8, :, slots[token] % 8], qkv[token, q_heads + kv_heads :])
    assert (k_cache == 7).all(-1).any(1).sum() == blocks * block_size - (slots >= 0).sum() or half == 0


def test_rope_and_store_out_of_range(kernels):
    cache, row = torch.zeros(2, 1, 8, 16), torch.ones(2, 3, 16)
    q, k, v = row.split(1, 1)
    table = torch.ones(4, 2, 8)
    good, slots = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0, 15])
    with pytest.raises(IndexError, match="positions"):
        kernels.rope_and_store(q, k, v, table, torch.tensor([0, 4], dtype=torch.int32), slots, cache, cache.clone())
    with pytest.raises(IndexError, match="slots"):
        kernels.rope_and_store(q, k, v, table, good, torch.tensor([0, 16]), cache, cache.clone())
    assert (row == 1).all() and (cache == 0).all()
    kernels.rope_and_store(q, k, v, table, good, slots, cache, cache.clone())
    assert cache[0, 0, 0].any() and cache[1, 0, 7].any()


def test_copy_blocks(kernels, dtype):
    cache = torch.randn(9, 2, 8, 16).to(dtype)
    expected = cache.clone()
    expected[5], expected[0], expected[8] = cache[2], cache[2], cache[3]
    kernels.copy_blocks(cache, torch.tensor([2, 2, 3]), torch.tensor([5, 0, 8]))
    assert torch.equal(cache, expected)
    kernels.copy_blocks(cache, torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    with pytest.raises(IndexError):
        kernels.copy_blocks(cache, torch.tensor([9]), torch.tensor([0]))
    assert torch.equal(cache, expected)


def test_refuses_other_dtypes(native_kernels):
    x, weight = torch.zeros(2, 8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    with pytest.raises(ValueError, match="rms_norm"):
        native_kernels.rms_norm(x, weight, 1e-5, x)
    with pytest.raises(ValueError, match="add_rms_norm"):
        native_kernels.add_rms_norm(x, x, weight, 1e-5, x)
    with pytest.raises(ValueError, match="act_mul"):
        native_kernels.act_mul(x, x[:, :4])
    with pytest.raises(ValueError, match="linear"):
        native_kernels.linear(x, x, None, x[:, :2])
