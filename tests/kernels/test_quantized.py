"""Weights of 8 and 4 bits: levels, panels and products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.worlds import poisoned

from hasten.kernels.cpu.packing import packed
from hasten.kernels.quantized import QuantizedWeight, round_activations, round_to_nearest

FORMATS = [(8, 128, True), (8, 32, True), (8, 64, False), (4, 32, True), (4, 64, False), (4, 128, True), (4, 128, False)]
FORMAT_NAMES = [f"{bits} bits, groups of {group}{'' if symmetric else ', zero points'}" for bits, group, symmetric in FORMATS]


def same(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    zeros = (one.zeros is None and other.zeros is None) or torch.equal(one.zeros, other.zeros)
    rest = (one.unit, one.bits, one.group) == (other.unit, other.bits, other.group)
    return zeros and rest and torch.equal(one.levels, other.levels) and torch.equal(one.scales, other.scales)


@pytest.mark.parametrize(("bits", "group", "symmetric"), FORMATS, ids=FORMAT_NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (64, 128), (70, 200), (131, 33)])
def test_rounding_is_off_by_a_level_at_most_and_mostly_by_less_than_half(bits, group, symmetric, shape):
    torch.manual_seed(0)
    for weight in (torch.randn(shape), 1e-6 * torch.randn(shape), 3 + 0.1 * torch.randn(shape), torch.zeros(shape)):
        rounded = round_to_nearest(weight, bits, group, symmetric=symmetric)
        assert int(rounded.levels.max()) < 2**bits
        step = (rounded.scales.float().abs() * rounded.unit).repeat_interleave(group, 1)[:, : shape[1]]
        off = (rounded.dense() - weight).abs()
        assert (off <= 1.1 * step + 1e-12).all()  # at the ends, which the range may just miss
        assert (off <= 0.505 * step + 1e-12).float().mean() > 0.9


@pytest.mark.parametrize(("bits", "group", "symmetric"), FORMATS, ids=FORMAT_NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (64, 128), (70, 200), (200, 1031)])
def test_panels_hold_the_weight(bits, group, symmetric, shape):
    torch.manual_seed(1)
    weight = round_to_nearest(torch.randn(shape), bits, group, symmetric=symmetric)
    assert same(packed(weight).unpacked(), weight)


@pytest.mark.parametrize(("bits", "group", "symmetric"), FORMATS, ids=FORMAT_NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (64, 128), (70, 200), (200, 1031)])
def test_chosen_rows_have_the_values_of_the_whole(bits, group, symmetric, shape, kernels, dtype):
    torch.manual_seed(1)
    weight = round_to_nearest(torch.randn(shape), bits, group, symmetric=symmetric)
    held = kernels.pack(weight)
    last = shape[0] - 1
    for chosen in ([], [last], [last, 0, last // 2, last], list(range(shape[0]))):
        ids = torch.tensor(chosen, dtype=torch.int64)
        out = poisoned(len(ids), shape[1] + 3, dtype=dtype)[:, : shape[1]]
        kernels.quantized_rows(held, ids, out)
        assert torch.equal(out, weight.dense(dtype)[ids])
        assert torch.equal(weight.select(ids).dense(), weight.dense()[ids])
    for wrong in (-1 if kernels.name != "reference" else shape[0], shape[0]):
        with pytest.raises(IndexError):
            kernels.quantized_rows(held, torch.tensor([0, wrong]), poisoned(2, shape[1], dtype=dtype))
    with pytest.raises((ValueError, RuntimeError)):
        kernels.quantized_rows(held, torch.tensor([0, 0]), poisoned(3, shape[1], dtype=dtype))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    rows=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 13, 66, 200]),
    inner=st.sampled_from([1, 8, 33, 96, 200, 1031]),
    outputs=st.sampled_from([1, 5, 24, 70, 257]),
    form=st.sampled_from(FORMATS),
    spare=st.sampled_from([0, 5]),
    biased=st.booleans(),
    seed=st.integers(0, 999),
)
def test_product_of_rounded_activations_and_levels(rows, inner, outputs, form, spare, biased, seed, kernels, dtype):
    bits, group, symmetric = form
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inner + spare, generator=generator).mul_(3).to(dtype)[:, :inner]
    weight = round_to_nearest(torch.randn(outputs, inner, generator=generator), bits, group, symmetric=symmetric)
    bias = torch.randn(outputs, generator=generator).to(dtype) if biased else None
    out = poisoned(rows, outputs + spare, dtype=dtype)[:, :outputs]
    kernels.quantized_linear(x, kernels.pack(weight), bias, out)
    whole, scales = round_activations(x, group)
    expected = (whole.double() * scales.double()[..., None]).flatten(1)[:, :inner] @ weight.dense(torch.float64).T
    expected = expected if bias is None else expected + bias.double()
    size = 3 * inner**0.5
    tolerance = dict(atol=3e-6 * size, rtol=1e-5) if dtype == torch.float32 else dict(atol=2e-3 * size, rtol=1e-2)
    torch.testing.assert_close(out.double(), expected, **tolerance)


@pytest.mark.parametrize(("bits", "group", "symmetric"), FORMATS, ids=FORMAT_NAMES)
def test_bits_do_not_depend_on_the_batch(kernels, dtype, bits, group, symmetric, threads):
    torch.manual_seed(2)
    x, bias = torch.randn(201, 300).to(dtype), torch.randn(131).to(dtype)
    weight = kernels.pack(round_to_nearest(torch.randn(131, 300), bits, group, symmetric=symmetric))
    whole = poisoned(201, 131, dtype=dtype)
    kernels.quantized_linear(x, weight, bias, whole)
    for count in (1, 3):
        threads(count if kernels.name != "reference" else 2)
        for first, end in ((0, 1), (3, 5), (4, 7), (1, 5), (6, 11), (9, 201), (200, 201)):
            out = poisoned(end - first, 131, dtype=dtype)
            kernels.quantized_linear(x[first:end], weight, bias, out)
            assert torch.equal(out, whole[first:end]), (first, end)


def test_levels_at_the_ends_of_their_range(native_kernels):
    """The largest products: nothing saturates on the way."""
    for bits in (4, 8):
        for level in (0, 2**bits - 1):
            levels = torch.full((64, 512), level, dtype=torch.uint8)
            for zero in (0, 2**bits - 1):
                zeros = torch.full((64, 4), zero, dtype=torch.uint8)
                weight = QuantizedWeight(levels, torch.ones(64, 4, dtype=torch.float16), zeros, 1.0, bits, 128)
                for value in (127.0, -127.0):
                    out = poisoned(2, 64, dtype=torch.float32)
                    native_kernels.quantized_linear(torch.full((2, 512), value), native_kernels.pack(weight), None, out)
                    assert (out == 512 * (level - zero) * value).all()


def test_wrong_arguments_are_refused(native_kernels):
    weight = native_kernels.pack(round_to_nearest(torch.randn(10, 40), 8, 32))
    for x, bias, out in (
        (torch.zeros(2, 41), None, torch.zeros(2, 10)),
        (torch.zeros(2, 40), None, torch.zeros(2, 11)),
        (torch.zeros(2, 40), torch.zeros(9), torch.zeros(2, 10)),
        (torch.zeros(2, 40).bfloat16(), None, torch.zeros(2, 10)),
    ):
        with pytest.raises(ValueError, match="quantized_linear needs"):
            native_kernels.quantized_linear(x, weight, bias, out)
    with pytest.raises(ValueError, match="4 or 8 bits"):
        round_to_nearest(torch.randn(10, 40), 5, 32)
