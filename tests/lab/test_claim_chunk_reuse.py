"""What the claims `mpic`, `cache-craft` and `ape` make of what they measure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hasten.engine.config import EngineConfig
from hasten.engine.technique import all_techniques
from hasten.lab.bench.rag import Kind
from hasten.lab.bench.rag_runs import Answers, First, Ways, lost, pooled, share_computed
from hasten.lab.claims import ape, cache_craft, chunk_reuse, chunk_stream, mpic
from hasten.lab.claims.chunk_reuse import NONE, PLAIN, Shape
from hasten.lab.claims.sides import Side
from hasten.lab.testbed.material import Material

TINY = Shape(pieces=6, tokens=96, each=3, facts=1, cut=2, links=1)
RANDOM = Side("random", ("plain-chunks:recompute=random:tokens=8",))
OURS = Side("mpic", ("mpic:first=8",))
COMMON = ("model.max_length=1024", "kv.memory_bytes=8000000")


def answers(*right: bool, kind: Kind = "own") -> Answers:
    return Answers([(kind, one) for one in right], ["x" for _ in right])


@pytest.fixture(scope="module")
def ways() -> Iterator[Ways]:
    found = Ways((PLAIN, OURS, NONE, RANDOM), COMMON, "builtin-draft")
    found._material = Material(lambda text: len(found.encode(text)))
    yield found
    found.close()


def test_figures_of_answers() -> None:
    plain, other = answers(True, True, True, False), answers(True, False, False, False)
    other.right[1] = ("cut", False)
    plain.right[1] = ("cut", True)
    assert lost(plain, other) == 50 and lost(plain, other, "cut") == 100 and other.points("own") == pytest.approx(100 / 3)
    rounds = [{"plain": plain, "a": other}, {"plain": answers(True, True), "a": answers(True, True)}]
    assert chunk_reuse.lost(rounds, "a") == pytest.approx(100 * 2 / 6), "of all questions, not of a round"
    assert pooled(rounds)["a"].points() == 50 and len(rounds[0]["a"].right) == 4, "rounds stay as they are"
    (words, second) = chunk_reuse.in_words(rounds, ["plain", "a"])
    assert "6 questions, 83.3 % right (own 80.0 %, cut 100.0 %)" in words and "-33.3 points" in second


def test_figures_of_speed() -> None:
    def firsts(seconds: float, computed: int) -> list[First]:
        return [First(seconds * factor, 100, computed) for factor in (1, 1, 9)]

    rounds = [{"plain": firsts(3.0, 90), "a": firsts(1.0, 30)}, {"plain": firsts(4.0, 90), "a": firsts(1.0, 45)}]
    assert chunk_reuse.ttft_ratios(rounds, "a") == [3, 4]
    assert chunk_reuse.saved(rounds, "a") == pytest.approx([100 * 2 / 3, 50])
    assert share_computed(rounds[0]["a"]) == 30
    every = [{"plain": answers(True, True), "a": answers(True, False)}]
    found = chunk_reuse.points(every, rounds, {"ours": ["a"], "prefix cache": ["plain"], "not asked": ["b"]})
    assert [(point.series, point.computed, point.right) for point in found] == [("ours", 37.5, 50), ("prefix cache", 90, 100)]
    assert chunk_reuse.picture(found).startswith(b"\x89PNG")


@pytest.mark.parametrize(("naive", "chance", "held"), [(1, 1, [True, True]), (4, 1, [False, True]), (1, 4, [True, False])])
def test_a_control_that_loses_nothing_breaks_the_claim(naive: int, chance: int, held: list[bool]) -> None:
    of = {
        name: answers(*(i < right for i in range(4))) for name, right in (("n", naive), ("c", chance), ("o", 4), ("plain", 4))
    }
    assert [guard.held for guard in chunk_reuse.controls([of], "o", "n", "c")] == held


def test_every_way_is_asked_the_same_and_the_controls_bracket_it(ways: Ways) -> None:
    told: list[float] = []
    rounds = chunk_reuse.ask(
        ways, TINY, list(ways.llms), rounds=2, queries=2, questions=3, seed=0, progress=lambda what, share: told.append(share)
    )
    assert len(rounds) == 2 and told == sorted(told) and told[-1] < 1
    for one in rounds:
        asked = [[kind for kind, _ in of.right] for of in one.values()]
        assert all(kinds == asked[0] for kinds in asked) and len(asked[0]) == 6
    assert rounds[0]["plain"].outputs != rounds[1]["plain"].outputs
    assert pooled(rounds)["none"].outputs != pooled(rounds)["plain"].outputs, "the test should tell the two apart"


def test_everything_computed_again_answers_as_the_plain_engine(ways: Ways) -> None:
    books = TINY.library(ways, 3)
    queries = TINY.queries(books, 3, 2, 2)
    every = Ways((Side("all", ("plain-chunks:recompute=all",)),), (*COMMON, "model.dtype=float32"), "builtin-draft")
    plain = Ways((PLAIN,), (*COMMON, "model.dtype=float32"), "builtin-draft")
    every.warm(books, TINY.once(books, 3))
    assert every.answers("all", books, queries).outputs == plain.answers("plain", books, queries).outputs
    every.close()
    plain.close()


def test_firsts_count_what_is_computed_after_everything_was_seen_once(ways: Ways) -> None:
    (one,) = chunk_reuse.speed(
        ways, TINY, ["plain", "mpic", "none", "random"], rounds=1, queries=4, seed=5, progress=lambda what, share: None
    )
    for ours, theirs, least, chance in zip(one["mpic"], one["plain"], one["none"], one["random"], strict=True):
        assert ours.prompt == theirs.prompt == least.prompt
        text = ours.prompt - 3 * 96
        assert least.computed <= text and ours.computed == least.computed + 3 * 8 == chance.computed
        assert ours.computed < theirs.computed <= theirs.prompt
        assert min(ours.seconds, theirs.seconds) > 0
    for name in ways.llms:
        chunks = ways.llms[name].parts.books.chunks
        assert chunks is None or chunks.blocks == 0, "each round begins with nothing"


def test_every_piece_is_seen_once(ways: Ways) -> None:
    books = TINY.library(ways, 0)
    seen = [piece for query in TINY.once(books, 0) for piece in query.pieces]
    assert sorted(seen) == list(range(6))


def test_a_stream_finds_what_memory_holds(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_stream, "SMALL", TINY)
    monkeypatch.setattr(chunk_stream, "SETTINGS", COMMON)
    monkeypatch.setattr("hasten.lab.bench.rag_runs.Ways", lambda sides, common: _shared(ways))
    for name in ways.llms:
        ways.forget(name)
    found = chunk_stream.stream((PLAIN, OURS), 8, 0, lambda what, share: None)
    assert {name: len(of.firsts) for name, of in found.items()} == {"plain": 6, "mpic": 6}
    assert found["plain"].found == 0 and 50 < found["mpic"].found <= 100
    assert found["mpic"].computed < found["plain"].computed and found["mpic"].wait(50) <= found["mpic"].wait(99)
    assert "mpic: " in chunk_stream.in_words(found)[1]


def _shared(ways: Ways) -> Any:
    class Open:
        def __getattr__(self, name: str) -> Any:
            return (lambda: None) if name == "close" else getattr(ways, name)

    return Open()


def test_of_equal_pairs_the_one_that_changes_least_is_chosen() -> None:
    sides = [ape.tuned(*pair) for pair in ape.GRID]
    even = [{side.name: answers(True, False) for side in sides}]
    assert ape.best(sides, even) is sides[0] and sides[0].with_ == ape.PARALLEL.with_
    even[0][sides[4].name] = answers(True, True)
    assert ape.best(sides, even) is sides[4] and ape.GRID[4] == (0.9, 0.9)


@pytest.mark.parametrize(("right", "alpha"), [((4, 4, 4), 0.5), ((4, 3, 4), 1.0), ((3, 4, 4), 1.0), ((5, 4, 3), 0.75)], ids=str)
def test_the_least_alpha_is_chosen_above_which_nothing_is_lost(right: tuple[int, ...], alpha: float) -> None:
    sides = {alpha: cache_craft.at(alpha) for alpha in (0.5, 1.0, 0.75)}
    of = {cache_craft.at(one).name: answers(*(i < n for i in range(5))) for one, n in zip((1.0, 0.75, 0.5), right, strict=True)}
    assert cache_craft.least(sides, [{"plain": answers(*(i < 4 for i in range(5))), **of}]) == alpha


@pytest.mark.parametrize("claim", [mpic, cache_craft, ape])
def test_sides_have_names_of_their_own_and_can_be_built(claim: Any) -> None:
    sides = [value for value in vars(claim).values() if isinstance(value, Side)]
    sides += [side for value in vars(claim).values() if isinstance(value, tuple) for side in value if isinstance(side, Side)]
    if claim is cache_craft:
        sides += [*map(cache_craft.at, cache_craft.ALPHAS), cache_craft.at_random(0.5), cache_craft.stopping(0.5, 0.25)]
    by_name: dict[str, set[Side]] = {}
    for side in sides:
        by_name.setdefault(side.name, set()).add(side)
    assert len(by_name) > 1 and all(len(of) == 1 for of in by_name.values())
    assert claim.CLAIM.name == claim.__name__.rpartition(".")[2].replace("_", "-")
    if claim.CLAIM.name not in {technique.name for technique in all_techniques()}:
        pytest.skip(f"{claim.CLAIM.name} is not there")
    for side in sides:
        EngineConfig.build(with_=side.with_, set_=(*chunk_reuse.COMMON, *side.set_))
