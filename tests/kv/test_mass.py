"""Attention mass: what the paged kernels' norms say is what a dense softmax says, however the step is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine import tiny
from tests.kv.test_chunks_real import Masked, requests
from torch import Tensor

from hasten import kernels
from hasten.engine.attention.mass import mass, parts_of
from hasten.engine.executors.step import Site, Step
from hasten.engine.kv.variants import Measure
from hasten.engine.kv.view import View
from hasten.engine.request import Request
from hasten.kernels import Kernels, ReferenceKernels
from hasten.kernels.reference import _rotate

SIZE = 8
KERNELS: dict[str, Kernels] = {"reference": ReferenceKernels(), "cpu": kernels.load("cpu")}


def dense(q: Tensor, keys: Tensor, tokens: np.ndarray, ranges: Any, scale: float) -> Tensor:
    """Float64 [m, ranges] from q [m, heads, D] and keys [length, kv heads, D]; row r sees keys up to tokens[r]."""
    keys = keys.repeat_interleave(q.shape[1] // keys.shape[1], 1).double()
    scores = torch.einsum("mhd,lhd->mhl", q.double(), keys) * scale
    hidden = torch.arange(len(keys)) > torch.from_numpy(tokens)[:, None]
    shares = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1).mean(1)
    return torch.stack([shares[:, start:stop].sum(-1) for start, stop in ranges], 1)


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=5),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    scale=st.sampled_from([0.1, 2.0]),
    first=st.integers(0, 40),
)
def test_the_mass_is_that_of_a_dense_softmax(
    name: str, seed: int, sizes: list[tuple[int, int]], heads: tuple[int, int], scale: float, first: int
) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    ranges, at = [], 0
    for gap, size in sizes:
        ranges.append((at + gap, at + gap + size))
        at += gap + size
    length = at + int(rng.integers(0, 5))
    view = View()
    blocks = rng.permutation(64)
    for i, start in enumerate(range(0, length, SIZE)):
        view.add_run(int(blocks[i]), 0, min(SIZE, length - start), first + start)
    q_heads, kv_heads = heads
    keys = torch.randn(length, kv_heads, 16)
    cache = torch.full((64, kv_heads, SIZE, 16), torch.nan)
    slots = torch.from_numpy(view.slots(np.arange(length), SIZE))
    cache[slots // SIZE, :, slots % SIZE] = keys
    values = torch.zeros_like(cache)
    last = int(rng.integers(1, len(ranges) + 1))
    tokens = np.concatenate([np.arange(start, stop, dtype=np.int32) for start, stop in ranges[:last]])
    tokens = np.sort(rng.permutation(tokens)[: rng.integers(1, len(tokens) + 1)])
    wanted = tuple(one for one in ranges if one[0] <= tokens[-1])
    q = torch.randn(len(tokens), q_heads, 16)
    measure = Measure(np.arange(len(tokens), dtype=np.int32), tokens, wanted)
    parts = parts_of(measure, (tokens + first).astype(np.int32), view, torch.device("cpu"))
    got = mass(KERNELS[name], q, cache, values, parts, len(wanted), scale)
    assert got.dtype == torch.float32
    assert (got - dense(q, keys, tokens, wanted, scale)).abs().max() <= 1e-5


class Dense(Masked):
    """Plain attention over the tokens of one step; writes down the mass of every row on `ranges`: of each layer [T, ranges]."""

    def __init__(self, length: int, ranges: Any) -> None:
        super().__init__(torch.ones(length, length, dtype=torch.bool).tril())
        self.ranges, self.layers = ranges, []  # type: ignore[var-annotated]

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        if len(q) == len(self.mask):
            table = site.cos_sin[step.index.positions.long()][:, None]
            tokens = np.arange(len(q))
            self.layers.append(dense(_rotate(q, table), _rotate(k, table), tokens, self.ranges, site.scale))
        return super().attend(site, q, k, v, step)


@pytest.mark.parametrize("budget", [512, 19])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_engine_notes_what_its_layers_attend_to(tmp_path: Path, budget: int, dtype: str) -> None:
    """Whole prompts and prompts in many steps; steps of at most 64 rows would else be recorded ones, which measure nothing."""
    path = tiny.folder(tmp_path)
    for one in (one for one in requests(max_tokens=1) if one.chunks and one.sampling.n == 1):
        built = tiny.engine(
            path, with_=("cache-craft:variants=9", f"stall-free:chunk={budget}"), kv__block_size=16,
            scheduling__max_tokens=budget, model__dtype=dtype,
        )  # fmt: skip
        tiny.run(built, [one])
        other = tiny.engine(path, kv__reuse=None, executor__native=False)
        witness = Dense(len(one.prompt), one.chunks)
        other.parts.executor._attention = witness  # type: ignore[union-attr]
        tiny.run(other, [Request(id="x", prompt=one.prompt, sampling=one.sampling)])
        assert len(witness.layers) == 2
        means = torch.stack(witness.layers).mean(0)
        linker = built.engine.ledger.linker
        assert linker is not None
        kept = {(len(c.notes.front), len(c.notes.scores)): c.notes for c in linker.store if c.notes is not None}
        assert len(kept) == len(one.chunks)
        for number, (start, stop) in enumerate(one.chunks):
            notes, want = kept[(number, stop - start)], means[start:stop, : number + 1].numpy()
            tolerance = 1e-4 if dtype == "float32" else 0.05
            assert np.abs(notes.scores - want[:, :-1].sum(1)).max(initial=0) <= tolerance
            assert np.abs(notes.inter - want[:, :-1].sum(0)).max(initial=0) <= tolerance * (stop - start)
            assert 0.5 <= notes.cci < 1


class Shallow:
    """Request b runs through the first block only, so a step of both is two passes."""

    def sites(self, blocks: int) -> int:
        return blocks

    def program(self, sequence: Any, blocks: int) -> Any:
        return FULL[:1] if sequence.request.id == "b" else FULL


FULL = ((0, 0), (1, 1))


def test_spans_of_unlike_depth_programs_get_their_own(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path)
    asked = [one for one in requests(max_tokens=1) if one.id in ("a", "b")]

    def notes(*groups: list[Request]) -> dict[Any, Any]:
        built = tiny.engine(path, with_=("cache-craft:variants=9",), kv__block_size=16)
        built.parts.executor._depth = Shallow()  # type: ignore[union-attr]
        for group in groups:
            tiny.run(built, group)
        linker = built.engine.ledger.linker
        assert linker is not None
        return {(c.name, c.notes.front): c.notes for c in linker.store if c.notes is not None}

    together = notes(asked)
    alone = {**notes(asked[:1]), **notes(asked[1:])}
    assert together.keys() == alone.keys() and len(alone) == 4
    for key, one in alone.items():
        assert np.abs(together[key].scores - one.scores).max() <= 1e-5 and together[key].cci == pytest.approx(one.cci)
