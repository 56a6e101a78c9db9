"""FlashForge: which forest a step gets and when it is kept; through the engine, the plain engine's tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine import tiny
from tests.kernels.forests import Free

from hasten.engine.attention import flashforge
from hasten.engine.attention.flashforge import FlashForgeAttention
from hasten.engine.attention.forest import ReadingCosts, cut, find_nodes
from hasten.engine.attention.forest_planner import ForestPlanner
from hasten.engine.build import Built
from hasten.engine.request import Request, SamplingParams
from hasten.engine.sequence import Draft, Sequence
from hasten.kernels.base import HostIndex
from hasten.kernels.forest import REST, Forest, runs_of

SIZE = 16


def host_of(views: Seq[Seq[int]], tokens: Seq[int] | None = None, last: int = SIZE, trees: Seq[int] = ()) -> HostIndex:
    """Views that are lists of whole blocks, the last holding `last` entries; spans of so many tokens (None: one)."""
    runs, offsets = [], [0]
    for view in views:
        runs += [[block, 0, SIZE, SIZE * i] for i, block in enumerate(view)]
        if view:
            runs[-1][2] = last
        offsets.append(len(runs))
    counts = [1] * len(views) if tokens is None else list(tokens)
    is_tree = np.array([i in trees for i in range(len(views))], np.uint8) if trees else None
    positions = np.concatenate([np.full(n, SIZE * len(view)) for n, view in zip(counts, views, strict=True)])
    arrays = (np.cumsum([0, *counts]), positions, np.array(runs).reshape(-1, 4), offsets)
    return HostIndex(*(np.ascontiguousarray(a, np.int32) for a in arrays), is_tree)


def planner(costs: Any = None, **options: Any) -> ForestPlanner:
    return ForestPlanner(costs or Free(), 4, 2, 2, **options)


def members(forest: Forest | None) -> list[tuple[int, list[int]]]:
    """Entries and rows of the shared nodes."""
    assert forest is not None
    return sorted((int(n[4]), forest.rows[n[5] : n[6]].tolist()) for n in forest.nodes if n[4] != REST)


@settings(max_examples=60)
@given(views=st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=7), data=st.data())
def test_nodes_are_the_prefixes_that_two_views_share(views: list[list[int]], data: st.DataObject) -> None:
    limits = [data.draw(st.integers(0, len(view))) for view in views]
    host = host_of(views, last=SIZE)
    prefixes = [tuple(view[:limit]) for view, limit in zip(views, limits, strict=True)]
    readers = {p[:n]: {s for s, q in enumerate(prefixes) if q[:n] == p[:n]} for p in prefixes for n in range(1, len(p) + 1)}
    nodes = find_nodes(host, limits)
    covered: dict[tuple[int, ...], set[int]] = {}
    for node in nodes:
        view = views[node.members[0]]
        assert node.entries == SIZE * (node.end - node.first) > 0
        assert node.first == (nodes[node.parent].end if node.parent >= 0 else 0)
        for end in range(node.first + 1, node.end + 1):
            assert tuple(view[:end]) not in covered
            covered[tuple(view[:end])] = set(node.members)
    assert covered == {prefix: who for prefix, who in readers.items() if len(who) > 1}


def test_a_forest_is_kept_until_the_tree_changes() -> None:
    shared = [0, 1, 2, 3]
    views = [[*shared, 10], [*shared, 11], [*shared[:2], 12, 13], [20, 21]]
    mine = planner()
    first = mine.plan(host_of(views, last=1))
    assert members(first) == [(2 * SIZE, [0, 1]), (2 * SIZE, [0, 1, 2])]
    assert mine.plan(host_of(views, last=7)) is first, "leaves grow within their blocks"
    grown = [[*view, 30 + i] for i, view in enumerate(views)]
    assert mine.plan(host_of(grown, last=2)) is first, "leaves grow by blocks"
    long = [[*view, *range(100 * i, 100 * i + 18)] for i, view in enumerate(views, 1)]
    again = mine.plan(host_of(long))
    assert again is not first and members(again) == members(first), "long leaves are cut anew"
    moved = [[9, *view[1:]] if i < 2 else view for i, view in enumerate(views)]
    assert members(mine.plan(host_of(moved))) == [(4 * SIZE, [0, 1])], "shared blocks were copied elsewhere"
    assert members(mine.plan(host_of(views[:2]))) == [(4 * SIZE, [0, 1])], "somebody left"
    deeper = [[*shared, 10], [*shared, 11], [*shared, 12], [20, 21]]
    assert members(mine.plan(host_of(deeper))) == [(4 * SIZE, [0, 1, 2])]
    cut_off = [[*shared, 10], [*shared, 11], shared[:1], [20, 21]]
    assert members(mine.plan(host_of(cut_off))) == [(SIZE, [0, 1, 2]), (3 * SIZE, [0, 1])]


def test_paths_make_up_the_views_of_every_step() -> None:
    """Whatever the step before was like: what is kept of it fits."""
    rng = random.Random(0)

    def stretch() -> list[tuple[int, int]]:
        return [rng.choice([(0, SIZE), (1, SIZE), (1, 5), (2, SIZE)]) for _ in range(rng.randint(0, 2))]

    kept = 0
    for _ in range(300):
        mine, before = planner(), None
        spans = [(rng.randint(0, 1), rng.choice([1, 3]), rng.random() < 0.5) for _ in range(rng.randint(2, 3))]
        counts = [count for _, count, _ in spans]
        for _ in range(8):
            common = stretch()
            runs, offsets = [], [0]
            for number, (more, count, _) in enumerate(spans):
                shared = common if rng.random() < 0.8 else stretch()
                own = [(10 * (number + 1) + i, SIZE) for i in range(more)] + [(10 * (number + 1) + 5, count)]
                at = 0
                for block, held in [*shared, *own]:
                    runs.append([block, 0, held, at])
                    at += held
                offsets.append(len(runs))
            arrays = (np.cumsum([0, *counts]), np.zeros(sum(counts)), np.array(runs), offsets)
            is_tree = np.array([tree for *_, tree in spans], np.uint8)
            host = HostIndex(*(np.ascontiguousarray(a, np.int32) for a in arrays), is_tree)
            forest = mine.plan(host)
            if forest is None:
                continue
            kept, before = kept + (forest is before), forest
            for token, span in enumerate(np.repeat(np.arange(len(spans)), counts).tolist()):
                assert _view_of(forest, host, token) == runs[offsets[span] : offsets[span + 1]]
    assert kept > 20


def _view_of(forest: Forest, host: HostIndex, token: int) -> list[list[int]]:
    """The runs that a token's path names."""
    view: list[list[int]] = []
    for number, row in forest.paths[forest.path_offsets[token] : forest.path_offsets[token + 1]]:
        node = forest.nodes[number]
        part = runs_of(host, node).tolist()
        assert forest.rows[node[5] + row] == token and node[3] == sum(run[2] for run in view)
        assert node[4] in (REST, sum(run[2] for run in part))
        view += part
    return view


def test_a_block_that_is_longer_in_one_view_is_not_shared() -> None:
    host = host_of([[0, 1, 2], [0, 1, 2]])
    host.runs[2, 2] = 5
    assert members(planner().plan(host)) == [(2 * SIZE, [0, 1])]


def test_nothing_shared_nothing_planned() -> None:
    assert planner().plan(host_of([[0, 1], [2, 1], [3, 1]])) is None
    assert planner().plan(host_of([[0, 1]])) is None
    assert planner().plan(host_of([[], []])) is None


def test_what_does_not_pay_is_left() -> None:
    class Dear(Free):
        merge = 1.0

    views = [[0, 1, 2, 10], [0, 1, 2, 11], [0, 5, 6, 12]]
    assert planner(Dear()).plan(host_of(views)) is None

    class ShortIsDear(Free):
        merge = SIZE * 1e-3 / 8  # a block saved twice is not worth six rows' merging, three blocks saved once are worth four's

    assert members(planner(ShortIsDear()).plan(host_of(views))) == [(3 * SIZE, [0, 1])], "what was dropped went below"
    long = [[0, 1, 2, 3, *range(10, 90)], [0, 1, 2, 3, *range(110, 190)]]
    assert planner().plan(host_of(long)) is None, "a twentieth of the whole is next to nothing"
    assert planner().plan(host_of([view[:20] for view in long])) is not None


def test_long_spans_and_trees_keep_what_is_theirs() -> None:
    shared = [0, 1, 2]
    host = host_of([[*shared, 3], [*shared, 4], [*shared, 5]], tokens=[40, 1, 2])
    forest = planner().plan(host)
    assert members(forest) == [(3 * SIZE, [40, 41, 42])]
    assert forest is not None and sum(int(node[0]) == 0 for node in forest.nodes) > 1, "a prompt's rows are computed in pieces"
    same = host_of([[*shared, 3]] * 2, tokens=[20, 20], trees=(0, 1))
    assert planner().plan(same) is None, "long spans share nothing"
    same = host_of([[*shared, 3]] * 2, tokens=[10, 3], trees=(0, 1))
    assert members(planner().plan(same)) == [(3 * SIZE, list(range(13)))], "a tree's own tokens are its leaf's"


@settings(max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 9000)), min_size=1, max_size=8),
    heads=st.integers(1, 3),
    workers=st.integers(1, 4),
)
def test_tasks_cover_their_nodes_and_balance(sizes: list[tuple[int, int]], heads: int, workers: int) -> None:
    tasks = cut(sizes, Free(), heads, workers)
    for node, (_, entries) in enumerate(sizes):
        pieces = sorted((begin, end) for n, begin, end in tasks if n == node)
        assert pieces[0][0] == 0 and pieces[-1][1] == REST
        assert all(end == begin for (_, end), (begin, _) in pairwise(pieces))
        assert len(pieces) <= max(1, -(-entries // 256))
    if workers == 1:
        assert len(tasks) == len(sizes)


def test_one_long_node_is_split_among_workers() -> None:
    tasks = cut([(64, 8192), (2, 300)], Free(), 1, 4)
    assert sum(node == 0 for node, _, _ in tasks) >= 4
    assert tasks[-1][0] == 1, "the shortest comes last"
    assert len(cut([(64, 8192), (2, 300)], Free(), 1, 4, split=False)) == 2


def test_reading_costs_favour_sharing_long_stretches() -> None:
    costs = ReadingCosts()
    assert planner(costs).plan(host_of([[*range(40), 50], [*range(40), 51]])) is not None
    assert float(costs.seconds(8, 100)) < 4 * float(costs.seconds(2, 100))


# Through the engine


class Watched(FlashForgeAttention):
    """Counts the steps that had a forest."""

    forests = 0

    def before_step(self, index: Any) -> None:
        super().before_step(index)
        Watched.forests += index.forest is not None


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forests wherever anything is shared, however short."""
    monkeypatch.setattr(flashforge, "costs_of", lambda *arguments: Free())
    monkeypatch.setattr(flashforge, "FlashForgeAttention", Watched)
    Watched.forests = 0


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(4)
    common, branch = rng.integers(1, 256, 64).tolist(), rng.integers(1, 256, 40).tolist()
    return [
        *(common + rng.integers(1, 256, n).tolist() for n in (3, 20)),
        *(common + branch + rng.integers(1, 256, n).tolist() for n in (1, 9, 30)),
        rng.integers(1, 256, 50).tolist(),
    ]


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "one KV head": {"num_key_value_heads": 1},
    "window": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 40},
}


def asked(count: int) -> list[Request]:
    sampling = SamplingParams(max_tokens=count, logprobs=3, ignore_eos=True, temperature=0)
    return [Request(id=str(i), prompt=np.array(p), sampling=sampling) for i, p in enumerate(prompts())]


def prepare(built: Built) -> None:
    """Compute what the prompts share, so that they find it even if they come all at once."""
    tiny.run(built, [Request(id="first", prompt=np.array(prompts()[2]), sampling=SamplingParams(max_tokens=1))])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompts_give_the_plain_tokens(family: str, native: bool, tmp_path: Path, eager: None) -> None:
    path = tiny.folder(tmp_path, **FAMILIES[family])
    plain = tiny.engine(path, with_=("paged",), kv__reuse=None)
    other = tiny.engine(path, with_=("flashforge",), kv__block_size=8, executor__native=native)
    prepare(other)
    tiny.assert_exact(plain, other, prompts(), 40)
    assert Watched.forests > 30


def test_recorded_steps_give_the_same_bits(tmp_path: Path, eager: None) -> None:
    path = tiny.folder(tmp_path)

    def outputs(built: Built) -> list[Any]:
        return [(key, [(d.tokens, d.logprobs) for d in deltas]) for key, deltas in tiny.run(built, asked(20)).items()]

    with_plan, without = (
        tiny.engine(path, with_=("flashforge",), kv__block_size=8, executor__native=native) for native in (True, False)
    )
    prepare(with_plan)
    prepare(without)
    assert outputs(with_plan) == outputs(without)
    assert Watched.forests > 0


def test_forks_share_their_prompt(tmp_path: Path, eager: None) -> None:
    path = tiny.folder(tmp_path)
    sampling = SamplingParams(n=4, max_tokens=30, temperature=1.0, seed=3, ignore_eos=True)
    one = Request(id="n", prompt=np.array(prompts()[0]), sampling=sampling)
    plain, other = (tiny.engine(path, with_=(name,)) for name in ("paged", "flashforge"))
    want, got = ({k: tiny.tokens(v) for k, v in tiny.run(built, [one]).items()} for built in (plain, other))
    assert want == got and len(want) == 4
    assert Watched.forests > 20


class Guesses:
    """Trees of tokens, some of them right."""

    def __init__(self, truth: dict[str, list[int]]) -> None:
        self.truth, self.random = truth, random.Random(0)

    def lookahead(self, sequence: Sequence) -> int:
        return self.random.randint(0, 6)

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: Any) -> list[Draft | None]:
        return [self._one(seq, budget) for seq, budget in zip(sequences, budgets, strict=True)]

    def _one(self, seq: Sequence, budget: int) -> Draft | None:
        tokens, parents = [], []
        for i in range(budget):
            parents.append(self.random.randint(-1, i - 1))
            depth, node = 0, parents[-1]
            while node >= 0:
                depth, node = depth + 1, parents[node]
            ahead = self.truth[seq.request.id][seq.output_length :]
            right = depth < len(ahead) and self.random.random() < 0.7
            tokens.append(ahead[depth] if right else self.random.randrange(1, 256))
        return Draft(np.array(tokens, dtype=np.int32), np.array(parents, dtype=np.int32))


def test_drafted_trees_cross_shared_nodes(tmp_path: Path, eager: None) -> None:
    path = tiny.folder(tmp_path)
    plain, other = (tiny.engine(path, with_=(name,), kv__block_size=8) for name in ("paged", "flashforge"))
    prepare(other)
    want = {key[0]: tiny.tokens(deltas) for key, deltas in tiny.run(plain, asked(30)).items()}
    guesses: Any = Guesses(want)
    other.engine._planner._budget = other.engine._spans._proposer = guesses
    got = {key[0]: tiny.tokens(deltas) for key, deltas in tiny.run(other, asked(30)).items()}
    assert want == got
    assert Watched.forests > 5


def test_deterministic_engines_take_the_plain_kernel(tmp_path: Path, eager: None) -> None:
    built = tiny.engine(tiny.folder(tmp_path), with_=("flashforge",), executor__deterministic=True)
    prepare(built)
    tiny.run(built, asked(5))
    assert isinstance(built.parts.executor.attention, Watched) and Watched.forests == 0  # type: ignore[union-attr]
