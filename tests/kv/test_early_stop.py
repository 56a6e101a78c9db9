"""Mending that ends before the last layer, against a dense computation that is told nothing but the tokens that are mended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.engine import tiny
from tests.kv.marked import marked
from tests.kv.test_chunks_real import close, first_token, spoil
from torch import Tensor

from hasten.engine.attention.base import StatelessAttention
from hasten.engine.attention.mass import Watched
from hasten.engine.context_linking import ContextLinker
from hasten.engine.executors.step import Site, Step
from hasten.engine.kv.cache_craft import CacheCraft, Options
from hasten.engine.kv.variants import Measure, Mending
from hasten.engine.links import Piece
from hasten.engine.request import Request
from hasten.engine.sequence import Sequence
from hasten.kernels.reference import _rotate

LAYERS = 5
GREEDY: dict[str, Any] = {"max_tokens": 3, "temperature": 0.0, "logprobs": 20, "ignore_eos": True}
RNG = np.random.default_rng(11)
DOCUMENTS = [RNG.integers(1, 256, size).tolist() for size in (40, 16, 7, 61, 33, 25)]


def text(rng: np.random.Generator, least: int, most: int) -> list[int]:
    return rng.integers(1, 256, int(rng.integers(least, most + 1))).tolist()


def request(id: str, rng: np.random.Generator, documents: list[int], **sampling: Any) -> Request:
    """`documents` in this order, text of a few tokens before, between and behind them."""
    pieces: list[int | list[int]] = [text(rng, 1, 9)]
    for number in documents:
        pieces += [number, text(rng, 0, 3)]
    pieces[-1] = text(rng, 1, 12)
    return marked(id, DOCUMENTS, *pieces, **{**GREEDY, "max_tokens": 1, **sampling})


def folder(where: Path) -> str:
    return tiny.folder(where, num_hidden_layers=LAYERS)


def engine(path: str, options: str, **settings: Any) -> tiny.Built:
    chosen = {"kv__reuse": None, "kv__block_size": 16, "scheduling__max_tokens": 512, **settings}
    return sharpen(tiny.engine(path, with_=(f"cache-craft:variants=1{options}", "stall-free:chunk=512"), **chosen))


def sharpen(built: tiny.Built) -> tiny.Built:
    """Random weights attend to all alike; so they do not."""
    for site in built.parts.model.sites:
        site.scale *= 20
    return built


def linker_of(built: tiny.Built) -> ContextLinker:
    linker = built.engine.ledger.linker
    assert isinstance(linker, ContextLinker)
    return linker


# -- the reference --------------------------------------------------------------------------------------------------------


@dataclass
class Dense(StatelessAttention):
    """Causal attention over a whole prompt, in which KV of tokens comes from elsewhere. `anew` bool [T]: tokens that are
    computed at first; `held`: of the others and of those that stop, by layer, keys and values; `chunks` [start, stop)."""

    anew: np.ndarray
    held: list[tuple[Tensor, Tensor]]
    chunks: list[tuple[int, int]]
    mended: list[bool]
    window: int
    share: float
    kv: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """By layer, keys not rotated."""
    keys: list[Tensor] = field(default_factory=list)
    skipped: int = 0
    ranks: list[list[bool]] = field(default_factory=list)

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        layer, computed = len(self.kv), torch.from_numpy(self.anew)[:, None, None]
        k, v = torch.where(computed, k, self.held[layer][0]), torch.where(computed, v, self.held[layer][1])
        self.kv.append((k, v))
        table = site.cos_sin[: len(q), None]
        queries, keys = _rotate(q, table).double(), _rotate(k, table).double()
        self.keys.append(keys)
        group = site.heads // site.kv_heads
        scores = torch.einsum("qhd,khd->hqk", queries, keys.repeat_interleave(group, 1)) * site.scale
        shares = scores.masked_fill(~torch.ones(len(q), len(q), dtype=torch.bool).tril(), -torch.inf).softmax(-1)
        self.rank(shares)
        return torch.einsum("hqk,khd->qhd", shares, v.repeat_interleave(group, 1).double()).float().flatten(1)

    def rank(self, shares: Tensor) -> None:
        """Who goes on, by what the tokens behind the last chunk look at."""
        question = shares[:, self.chunks[-1][1] :].mean((0, 1))
        mass = [float(question[start:stop].sum()) for start, stop in self.chunks]
        low, held = [False] * len(mass), 0.0
        for number in sorted(range(len(mass)), key=lambda n: mass[n]):
            held += mass[number]
            low[number] = held <= self.share * sum(mass) * (1 + 1e-12)
        self.ranks.append(low)
        for number, (start, stop) in enumerate(self.chunks):
            if self.mended[number] and len(self.ranks) >= self.window and all(r[number] for r in self.ranks[-self.window :]):
                self.skipped += int(self.anew[start:stop].sum()) * (LAYERS - len(self.ranks))
                self.anew[start:stop] = False


class Reference:
    """A plain engine that is told, prompt by prompt, which tokens of which chunks are mended; what chunks hold it knows from
    the prompt in which they were computed."""

    def __init__(self, path: str, window: int, share: float) -> None:
        self._built = sharpen(tiny.engine(path, kv__reuse=None, executor__native=False))
        self._window, self._share = window, share
        self._known: dict[bytes, list[tuple[Tensor, Tensor]]] = {}

    def run(self, one: Request, anew: np.ndarray) -> tuple[dict[int, float], Dense]:
        names = [one.prompt[start:stop].tobytes() for start, stop in one.chunks]
        shape = (len(one.prompt), 2, 16)
        held = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(LAYERS)]
        for name, (start, stop) in zip(names, one.chunks, strict=True):
            for layer, (keys, values) in enumerate(self._known.get(name, [])):
                held[layer][0][start:stop], held[layer][1][start:stop] = keys, values
        # One of which all would be computed again is computed as if it were new, and kept instead of what was.
        mended = [name in self._known and not anew[a:b].all() for name, (a, b) in zip(names, one.chunks, strict=True)]
        dense = Dense(anew.copy(), held, list(one.chunks), mended, self._window, self._share)
        self._built.parts.executor._attention = dense  # type: ignore[union-attr]
        top = first_token(self._built, Request(id=one.id, prompt=one.prompt, sampling=one.sampling))
        for name, (start, stop), linked in zip(names, one.chunks, mended, strict=True):
            if not linked:
                self._known[name] = [(keys[start:stop].clone(), values[start:stop].clone()) for keys, values in dense.kv]
        return top, dense


@dataclass
class Seen:
    """Of the last prompt: the tokens that were to be computed, and what its slots held when it was done, by layer."""

    anew: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


def watch(built: tiny.Built) -> Seen:
    seen, linker, executor = Seen(), linker_of(built), built.parts.executor
    assert executor is not None
    opened, submit = linker.open, executor.submit
    at_last: list[Sequence] = []

    def open(seq: Sequence) -> int:
        reused = opened(seq)
        seen.anew = np.zeros(seq.length, dtype=bool)
        for start, stop in seq.todo:
            seen.anew[start:stop] = True
        at_last[:] = [seq]
        return reused

    def run(*asked: Any) -> Any:
        handle = submit(*asked)
        view, size = at_last[0].view, built.parts.memory.block_size
        slots = torch.from_numpy(view.slots(np.arange(view.length), size))
        sites = built.parts.model.sites
        seen.keys = [site.k[slots // size, :, slots % size] for site in sites]
        seen.values = [site.v[slots // size, :, slots % size] for site in sites]
        return handle

    linker.open = open  # type: ignore[method-assign]
    executor.submit = run  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("share", [0.25, 0.6, 1.0])
def test_mending_ends_where_a_dense_computation_says(tmp_path: Path, window: int, share: float) -> None:
    path = folder(tmp_path)
    skipped = some = 0
    for seed in range(2):
        rng = np.random.default_rng(100 * seed + window)
        built = spoil(engine(path, f":share={rng.choice([0.3, 0.6, 0.9])}:stop_after={window}:stop_share={share}"))
        seen, reference, before = watch(built), Reference(path, window, share), 0
        for number in range(4):
            documents = rng.permutation(len(DOCUMENTS))[: rng.integers(2, 6)].tolist()
            one = request(f"r{number}", rng, documents)
            got = first_token(built, one)
            want, dense = reference.run(one, seen.anew)
            assert built.engine.skipped - before == dense.skipped
            before = built.engine.skipped
            assert close(got, want, 1e-3)
            for layer in range(LAYERS):
                assert (seen.keys[layer] - dense.keys[layer]).abs().max() <= 1e-4
                assert (seen.values[layer] - dense.kv[layer][1]).abs().max() <= 1e-4
            low = np.array(dense.ranks)
            some += bool(dense.skipped and not low.all())
        skipped += before
    assert skipped and (some or share == 1.0), "the test should see rows leave, and others stay"
    assert built.engine.stats()["row_layers_skipped_total"] == before


def orders(rng: np.random.Generator, count: int, **sampling: Any) -> list[Request]:
    return [request(f"r{i}", rng, rng.permutation(len(DOCUMENTS))[:4].tolist(), **sampling) for i in range(count)]


def exact(built: tiny.Built, asked: list[Request]) -> list[Any]:
    return [[(d.tokens, d.logprobs) for d in deltas] for one in asked for deltas in tiny.run(built, [one]).values()]


def test_a_window_that_no_model_fills_changes_nothing_to_the_bit(tmp_path: Path) -> None:
    path, asked = folder(tmp_path), orders(np.random.default_rng(0), 6, max_tokens=5)
    off = engine(path, ":share=0.5")
    want = exact(off, asked)
    built = spoil(engine(path, f":share=0.5:stop_after={LAYERS + 1}:stop_share=1"))
    assert exact(built, asked) == want
    # In the last layer rows may leave once they have stored what they are: nobody reads what they would give.
    last = spoil(engine(path, f":share=0.5:stop_after={LAYERS}:stop_share=1"))
    for mine, theirs in zip(exact(last, asked), want, strict=True):
        assert [tokens for tokens, _ in mine] == [tokens for tokens, _ in theirs]
    assert built.engine.skipped == last.engine.skipped == off.engine.skipped == 0
    assert linker_of(built).mended_tokens == linker_of(off).mended_tokens > 0
    assert exact(engine(path, ":share=0.5:stop_after=1:stop_share=1"), asked) != want


def test_where_the_question_is_computed_later_nothing_ends(tmp_path: Path) -> None:
    path, asked = folder(tmp_path), orders(np.random.default_rng(1), 5, max_tokens=2)
    cut = {"scheduling__max_tokens": 12}
    off, built = (engine(path, f":share=0.5{stop}", **cut) for stop in ("", ":stop_after=1:stop_share=1"))
    long = [marked(one.id, [one.prompt[a:b].tolist() for a, b in one.chunks], *pieces(one, 13), **GREEDY) for one in asked]
    assert exact(built, long) == exact(off, long)
    assert built.engine.skipped == 0 and linker_of(built).mended_tokens > 0


def pieces(one: Request, behind: int) -> list[int | list[int]]:
    """A prompt's pieces, with so many tokens for a question."""
    found: list[int | list[int]] = []
    at, tokens = 0, one.prompt.tolist()
    for number, (start, stop) in enumerate(one.chunks):
        found += [tokens[at:start], number]
        at = stop
    return [*found, [5] * behind]


def test_a_policy_that_cannot_rank_mends_in_all_layers(tmp_path: Path) -> None:
    path, asked = folder(tmp_path), orders(np.random.default_rng(2), 4)
    built = engine(path, ":share=0.5:stop_after=1:stop_share=1")

    class Broken(CacheCraft):
        def low(self, mass: Any) -> Any:
            raise RuntimeError("no idea")

    linker_of(built).repair = Broken(Options(share=0.5, stop_after=1, stop_share=1.0))
    assert exact(built, asked) == exact(engine(path, ":share=0.5"), asked)
    assert built.engine.skipped == 0


@pytest.mark.parametrize("reuse", [None, "prefix-tree"])
def test_others_in_the_step_are_what_they_are_alone(tmp_path: Path, reuse: str | None) -> None:
    """Two prompts with rows that leave, one whose chunk is new and measured, two without chunks that begin alike, and answers
    that go on: all in one step."""
    path, rng = folder(tmp_path), np.random.default_rng(3)
    warm = request("warm", rng, [0, 1, 3])
    head = text(rng, 20, 20)
    asked = [
        request("a", rng, [3, 1, 0]),
        request("plain", rng, []),
        request("new", rng, [1, 4, 3, 5]),
        marked("same", DOCUMENTS, [*head, 1, 2], max_tokens=1, temperature=0.0, logprobs=20),
        request("b", rng, [1, 0]),
        marked("other", DOCUMENTS, [*head, 3], max_tokens=1, temperature=0.0, logprobs=20),
    ]
    running = marked("runs", DOCUMENTS, text(rng, 9, 9), max_tokens=6, n=3, temperature=0.8, seed=4, ignore_eos=True)

    def start(with_running: bool) -> tiny.Built:
        built = spoil(engine(path, ":share=0.5:stop_after=1:stop_share=0.6", kv__reuse=reuse))
        first_token(built, warm)
        if with_running:
            built.engine.add(running)
            built.engine.step()
            built.engine.step()
        return built

    together = start(True)
    sizes: list[int] = []
    keep_shape(together, lambda batch: sizes.append(len(batch.spans)))
    got = tiny.run(together, asked)
    assert max(sizes) == len(asked) + 3, "all should be in one step"
    skipped = 0
    for one in asked:
        alone = start(False)
        want = first_token(alone, one)
        skipped += alone.engine.skipped
        score = got[(one.id, 0)][0].logprobs[0]
        assert score is not None and close(dict(score.top), want, 1e-3), one.id
        if one.id == "new":
            assert notes(alone).keys() == notes(together).keys() and len(notes(alone)) == 5
            for name, mine in notes(alone).items():
                assert np.abs(notes(together)[name].scores - mine.scores).max(initial=0) <= 1e-4
    assert together.engine.skipped == skipped > 0
    plain = start(True)
    want_running = [tiny.tokens(deltas) for _, deltas in sorted(tiny.run(plain, []).items())]
    assert [tiny.tokens(got[("runs", i)]) for i in range(3)] == want_running


def keep_shape(built: tiny.Built, told: Callable[[Any], None]) -> None:
    executor = built.parts.executor
    assert executor is not None
    submit = executor.submit

    def run(batch: Any, *more: Any) -> Any:
        told(batch)
        return submit(batch, *more)

    executor.submit = run  # type: ignore[method-assign]


def notes(built: tiny.Built) -> dict[bytes, Any]:
    return {chunk.name: chunk.notes for chunk in linker_of(built).store}


# -- the policy and the linker ---------------------------------------------------------------------------------------------


@given(mass=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9), share=st.sampled_from([0.0, 0.25, 0.7, 1.0]))
def test_low_ranked_chunks_have_a_small_share_together(mass: list[float], share: float) -> None:
    low = CacheCraft(Options(stop_after=1, stop_share=share)).low(np.array(mass, dtype=np.float32))
    total = sum(mass)
    assert low.dtype == bool and sum(np.array(mass)[low]) <= share * total * (1 + 1e-6)
    if low.any() and not low.all():
        assert max(np.array(mass)[low]) <= min(np.array(mass)[~low]), "who is ranked above others stays"
    if not low.all():
        assert sum(np.array(mass)[low]) + min(np.array(mass)[~low]) >= share * total * (1 - 1e-6), "as many as may be"
    if share == 1.0:
        assert low.all()


def test_a_chunk_is_given_up_when_layers_in_a_row_ranked_it_low() -> None:
    says = iter([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 1]])
    rows = {number: np.array([10 * number, 10 * number + 1], dtype=np.int32) for number in (0, 1, 2)}
    shown: list[list[float]] = []

    def low(mass: Any) -> Any:
        shown.append(mass.tolist())
        return np.array(next(says), dtype=bool)

    mending = Mending(Measure(rows[0], rows[0], ((0, 1),) * 3), rows, low, 2)
    watched = Watched(torch.zeros(2), [], dict(rows), mending, np.zeros(3, dtype=np.int64))
    mass = torch.tensor([[0.25, 0.5, 0.0], [0.75, 0.0, 0.5]])
    left = [[some.tolist() for some in watched.rank(mass)] for _ in range(4)]
    assert left == [[], [[10, 11]], [[20, 21]], [[0, 1]]] and not watched.mends
    assert shown == [[0.5, 0.25, 0.25]] * 4


def test_options_out_of_range_are_refused() -> None:
    for name, value in (("stop_after", 0), ("stop_share", 1.1), ("stop_share", -1.0)):
        with pytest.raises(ValueError, match=name):
            CacheCraft(Options(**{name: value}))  # type: ignore[arg-type]


def test_only_rows_that_mend_found_chunks_may_leave() -> None:
    linker = ContextLinker.__new__(ContextLinker)
    linker.repair = CacheCraft(Options(stop_after=2))
    seq: Any = type("Seq", (), {})()
    seq.length, seq.chunks = 40, (Piece(2, 10, b"a"), Piece(10, 20, b"b"), Piece(22, 30, b"c"))
    seq.links = type("Links", (), {"found": [object(), None, object()]})()
    got = linker.mending(seq, [(0, 2), (4, 6), (9, 22), (25, 40)])
    assert got is not None and got.window == 2
    tokens = [0, 1, 4, 5, *range(9, 22), *range(25, 40)]
    assert {number: [tokens[row] for row in rows] for number, rows in got.rows.items()} == {
        0: [4, 5, 9], 2: [25, 26, 27, 28, 29],
    }  # fmt: skip
    assert got.question.tokens.tolist() == list(range(30, 40)) == [tokens[row] for row in got.question.rows]
    assert got.question.ranges == ((2, 10), (10, 20), (22, 30))
    assert linker.mending(seq, [(25, 39)]) is None, "half of a question"
    assert linker.mending(seq, [(10, 22), (30, 40)]) is None, "nothing is mended"
    assert linker.mending(seq, [(31, 40)]) is None
