"""Masks of legal tokens, applied to logits in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


def words_of(legal: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """bool [n, V] as a mask whose bits beyond the vocabulary are anything."""
    tail = rng.random((len(legal), -legal.shape[1] % 32)) < 0.5
    return torch.from_numpy(np.packbits(np.concatenate([legal, tail], 1), axis=1, bitorder="little").view(np.int32))


@FEW
@given(
    vocabulary=st.sampled_from([1, 31, 32, 33, 64, 100, 1000, 4099]),
    count=st.integers(0, 5),
    share=st.sampled_from([0.0, 0.001, 0.5, 0.999, 1.0]),
    padding=st.sampled_from([0, 1, 40]),
    seed=st.integers(0, 9999),
)
def test_what_is_not_legal_becomes_impossible(vocabulary, count, share, padding, seed, kernels, dtype):
    rng = np.random.default_rng(seed)
    # Odd bits, to be kept as they are: numbers too small to be normal, NaN with a payload, negative zero.
    pattern = torch.from_numpy(rng.integers(-(2**15), 2**15, (6, vocabulary + padding, 4 if dtype is torch.float32 else 2)))
    logits = pattern.to(torch.int8).contiguous().view(dtype)[..., 0].contiguous()
    kept = logits.clone()
    rows = rng.permutation(6)[:count]
    legal = rng.random((count, vocabulary)) < share
    legal[:, :32] |= rng.random((count, 1)) < 0.3  # whole words too
    kernels.apply_mask(logits[:, :vocabulary], words_of(legal, rng), torch.from_numpy(rows))
    bits = torch.int32 if dtype is torch.float32 else torch.int16
    want = kept.clone()
    for row, allowed in zip(rows, legal, strict=True):
        want[row, :vocabulary][torch.from_numpy(~allowed)] = -torch.inf
    assert torch.equal(logits.view(bits), want.view(bits)), "padding and other rows stay too"


def test_many_rows_on_many_threads(native_kernels, dtype, threads):
    threads(2)
    rng = np.random.default_rng(0)
    logits = torch.randn(40, 151_936).to(dtype)
    want = logits.clone()
    legal = rng.random((40, 151_936)) < 0.01
    rows = torch.from_numpy(rng.permutation(40))
    want[rows] = want[rows].masked_fill(torch.from_numpy(~legal), -torch.inf)
    native_kernels.apply_mask(logits, words_of(legal, rng), rows)
    assert torch.equal(logits, want)


def test_wrong_arguments(kernels):
    logits, mask, rows = torch.zeros(3, 64), torch.zeros(2, 2, dtype=torch.int32), torch.tensor([0, 3])
    with pytest.raises(IndexError):
        kernels.apply_mask(logits, mask, rows)
    with pytest.raises(IndexError):
        kernels.apply_mask(logits, mask, torch.tensor([-1, 0]))
    assert not logits.any()


def test_wrong_shapes(native_kernels):
    logits, mask, rows = torch.zeros(3, 64), torch.zeros(2, 2, dtype=torch.int32), torch.tensor([0, 1])
    for bad in (
        (logits.T, mask, rows),
        (logits.double(), mask, rows),
        (logits, mask.long(), rows),
        (logits, mask[:, :1], rows),
        (logits, mask, rows[:1]),
        (logits, mask, rows.int()),
    ):
        with pytest.raises(ValueError, match="apply_mask needs"):
            native_kernels.apply_mask(*bad)
