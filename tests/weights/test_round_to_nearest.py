"""Round to nearest: the values, what is left alone, and bad knobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine import tiny
from torch import Tensor

from hasten.engine.executors.step import Linear
from hasten.engine.technique import ConfigError
from hasten.engine.weights.round_to_nearest import rounded


def weight(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def naive(values: np.ndarray, bits: int, group: int) -> np.ndarray:
    out = np.empty_like(values)
    for row, line in enumerate(values):
        for at in range(0, len(line), group):
            part = line[at : at + group].astype(np.float64)
            levels = np.linspace(part.min(), part.max(), 2**bits)
            out[row, at : at + group] = [levels[np.abs(levels - value).argmin()] for value in part]
    return out


shapes = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(0, 1000))


@settings(max_examples=60)
@given(shapes, st.integers(2, 8), st.integers(1, 20))
def test_values_are_the_nearest_levels(shape: tuple[int, int, int], bits: int, group: int) -> None:
    before = weight(*shape)
    after = rounded(before, bits, group)
    np.testing.assert_allclose(after.numpy(), naive(before.numpy(), bits, group), rtol=1e-6, atol=1e-7)


@settings(max_examples=60)
@given(shapes, st.integers(2, 8), st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16]))
def test_errors_stay_within_half_a_step_and_rounding_twice_changes_nothing(
    shape: tuple[int, int, int], bits: int, group: int, dtype: torch.dtype
) -> None:
    before = weight(*shape, dtype=dtype)
    after = rounded(before, bits, group)
    assert after.dtype == dtype and after.shape == before.shape and after.is_contiguous()
    for at in range(0, before.shape[1], group):
        old, new = before[:, at : at + group].double(), after[:, at : at + group].double()
        low, high = old.amin(1, keepdim=True), old.amax(1, keepdim=True)
        dust = torch.finfo(dtype).eps * old.abs().amax(1, keepdim=True)
        assert ((new - old).abs() <= (high - low) / (2**bits - 1) / 2 + dust).all()
        assert all(len(row.unique()) <= 2**bits for row in new)
    assert torch.equal(rounded(after, bits, group), after)


def test_more_bits_are_closer_and_eight_are_close() -> None:
    before = weight(64, 256)
    errors = [float((rounded(before, bits, 64) - before).square().mean().sqrt()) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.3 and errors[-1] < 0.01, "of a standard deviation of 1"
    finer = float((rounded(before, 2, 8) - before).square().mean().sqrt())
    assert finer < errors[0]


def test_equal_weights_and_the_given_tensor_stay_as_they_are() -> None:
    same = torch.full((2, 70), 0.3)
    assert torch.equal(rounded(same, 2, 64), same)
    before = weight(3, 70)
    copy = before.clone()
    rounded(before, 2, 64)
    assert torch.equal(before, copy)


def dense(built: tiny.Built) -> tuple[list[Tensor], Tensor, Tensor]:
    model = built.parts.model
    layers = [op.store.dense() for block in model.blocks for op in block.ops if isinstance(op, Linear)]
    return layers, model.head.dense(), model.embedding.weight


@pytest.mark.parametrize("tied", [False, True])
def test_every_layer_is_rounded_but_not_embedding_and_head(tmp_path: Path, tied: bool) -> None:
    path = tiny.folder(tmp_path, tie_word_embeddings=tied)
    layers, head, embedding = dense(tiny.engine(path))
    for knob, head_bits in (("", None), (":head=true", 2)):
        new_layers, new_head, new_embedding = dense(tiny.engine(path, with_=(f"round-to-nearest{knob}",)))
        assert torch.equal(new_embedding, embedding)
        assert torch.equal(new_head, head if head_bits is None else rounded(head, head_bits, 64))
        for old, new in zip(layers, new_layers, strict=True):
            assert torch.equal(new, rounded(old, 2, 64)) and not torch.equal(new, old)


def test_the_engine_answers_with_the_rounded_weights(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path)
    prompts = [np.random.default_rng(i).integers(1, 256, 20 + i).tolist() for i in range(3)]

    def answers(*with_: str) -> list[list[int]]:
        built = tiny.engine(path, with_=with_)
        sampling = tiny.SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        got = tiny.run(built, [tiny.Request(id=str(i), prompt=np.array(p), sampling=sampling) for i, p in enumerate(prompts)])
        return [tiny.tokens(got[(str(i), 0)]) for i in range(3)]

    assert answers("round-to-nearest") != answers()
    tiny.assert_exact(
        tiny.engine(path, with_=("round-to-nearest:bits=3",)),
        tiny.engine(path, with_=("round-to-nearest:bits=3", "stall-free:chunk=7"), scheduling__max_tokens=20),
        prompts,
        12,
    )


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ("bits=1", "bits must be 2 to 8, got 1"),
        ("bits=9", "bits must be 2 to 8, got 9"),
        ("group=0", "group must be at least 1"),
        ("bits=two", "bits"),
    ],
)
def test_bad_knobs_are_refused(tmp_path: Path, knobs: str, said: Any) -> None:
    with pytest.raises(ConfigError, match=f"round-to-nearest: {said}"):
        tiny.engine(tiny.folder(tmp_path), with_=(f"round-to-nearest:{knobs}",))
