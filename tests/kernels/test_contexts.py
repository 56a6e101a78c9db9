"""Attention in two parts, contexts and the rest: the kernels against a softmax written out in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.forests import Free, make_forest_world
from tests.kernels.worlds import World, naive_attention, run

from hasten.engine.attention.contexts import ContextPlanner
from hasten.kernels import ReferenceKernels

TOLERANCE = {torch.float32: dict(atol=5e-5, rtol=5e-5), torch.bfloat16: dict(atol=3e-2, rtol=3e-2)}
FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)

worlds = st.fixed_dictionaries(
    dict(
        kv_heads=st.sampled_from([1, 2]),
        group=st.sampled_from([1, 2, 7]),
        dim=st.sampled_from([8, 24, 64, 128]),
        block_size=st.sampled_from([8, 16]),
        spans=st.integers(1, 6),
        levels=st.integers(1, 3),
        longest=st.sampled_from([3, 40, 300, 700]),
        widest=st.sampled_from([1, 4, 40]),
        window=st.sampled_from([None, None, 100]),
        weighted=st.booleans(),
        trees=st.booleans(),
    )
)
temperatures, scales = st.sampled_from([0.5, 0.9, 1.0, 1.7]), st.sampled_from([0.3, 0.8, 1.0, 1.2])


def with_contexts(world: World, rng: np.random.Generator, temperature: float, scale: float, workers: int = 3) -> World:
    """The same world, some of the first runs of its views contexts, but never a span's own tokens."""
    host = world.index.on_host()
    contexts = np.zeros(world.index.spans, dtype=np.int32)
    for span in range(world.index.spans):
        runs = host.runs[host.run_offsets[span] : host.run_offsets[span + 1]]
        own = int(host.span_offsets[span + 1] - host.span_offsets[span])
        most = int(np.searchsorted(runs[:, 2].cumsum(), runs[:, 2].sum() - own, side="right"))
        # Often all that can be: then spans that read the same have the same contexts.
        contexts[span] = rng.choice([0, most, rng.integers(0, most + 1)])
        while contexts[span] and not runs[: contexts[span], 2].sum():
            contexts[span] -= 1
    index = dataclasses.replace(world.index, cache={}, forest=None, contexts=contexts)
    heads, kv_heads = world.q.shape[1], world.k_cache.shape[1]
    index.forest = ContextPlanner(Free(), heads, kv_heads, workers, temperature, scale).plan(index.on_host(), contexts)
    return dataclasses.replace(world, index=index)


def in_two_parts(world: World, temperature: float, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What it should give: ordinary attention over either part, with the other one hidden, and the two joined."""
    assert world.index.contexts is not None
    host = world.index.on_host()
    inside = []
    for span, (view, count) in enumerate(zip(world.views, world.index.contexts.tolist(), strict=True)):
        begin = host.run_offsets[span]
        entries = int(host.runs[begin : begin + count, 2].sum())
        inside.append(np.arange(len(view)) < entries)
    parts = []
    for which, sharper in ((True, 1 / temperature), (False, 1.0)):
        masks = [mask & (of == which) for mask, of in zip(world.masks, inside, strict=True)]
        parts.append(naive_attention(dataclasses.replace(world, masks=masks, scale=world.scale * sharper)))
    (out_c, lse_c), (out_o, lse_o) = parts
    weights = torch.softmax(torch.stack([torch.where(lse_c > -torch.inf, scale * lse_c, lse_c), lse_o]), 0).nan_to_num(0.0)
    lse = torch.logsumexp(torch.stack([torch.where(lse_c > -torch.inf, scale * lse_c, lse_c), lse_o]), 0)
    return weights[0, ..., None] * out_c + weights[1, ..., None] * out_o, lse


@FEW
@given(shape=worlds, seed=st.integers(0, 10**6), temperature=temperatures, scale=scales)
def test_reference_is_two_softmaxes(shape, seed, temperature, scale, dtype):
    rng = np.random.default_rng(seed)
    world = with_contexts(make_forest_world(rng, dtype, **shape), rng, temperature, scale)
    expected, expected_lse = in_two_parts(world, temperature, scale)
    out, lse = run(ReferenceKernels(), world)
    torch.testing.assert_close(out.double(), expected, **TOLERANCE[dtype])
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-4, rtol=2e-4)


@settings(FEW, max_examples=30)
@given(shape=worlds, seed=st.integers(0, 10**6), temperature=temperatures, scale=scales, workers=st.sampled_from([1, 2, 5]))
def test_native_is_the_reference(shape, seed, temperature, scale, workers, dtype, native_kernels, threads):
    threads(workers)
    rng = np.random.default_rng(seed)
    world = with_contexts(make_forest_world(rng, dtype, **shape), rng, temperature, scale, workers)
    expected, expected_lse = run(ReferenceKernels(), world)
    out, lse = run(native_kernels, dataclasses.replace(world, index=dataclasses.replace(world.index, cache={})))
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])
    torch.testing.assert_close(lse, expected_lse, atol=2e-4, rtol=2e-4)


@FEW
@given(shape=worlds, seed=st.integers(0, 10**6))
def test_neither_sharper_nor_lighter_is_one_softmax(shape, seed, dtype, kernels):
    rng = np.random.default_rng(seed)
    plain = make_forest_world(rng, dtype, **shape)
    expected, expected_lse = naive_attention(plain)
    out, lse = run(kernels, with_contexts(plain, rng, 1.0, 1.0))
    torch.testing.assert_close(out.double(), expected, **TOLERANCE[dtype])
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-4, rtol=2e-4)


def test_contexts_are_one_for_every_node(native_kernels):
    rng = np.random.default_rng(0)
    world = with_contexts(make_forest_world(rng, torch.float32), rng, 0.9, 0.9)
    forest = world.index.forest
    assert forest is not None and forest.contexts is not None and forest.contexts.any()
    for wrong in (forest.contexts[1:], forest.contexts.astype(np.int32)):
        index = dataclasses.replace(world.index, cache={}, forest=dataclasses.replace(forest, contexts=wrong))
        with pytest.raises(ValueError, match="one for every node"):
            run(native_kernels, world, index=index)
