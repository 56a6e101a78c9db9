"""Drafts, trees, constraints and controllers in the core loop, with throw-away policies: what they guess or ask for may be
anything, the tokens must stay those of plain decoding."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.engine.fake import VOCABULARY, alone, kv_of, logits_of, make_engine
from tests.engine.test_loop import gather, request

from hasten.engine.events import Kind
from hasten.engine.request import Request, SamplingParams
from hasten.engine.sequence import Draft, Finish, Sequence


class NoisyOracle:
    """Guesses trees in which some nodes are right."""

    def __init__(self, truth: dict[tuple[str, int], list[int]], tree: bool, seed: int) -> None:
        self.truth, self.tree, self.random = truth, tree, random.Random(seed)

    def lookahead(self, sequence: Sequence) -> int:
        return self.random.randint(0, 7)

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: Any) -> list[Draft | None]:
        return [self._one(seq, budget) for seq, budget in zip(sequences, budgets, strict=True)]

    def _one(self, seq: Sequence, budget: int) -> Draft | None:
        if self.random.random() < 0.1:
            return None
        tokens: list[int] = []
        parents: list[int] = []
        for i in range(budget):
            parents.append(self.random.randint(-1, i - 1) if self.tree else i - 1)
            depth, node = 0, parents[-1]
            while node >= 0:
                depth, node = depth + 1, parents[node]
            true = self.truth[(seq.request.id, seq.index)][seq.output_length :]
            right = depth < len(true) and self.random.random() < 0.7
            tokens.append(true[depth] if right else self.random.randrange(VOCABULARY))
        return Draft(np.array(tokens, dtype=np.int32), np.array(parents, dtype=np.int32))


@settings(max_examples=40, phases=(Phase.explicit, Phase.generate))
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30), min_size=1, max_size=5),
    tree=st.booleans(),
    hot=st.booleans(),
    blocks=st.integers(14, 40),
    host=st.sampled_from([0, 30]),
    seed=st.integers(0, 999),
)
def test_drafts_change_nothing_but_the_number_of_steps(
    prompts: list[list[int]], tree: bool, hot: bool, blocks: int, host: int, seed: int
) -> None:
    made = [
        request(f"r{i}", p, max_tokens=25, seed=i, n=1 + i % 2, temperature=0.9 if hot else 0.0, presence_penalty=0.0)
        for i, p in enumerate(prompts)
    ]
    eos = frozenset({5})
    truth = {(one.id, k): answer for one in made for k, answer in enumerate(alone(one, eos=eos))}
    engine = make_engine(blocks=blocks, host_blocks=host, eos=eos, seed=seed, proposer=NoisyOracle(truth, tree, seed))
    for one in made:
        engine.add(one)
    out = []
    while engine.unfinished:
        out += engine.step()
        engine.ledger.audit()
    for one in made:
        got = gather(out)[one.id]
        assert [got[k] for k in sorted(got)] == [truth[(one.id, k)] for k in sorted(got)]
    assert engine.ledger.books.available == blocks


def test_drafts_save_steps() -> None:
    one = request("r", [1, 2, 3], max_tokens=40)
    truth = {("r", 0): alone(one)[0]}
    engine = make_engine(proposer=NoisyOracle(truth, True, 1))
    engine.add(one)
    assert list(gather(engine.run())["r"].values()) == [truth[("r", 0)]]
    assert engine.executor.steps < 25
    assert engine.events.counts[Kind.DRAFTED] > 0


@pytest.mark.parametrize("seed", range(8))
def test_a_prompt_that_splits_shares_no_guesses(seed: int) -> None:
    """The prompt's last token is left for a step of its own, which drafts might follow as they follow a decoded one."""
    one = request("r", list(range(17)), max_tokens=20, n=3)
    truth = {("r", k): answer for k, answer in enumerate(alone(one))}
    engine = make_engine(tokens=16, proposer=NoisyOracle(truth, True, seed))
    engine.add(one)
    got = gather(engine.run())["r"]
    assert [got[k] for k in sorted(got)] == [truth[("r", k)] for k in range(3)]


class Even:
    """A grammar: even tokens only, and after a 4 only an 8."""

    def __init__(self, history: tuple[int, ...] = ()) -> None:
        self.history = history

    def prepare(self, request: Request) -> None:
        pass

    def start(self, request: Request) -> Even:
        if request.sampling.constraint != "even":
            raise ValueError(f"unknown grammar {request.sampling.constraint!r}")
        return Even()

    def _legal(self, token: int) -> bool:
        return token == 8 if self.history[-1:] == (4,) else token % 2 == 0

    def fill(self, mask: np.ndarray) -> None:
        mask[:] = 0
        for token in filter(self._legal, range(VOCABULARY)):
            mask[token // 32] |= np.int32(np.uint32(1 << (token % 32)).view(np.int32))

    def advance(self, token: int) -> None:
        if not self._legal(token):
            raise ValueError(f"{token} is not legal")
        self.history += (token,)

    def fork(self) -> Even:
        return Even(self.history)


@pytest.mark.parametrize("drafts", [False, True])
def test_constraints_hold_with_and_without_drafts(drafts: bool) -> None:
    def run(proposer: Any) -> list[list[int]]:
        engine = make_engine(constraint=Even(), proposer=proposer)
        engine.add(request("r", [3, 1], max_tokens=30, n=2, temperature=1.0, constraint="even"))
        engine.add(request("bad", [3], max_tokens=3, constraint="odd"))
        out = engine.run()
        assert [d.finish for d in out if d.request_id == "bad"] == ["error"]
        return list(gather(out)["r"].values())

    plain = run(None)
    for tokens in plain:
        assert all(t % 2 == 0 for t in tokens)
        assert all(b == 8 for a, b in pairwise(tokens) if a == 4)
    if drafts:
        assert run(NoisyOracle({("r", k): t for k, t in enumerate(plain)}, True, 3)) == plain


class ForkAndJoin:
    """Forks after 3 tokens, joins the two after 6, ends everything 4 tokens later."""

    taps: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.joined: Sequence | None = None
        self.facts: dict[str, Any] = {}

    def on_commit(self, committed: Seq[tuple[Sequence, int]], result: Any, actions: Any) -> None:
        by_index = {seq.index: seq for seq, _ in committed}
        first = by_index.get(0)
        if first is not None and first.output_length == 3:
            (child,) = actions.fork(first, 1)
            actions.inject(child, [21])
        elif first is not None and first.output_length == 6 and self.joined is None:
            paths = [first, by_index[1]]
            self.facts = {"tokens": [p.tokens.tolist() for p in paths], "entries": [p.view.length for p in paths]}
            self.joined = actions.join(paths, [22, 23])
            for path in paths:
                actions.finish(path)
        elif self.joined is not None and self.joined.length >= 24:
            actions.finish(self.joined, Finish.STOP)


def test_a_controller_forks_injects_joins_and_finishes() -> None:
    controller = ForkAndJoin()
    engine = make_engine(controller=controller)
    one = request("r", [1, 2, 3, 4, 5], max_tokens=100)
    engine.add(one)
    steps, out = 0, []
    while engine.unfinished and steps < 60:
        out += engine.step()
        engine.ledger.audit()
        steps += 1
    got = gather(out)["r"]
    assert got[0] == alone(one)[0][:6]
    forked = request("f", [*one.prompt.tolist(), *got[0][:3], 21], max_tokens=12)
    assert got[1][:1] == [21] and got[1][1:] == alone(forked)[0][: len(got[1]) - 1]
    assert got[2][:2] == [22, 23] and len(got[2]) > 2
    assert got[2][2] == joined_token(controller.facts, [22, 23])


def test_a_fork_of_joined_paths_is_not_recomputed_either() -> None:
    """Running its tokens in a row would give other KV, and so other tokens."""
    controller = ForkAndJoin()
    engine = make_engine(controller=controller)
    engine.add(request("r", [1, 2, 3, 4, 5], max_tokens=100))
    while controller.joined is None:
        engine.step()
    (child,) = engine.control.fork(controller.joined, 1)
    assert not engine.ledger.drop(child)
    engine.run()
    engine.ledger.audit()


def joined_token(facts: dict[str, Any], go_on: list[int]) -> int:
    """The first token after a join, from the definition: keys of both paths, each at its own position."""
    common = 5 + 3  # the prompt and the tokens before the fork, read once
    chains = []
    for tokens, entries in zip(facts["tokens"], facts["entries"], strict=True):
        chain: list[int] = []
        seen = 0
        for position, token in enumerate(tokens[:entries]):
            chain.append(kv_of(token, position, seen))
            seen = (seen + mix_at(chain[-1], position)) & (2**64 - 1)
        chains.append(chain)
    keys = list(enumerate(chains[0])) + list(enumerate(chains[1]))[common:]
    start = max(len(tokens) for tokens in facts["tokens"])
    for i, token in enumerate(go_on):
        position = start + i
        seen = sum(mix_at(kv, p) for p, kv in keys if p < position) & (2**64 - 1)
        keys.append((position, kv_of(token, position, seen)))
    return int(logits_of(keys[-1][1]).argmax())


def mix_at(kv: int, position: int) -> int:
    from hasten.engine.rng import mix

    return mix(kv, position)


def test_partial_prefill_computes_any_subset_of_positions() -> None:
    """KV of a middle range is recomputed into a view shared with another sequence: copied on write, nobody else sees it."""
    engine = make_engine(reuse=False)
    one = request("r", list(range(1, 30)), max_tokens=4, n=2)
    engine.add(one)
    engine.step()
    engine.step()
    first, second = list(engine.ledger.sequences.values())
    before = [engine.executor.kv[s] for s in second.view.slots(np.arange(20), 8)]
    for slot in first.view.slots(np.arange(10, 14), 8):
        assert engine.ledger.books.pool.refs[slot // 8] == 2
    first.todo = [(10, 14), *first.todo]
    out = engine.step()
    engine.ledger.audit()
    assert [engine.executor.kv[s] for s in second.view.slots(np.arange(20), 8)] == before
    assert [engine.executor.kv[s] for s in first.view.slots(np.arange(20), 8)] == before, "the same tokens give the same KV"
    assert first.view.slots(np.arange(10, 11), 8)[0] != second.view.slots(np.arange(10, 11), 8)[0]
    out += engine.run()
    assert SamplingParams().n == 1 and engine.ledger.books.available == engine.ledger.books.pool.blocks
