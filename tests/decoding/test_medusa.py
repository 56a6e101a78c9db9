"""Medusa heads: the tree is the best one, the state is what the head reads, tokens are the plain engine's, books balance."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.decoding.test_draft_model import SCHEMA, accepted
from tests.engine import tiny
from tests.engine.test_exactness import answers, mixed_requests

from hasten import LLM, SamplingParams
from hasten.engine import models
from hasten.engine.config import EngineConfig, ModelConfig
from hasten.engine.decoding.base import Reader
from hasten.engine.decoding.chain import Chain
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.decoding.drafts import heads as stored
from hasten.engine.decoding.drafts.heads import RANKS, RECORD, WEIGHTS, Heads
from hasten.engine.decoding.drafts.tree import grow
from hasten.engine.decoding.medusa import BUILTIN_HEADS, Medusa
from hasten.engine.events import Kind
from hasten.engine.executors.base import NORMED
from hasten.engine.executors.planned import PlannedPass
from hasten.engine.request import Request
from hasten.engine.sequence import Sequence
from hasten.engine.technique import ConfigError

BLOCK = 16
BLOCK_BYTES = 2 * BLOCK * 2 * 2 * 16 * 4
"""Layers, slots, keys and values, heads, dimensions, bytes."""
EXACT: dict[str, Any] = {"executor__deterministic": True, "kv__block_size": BLOCK}
FEW = tuple(range(40, 40 + 3 * RANKS, 3))
"""All that the random model is let say, and all that its heads guess: so that some guess is always right."""
BIAS = dict.fromkeys(FEW, 60.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("served"))


def write(folder: Path, model: str, count: int = 3, **changes: Any) -> str:
    """Random heads of a random model."""
    fingerprints = tuple(
        models.fingerprint(ModelConfig(path=model, load_format="dummy", dtype=dtype)) for dtype in ("float32", "bfloat16")
    )
    accuracies = tuple((0.1 - 0.01 * k,) * RANKS for k in range(count))
    w1 = torch.randn(count, 64, 64, generator=torch.Generator().manual_seed(0))
    made = Heads(fingerprints, 256, accuracies, w1, torch.tensor(FEW))
    stored.save(replace(made, **changes), folder)
    return str(folder)


@pytest.fixture(scope="module")
def heads(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("heads"), model)


def drafting(model: str, heads: str, knobs: str = "", with_: tuple[str, ...] = (), **settings: Any) -> tuple[Any, Medusa]:
    built = tiny.engine(model, with_=(f"medusa:path={heads}{knobs}", *with_), **{**EXACT, **settings})
    asked: Any = built.engine.decoding.proposer
    (proposer,) = (one for one in getattr(asked, "_proposers", [asked]) if isinstance(one, Medusa))
    return built, proposer


# -- the tree -----------------------------------------------------------------------------------------------------------


def best(accuracies: Seq[Seq[float]], nodes: int) -> float:
    """The most accepted tokens to expect of any tree of so many nodes, by trying all."""
    paths = [path for depth in range(1, len(accuracies) + 1) for path in product(*(range(len(a)) for a in accuracies[:depth]))]
    worth = {path: float(np.prod([accuracies[k][rank] for k, rank in enumerate(path)])) for path in paths}
    found = 0.0

    def extend(chosen: frozenset[tuple[int, ...]], rest: list[tuple[int, ...]], total: float) -> None:
        nonlocal found
        found = max(found, total)
        if len(chosen) == nodes:
            return
        for i, path in enumerate(rest):
            if len(path) == 1 or path[:-1] in chosen:
                extend(chosen | {path}, rest[i + 1 :], total + worth[path])

    extend(frozenset(), paths, 0.0)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_the_tree_is_the_best_of_its_size(seed: int) -> None:
    rng = random.Random(seed)
    accuracies = [[rng.choice([0.0, 0.2, 0.5, rng.random()]) for _ in range(rng.choice([1, 2, 3]))] for _ in range(2)]
    if seed % 3 == 0:
        accuracies.append([rng.random()])
    for nodes in range(1, 6):
        tree = grow(accuracies, nodes)
        assert tree.expected.sum() == pytest.approx(best(accuracies, nodes))
        paths: dict[int, tuple[int, ...]] = {-1: ()}
        for i, (depth, rank, parent, share) in enumerate(
            zip(tree.depths.tolist(), tree.ranks.tolist(), tree.parents.tolist(), tree.expected.tolist(), strict=True)
        ):
            assert parent < i and len(paths[parent]) == depth
            paths[i] = (*paths[parent], rank)
            assert share == pytest.approx(np.prod([accuracies[k][r] for k, r in enumerate(paths[i])]))
        assert len(set(paths.values())) == len(tree) + 1
        assert [one.tolist() for one in (tree.first(2).ranks, tree.first(2).parents)] == [
            one.tolist() for one in (grow(accuracies, 2).ranks[:nodes], grow(accuracies, 2).parents[:nodes])
        ]


def test_what_is_never_right_is_not_tried() -> None:
    assert len(grow([[0.0, 0.0], [1.0]], 5)) == 0
    assert grow([[0.5, 0.0], [0.0]], 5).ranks.tolist() == [0]
    assert len(grow([], 5)) == 0


# -- the state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("native", [True, False])
def test_the_state_is_what_the_head_reads(model: str, heads: str, dtype: str, native: bool) -> None:
    """Bit for bit, in steps of all sizes, of which the small ones stay recorded."""
    built, _ = drafting(model, heads, model__dtype=dtype, executor__native=native)
    executor, seen = built.parts.executor, [0]
    submit = executor.submit

    def checked(batch: Any, taps: frozenset[int]) -> Any:
        done = submit(batch, taps)
        assert taps == {NORMED}
        states = done.result.hidden[NORMED]
        seen[0] += len(states)
        assert len(states) == len(batch.logits_rows)
        with torch.inference_mode():
            assert torch.equal(built.parts.model.head.apply(states), done.result.logits)
        return done

    executor.submit = checked
    sampling = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, logit_bias=BIAS)
    tiny.run(built, [Request(id=f"{n}", prompt=np.arange(1, n), sampling=sampling) for n in (2, 9, 100)])
    assert seen[0] > 60 and sum(accepted(built)[1]) > 10
    recorded = [one for one in executor._plans.values() if isinstance(one, PlannedPass)]
    from hasten.kernels.cpu import native as library

    assert bool(recorded) == (native and bool(library.available()))


def test_the_state_kept_is_the_one_that_the_last_token_was_drawn_from(model: str, heads: str) -> None:
    """Through accepted paths, preemption and chunks."""
    built, proposer = drafting(
        model, heads, ":nodes=40", ("stall-free:chunk=23",), kv__memory_bytes=14 * BLOCK_BYTES, scheduling__max_tokens=90
    )
    head, committed, seen = built.parts.model.head, proposer.committed, [0]

    def checked(sequence: Sequence, row: int, result: Any) -> None:
        committed(sequence, row, result)
        length, state = proposer._states[sequence.id]
        logits = head.apply(state[None])[0]
        assert length == sequence.length
        assert FEW[int(logits[list(FEW)].argmax())] == sequence.tokens[-1]
        seen[0] += 1

    proposer.committed = checked  # type: ignore[method-assign]
    sampling = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, logit_bias=BIAS)
    prompts = [np.arange(1, 30), np.arange(40, 50), np.arange(3, 90)]
    with torch.inference_mode():
        tiny.run(built, [Request(id=f"r{i}", prompt=prompt, sampling=sampling) for i, prompt in enumerate(prompts)])
    assert built.engine.events.counts[Kind.PREEMPTED] and sum(accepted(built)[1]) > 20 and seen[0] > 20
    assert len(proposer) == 0


# -- the served tokens --------------------------------------------------------------------------------------------------


def biased(requests: list[Request]) -> list[Request]:
    """The same, that say little."""
    return [replace(r, sampling=replace(r.sampling, logit_bias={**BIAS, **(r.sampling.logit_bias or {})})) for r in requests]


def tokens_and_scores(found: dict[Any, Any]) -> tuple[dict[Any, list[int]], list[float]]:
    """Tokens by sequence, and all log-probabilities one after another, prompts' among them."""
    scores = [
        value
        for _, said, prompt in found.values()
        for score in (*said, *(prompt or ()))
        if score is not None
        for value in (score.logprob, *(logprob for _, logprob in score.top))
    ]
    return {key: tokens for key, (tokens, _, _) in found.items()}, scores


def assert_equal(found: dict[Any, Any], want: dict[Any, Any]) -> None:
    """The same tokens; the same log-probabilities but for the last bits. (What a node sees of itself lies behind its siblings,
    at another place than in plain decoding, and sums are made place by place.)"""
    found = {key: found[key] for key in want}
    (mine, my_scores), (theirs, their_scores) = tokens_and_scores(found), tokens_and_scores(want)
    assert mine == theirs
    np.testing.assert_allclose(my_scores, their_scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("knobs", ["", ":nodes=1", ":nodes=64"])
@pytest.mark.parametrize("say", [list, biased], ids=["anything", "few"])
def test_guesses_change_no_token_and_no_logprob(model: str, heads: str, knobs: str, say: Any) -> None:
    """With penalties, bias, filters, n > 1, prompt log-probabilities, the prefix cache, chunks, preemption and swapping."""
    plain = tiny.engine(model, kv__reuse=None, scheduling__max_rows=1, **EXACT)
    alone: dict[Any, Any] = {}
    for request in say(mixed_requests()):
        alone.update(answers(plain, [request]))
    moved = {Kind.PREEMPTED: 0, Kind.SWAPPED: 0}
    for blocks, host in ((14, 0), (17, 1 << 20), (23, 0), (26, 1 << 20)):
        built, proposer = drafting(
            model,
            heads,
            knobs,
            ("stall-free:chunk=23", "newest-yields:swap_from=1"),
            kv__memory_bytes=blocks * BLOCK_BYTES,
            kv__host_bytes=host,
            scheduling__max_tokens=60,
        )
        for _ in range(2):  # the second time prompts are cached
            got = answers(built, say(mixed_requests()))
            assert_equal(got, alone)
            assert got == alone or knobs != ":nodes=1", "a list of guesses changes no bit"
            assert len(proposer) == 0
        counts = built.engine.events.counts
        assert counts[Kind.REUSED] and counts[Kind.DRAFTED]
        for kind in moved:
            moved[kind] += counts[kind]
        if say is biased and knobs != ":nodes=1":
            assert sum(accepted(built)[1]) > 50
    assert all(moved.values()), "memory was not short"


def test_behind_others_and_before_them(model: str, heads: str) -> None:
    plain = tiny.engine(model, **EXACT)
    requests = biased(mixed_requests())
    want = answers(plain, requests)
    for with_ in (("prompt-lookup",), ("forced-tokens",)):
        built, proposer = drafting(model, heads, with_=with_)
        chain = built.engine.decoding.proposer
        assert isinstance(chain, Chain) and isinstance(chain, Reader) and built.engine.decoding.taps == {NORMED}
        assert_equal(answers(built, requests), want)
        assert sum(accepted(built)[1]) > 20
        assert len(proposer) == 0
    unread = Chain([])
    assert unread.taps == frozenset()


class Fork:
    """Forks each sequence once, and puts a token into one of the branches."""

    taps: frozenset[int] = frozenset()

    def __init__(self, proposer: Any = None) -> None:
        self.forked: set[int] = set()
        self.proposer = proposer
        self.unknown = 0

    def on_commit(self, committed: Any, result: Any, actions: Any) -> None:
        for seq, _ in committed:
            if seq.finish is None and seq.output_length >= 5 and not self.forked and seq.id not in self.forked:
                children = actions.fork(seq, 2)
                self.forked |= {seq.id, *(child.id for child in children)}
                actions.inject(children[0], [FEW[0]])
                actions.inject(seq, [FEW[1]])
                if self.proposer is not None:
                    self.unknown += sum(self.proposer._state(one) is None for one in (seq, *children))


def test_forks_and_injected_tokens_wait_for_a_state(model: str, heads: str) -> None:
    request = Request(
        id="r", prompt=np.arange(1, 40), sampling=SamplingParams(max_tokens=40, temperature=0.7, seed=3, logit_bias=BIAS)
    )
    plain = tiny.engine(model, **EXACT)
    plain.engine.decoding.controller = Fork()
    want = {key: tiny.tokens(deltas) for key, deltas in tiny.run(plain, [request]).items()}
    built, proposer = drafting(model, heads)
    # So that both fork after the same number of tokens: nothing is accepted before.
    controller = built.engine.decoding.controller = Fork(proposer)
    nodes, proposer.tree = proposer.tree, proposer.tree.first(0)
    built.engine.add(request)
    out = []
    while built.engine.unfinished:
        out += built.engine.step()
        if controller.forked:
            proposer.tree = nodes
    got: dict[Any, list[int]] = {}
    for delta in out:
        got.setdefault((delta.request_id, delta.index), []).extend(delta.tokens)
    assert controller.unknown == 3 and len(want) == 3
    assert got == want and sum(accepted(built)[1]) > 20
    built.engine.ledger.audit()
    assert len(proposer) == 0


def test_cancelled_requests_leave_nothing(model: str, heads: str) -> None:
    built, proposer = drafting(model, heads)
    sampling = SamplingParams(max_tokens=100, n=3, temperature=1.0, ignore_eos=True)
    for turn in range(3):
        built.engine.add(Request(id="r", prompt=np.arange(1, 20), sampling=sampling))
        for _ in range(4 + turn):
            built.engine.step()
        assert len(proposer) == 3
        assert proposer.odds(next(iter(built.engine.ledger.sequences.values())), 2) == proposer.tree.expected[:2].tolist()
        built.engine.cancel("r")
        built.engine.run()
        assert len(proposer) == 0
    built.engine.ledger.audit()


def test_a_failing_reader_fails_nobody(model: str, heads: str) -> None:
    built, proposer = drafting(model, heads)
    want = answers(tiny.engine(model, **EXACT), mixed_requests())

    def broken(sequence: Sequence, row: int, result: Any) -> None:
        raise RuntimeError("no state")

    proposer.committed = broken  # type: ignore[method-assign]
    assert answers(built, mixed_requests()) == want and not accepted(built)[0]


def ordered(with_: tuple[str, ...], heats: tuple[float, ...], memory: int | None) -> tuple[list[str], LLM]:
    """Orders as JSON from the built-in model."""
    asked = [[{"role": "user", "content": f"Order {n} apples for {who}."}] for n in (1, 2) for who in ("Nina", "Omar")]
    constraint = ConstraintSpec.of_schema(SCHEMA, whitespace="compact", order="schema")
    llm = LLM(with_=with_, set_={"model.dtype": "float32", "executor.deterministic": True, "kv.memory_bytes": memory})
    done = [
        llm.chat(
            asked, SamplingParams(max_tokens=80, temperature=heat, seed=3, n=2, constraint=constraint, repetition_penalty=1.1)
        )
        for heat in heats
    ]
    return [choice.text for answer in done for one in answer for choice in one.choices], llm


@pytest.mark.parametrize("with_", [(), ("forced-tokens",)])
def test_the_built_in_heads_under_a_grammar(with_: tuple[str, ...]) -> None:
    texts, _ = ordered(with_, (0.0, 1.0), None)
    got, llm = ordered((*with_, "medusa:nodes=16"), (0.0, 1.0), 700_000)
    assert got == texts
    assert all(list(json.loads(text)) == SCHEMA["required"] for text in texts)
    assert llm.engine.events.counts[Kind.PREEMPTED] and sum(accepted(llm)[1]) > 50


def test_typical_answers_keep_the_grammar_and_greedy_ones_everything() -> None:
    plain, _ = ordered((), (0.0,), None)
    got, llm = ordered(("medusa:nodes=16", "typical-acceptance"), (0.0, 1.0), None)
    assert got[: len(plain)] == plain
    assert all(list(json.loads(text)) == SCHEMA["required"] for text in got) and sum(accepted(llm)[1]) > 50


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_built_in_heads_are_right_more_often_than_not(dtype: str) -> None:
    llm = LLM(speculate="medusa", set_={"model.dtype": dtype})
    text = "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n"
    (done,) = llm.generate(text, SamplingParams(max_tokens=64, temperature=0, ignore_eos=True))
    steps = len(accepted(llm)[0])
    assert 64 / steps > 1.5 and 1 < done.drafted / steps <= llm.info["medusa_nodes"]


# -- the folder ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path: Path, model: str) -> None:
    w2 = torch.randn(2, RANKS, 64, generator=torch.Generator().manual_seed(1))
    folder = Path(write(tmp_path, model, 2, w2=w2, about={"model": "tiny"}))
    found = stored.load(folder)
    assert found.count == 2 and found.width == 64 and found.tokens is not None and found.tokens.tolist() == list(FEW)
    assert found.w2 is not None and torch.equal(found.w2, w2.bfloat16())
    assert json.loads((folder / RECORD).read_text())["model"] == "tiny"
    w1 = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    assert ((found.w1 - w1).abs() <= w1.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()
    built, proposer = drafting(model, str(folder))
    sampling = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, logit_bias=BIAS)
    tiny.run(built, [Request(id="r", prompt=np.arange(1, 9), sampling=sampling)])
    assert sum(accepted(built)[1]) > 0 and len(proposer) == 0


def test_heads_that_guess_any_token_use_the_models_own_head(tmp_path: Path, model: str) -> None:
    built, proposer = drafting(model, write(tmp_path, model, tokens=None))
    assert proposer._guess._head is built.parts.model.head
    hidden = torch.randn(3, 64)
    w1 = stored.load(tmp_path).w1
    with torch.inference_mode():
        found = proposer._guess(hidden)
    for k in range(found.shape[1]):
        x = torch.nn.functional.silu(hidden @ w1[k].T) + hidden
        logits = x @ built.parts.model.head.dense().T
        assert found[:, k].tolist() == logits.topk(found.shape[2]).indices.tolist()


def damage(folder: Path, what: str) -> None:
    record, weights = folder / RECORD, folder / WEIGHTS
    content = json.loads(record.read_text())
    if what == "no record":
        record.unlink()
    elif what == "no weights":
        weights.unlink()
    elif what == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "flipped":
        payload = bytearray(weights.read_bytes())
        payload[-50] ^= 1
        weights.write_bytes(payload)
    elif what == "no JSON":
        record.write_text(record.read_text()[:-20])
    else:
        changes: dict[str, dict[str, Any]] = {
            "version": {"version": 2},
            "width": {"width": 32},
            "accuracies": {"accuracies": content["accuracies"][:1]},
            "shares": {"accuracies": [[2.0] * RANKS] * 3},
            "vocabulary": {"vocabulary": 20},
            "no fingerprints": {"fingerprints": None},
        }
        record.write_text(json.dumps({**content, **changes[what]}))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no record", f"{RECORD}: No such file"),
        ("no weights", f"{WEIGHTS}: No such file"),
        ("cut", f"{WEIGHTS} is damaged, or not the file that"),
        ("flipped", f"{WEIGHTS} is damaged, or not the file that"),
        ("no JSON", f"{RECORD} is damaged"),
        ("version", "not the record of heads of version 1"),
        ("width", r"w1 is \[3, 64, 64\], not \[3, 32, 32\]"),
        ("accuracies", "accuracies are not 10 shares for each of 3 heads"),
        ("shares", "accuracies are not 10 shares"),
        ("vocabulary", "tokens are not ascending ids"),
        ("no fingerprints", "holds no usable heads"),
    ],
)
def test_damaged_heads_are_refused(tmp_path: Path, model: str, what: str, said: str) -> None:
    folder = write(tmp_path / "heads", model)
    damage(Path(folder), what)
    with pytest.raises(ConfigError, match=said):
        drafting(model, folder)


def test_heads_of_another_model_are_refused(tmp_path: Path, model: str, heads: str) -> None:
    other = tiny.folder(tmp_path / "other", intermediate_size=128)
    with pytest.raises(ConfigError, match=r"were trained on other weights than .*other has"):
        drafting(other, heads)
    wide = tiny.folder(tmp_path / "wide", hidden_size=128)
    with pytest.raises(ConfigError, match="they are for 64 numbers a state, it has 128"):
        drafting(wide, heads)
    many = tiny.folder(tmp_path / "many", vocab_size=300)
    with pytest.raises(ConfigError, match="they are for 256 tokens, it has 300"):
        drafting(many, heads)
    with pytest.raises(ConfigError, match="hasten train medusa --model"):
        tiny.engine(model, with_=("medusa",))
    useless = write(tmp_path / "useless", model, accuracies=((0.0,) * RANKS,) * 3)
    with pytest.raises(ConfigError, match="none of its heads was ever right"):
        drafting(model, useless)


def test_the_built_in_heads_are_small_and_the_built_in_models() -> None:
    assert sum(file.stat().st_size for file in BUILTIN_HEADS.iterdir()) < 600_000
    found = stored.load(BUILTIN_HEADS)
    for dtype in ("float32", "bfloat16"):
        assert models.fingerprint(ModelConfig(dtype=dtype)) in found.fingerprints


def test_it_is_switched_on_in_words_and_refused_in_simulations() -> None:
    from hasten.engine.executors.cost import CostModel
    from hasten.engine.executors.simulated import SimulatedModel
    from hasten.engine.simulate import simulated_engine

    config = EngineConfig.build(speculate="ngram,medusa:some/folder")
    assert config.decoding.proposers == ("prompt-lookup", "medusa")
    assert config.techniques["medusa"] == {"path": "some/folder"}
    model, costs = SimulatedModel(name="m", vocabulary=9, max_length=99), CostModel(knots=(1, 64), knot_s=(1e-3, 2e-3))
    for with_, said in (("medusa", "proposers=.*medusa"), ("typical-acceptance", "sampler=typical-acceptance")):
        with pytest.raises(ConfigError, match=f"{said}.* cannot be simulated"):
            simulated_engine(EngineConfig.build(with_=[with_]), model, costs, blocks=9)
