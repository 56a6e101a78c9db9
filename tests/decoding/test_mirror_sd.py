"""Drafting beside verification: the tokens are the plain engine's, whatever lands where, whoever dies."""

from __future__ import annotations

import json
import random
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from tests.decoding.test_draft_model import EXACT, HALF_BLOCK_BYTES, SCHEMA, accepted, check, sequence
from tests.engine import tiny
from tests.engine.test_exactness import answers, mixed_requests

from hasten import LLM, SamplingParams
from hasten.engine.config import EngineConfig
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.decoding.draft_model import DraftModel
from hasten.engine.decoding.drafts.aside import Rollout
from hasten.engine.decoding.drafts.landing import WEIGHT, landings, of_both, of_exit
from hasten.engine.decoding.mirror_sd import MirrorSD
from hasten.engine.events import Kind
from hasten.engine.executors.local import Look
from hasten.engine.request import Request
from hasten.engine.technique import ConfigError
from hasten.kernels.cpu import native

pytestmark = pytest.mark.skipif(not native.available(), reason="no native library is built (make native)")
THREAD = "hasten-mirror"


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.engine.build.physical_cores", lambda: 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("served"), num_hidden_layers=4)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first layer of the same weights: right now and then."""
    return tiny.folder(tmp_path_factory.mktemp("half"), num_hidden_layers=1)


def mirroring(model: str, draft: str, knobs: str = "", with_: tuple[str, ...] = (), **settings: Any) -> tuple[Any, MirrorSD]:
    built = tiny.engine(model, with_=(f"mirror-sd:model={draft}{knobs}", *with_), **{**EXACT, **settings})
    proposer = built.engine.decoding.proposer
    assert isinstance(proposer, MirrorSD)
    return built, proposer


def settled(built: Any, proposer: MirrorSD) -> None:
    """Nothing is left of anybody."""
    built.engine.ledger.audit()
    proposer.twins.audit()
    assert len(proposer.twins) == 0 and not proposer.twins._branches and proposer._rollout is None
    assert proposer.second.books.available == proposer.second.memory.blocks


def running() -> set[threading.Thread]:
    """Those of this test, and of earlier ones whose engines nobody closed."""
    return {thread for thread in threading.enumerate() if thread.name == THREAD}


def one(tokens: int = 80, **sampling: Any) -> Request:
    params = SamplingParams(**{"max_tokens": tokens, "temperature": 0.0, "seed": 1, "ignore_eos": True, **sampling})
    return Request(id="r", prompt=np.arange(1, 30), sampling=params)


# -- the served tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs",
    [
        "",
        ":length=6:branches=8:exit=3:sequences=8:shortlist=0",
        ":stream=3:branches=4:sequences=2",
        ":share=false:chunk=10",
        ":exit=0:branches=6:length=5:afresh=2",
        f":memory_bytes={9 * HALF_BLOCK_BYTES}",
    ],
)
def test_mirroring_changes_no_token_and_no_logprob(model: str, half: str, knobs: str) -> None:
    """With penalties, bias, filters, n > 1, prompt log-probabilities, the prefix cache, chunks, preemption and swapping."""
    plain = tiny.engine(model, kv__reuse=None, scheduling__max_rows=1, **EXACT)
    alone: dict[Any, Any] = {}
    for request in mixed_requests():
        alone.update(answers(plain, [request]))
    moved = {Kind.PREEMPTED: 0, Kind.SWAPPED: 0}
    for blocks, host in ((14, 0), (17, 1 << 20), (23, 0)):
        built, proposer = mirroring(
            model,
            half,
            knobs,
            ("stall-free:chunk=23", "newest-yields:swap_from=1"),
            kv__memory_bytes=blocks * 4 * HALF_BLOCK_BYTES,
            kv__host_bytes=host,
            scheduling__max_tokens=60,
        )
        for _ in range(2):  # the second time prompts are cached
            assert answers(built, mixed_requests()) == alone
            settled(built, proposer)
        counts = built.engine.events.counts
        assert counts[Kind.REUSED] and proposer.serial is None
        for kind in moved:
            moved[kind] += counts[kind]
        if "memory" not in knobs:
            assert proposer.counts["rollouts"] > 10 and sum(accepted(built)[1]) > 0
        built.engine.executor.close()
    assert all(moved.values()), "memory was not short"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("stream", [0, 2])
def test_what_was_rolled_out_is_the_next_draft(model: str, temperature: float, stream: int) -> None:
    """A draft equal to the served model is always right: afresh, and where it was rolled out before its time."""
    plain = tiny.engine(model, **EXACT)
    built, proposer = mirroring(model, model, f":length=3:branches=32:exit=3:stream={stream}:shortlist=0")
    request = one(temperature=temperature, repetition_penalty=1.1)
    got = tiny.run(built, [request])
    assert {key: tiny.tokens(d) for key, d in got.items()} == {
        key: tiny.tokens(d) for key, d in tiny.run(plain, [request]).items()
    }
    drafted, right = accepted(built)
    assert drafted == right and sum(right) > 50
    assert proposer.counts["hits"] >= 5, "drafts came from branches"
    settled(built, proposer)


@pytest.mark.parametrize("seed", range(3))
def test_the_drafts_kv_is_what_a_fresh_pass_computes(model: str, half: str, seed: int) -> None:
    """After every draft, whether its sequence's twin is the old one or a branch that won."""
    built, proposer = mirroring(model, half, f":length=3:branches=12:exit=3:stream={seed}", kv__memory_bytes=1 << 19)
    other = tiny.engine(model, with_=(f"draft-model:model={half}",), **EXACT).engine.decoding.proposer
    assert isinstance(other, DraftModel)
    propose = proposer.propose

    def checked(sequences: Any, *rest: Any) -> Any:
        drafts = propose(sequences, *rest)
        check(proposer, other, list(sequences))
        return drafts

    proposer.propose = checked  # type: ignore[method-assign]
    rng = random.Random(seed)
    requests = [
        Request(
            id=f"r{i}",
            prompt=np.array([rng.randrange(1, 256) for _ in range(rng.randint(1, 60))]),
            sampling=SamplingParams(max_tokens=40, temperature=0.7 * (i % 2), seed=i, n=1 + i % 2, ignore_eos=True),
        )
        for i in range(3)
    ]
    tiny.run(built, requests)
    assert proposer.counts["hits"] and proposer.counts["misses"]
    settled(built, proposer)


def test_grammars_hold_and_change_nothing() -> None:
    asked = [[{"role": "user", "content": f"Order {n} apples for {who}."}] for n in (1, 2) for who in ("Nina", "Omar")]
    constraint = ConstraintSpec.of_schema(SCHEMA, whitespace="compact", order="schema")
    texts = []
    for side, memory in (((), None), (("mirror-sd:sequences=8",), 500_000)):
        llm = LLM(
            with_=side,
            set_={"model.dtype": "float32", "executor.deterministic": True, "kv.memory_bytes": memory, "executor.threads": 2},
        )
        done = [
            llm.chat(
                asked,
                SamplingParams(max_tokens=80, temperature=heat, seed=3, n=n, constraint=constraint, repetition_penalty=1.1),
            )
            for heat, n in ((0.0, 1), (1.0, 2))
        ]
        texts.append([choice.text for answer in done for one in answer for choice in one.choices])
    assert texts[0] == texts[1]
    assert all(list(json.loads(text)) == SCHEMA["required"] for text in texts[0])
    proposer: Any = llm.engine.decoding.proposer
    assert llm.engine.events.counts[Kind.PREEMPTED] and proposer.counts["hits"] > 5
    proposer.twins.audit()
    assert len(proposer.twins) == 0
    llm.engine.executor.close()


# -- trouble ------------------------------------------------------------------------------------------------------------


def test_cancelled_requests_leave_nothing(model: str, half: str) -> None:
    rng = random.Random(0)
    built, proposer = mirroring(model, half, ":length=3:sequences=8", kv__memory_bytes=20 * 4 * HALF_BLOCK_BYTES)
    plain = tiny.engine(model, **EXACT)
    requests = [
        Request(
            id=f"r{i}",
            prompt=np.array([rng.randrange(1, 256) for _ in range(rng.randint(1, 60))]),
            sampling=SamplingParams(max_tokens=30, temperature=0.5, seed=i, n=rng.randint(1, 3)),
        )
        for i in range(8)
    ]
    want = tiny.run(plain, requests)
    for request in requests:
        built.engine.add(request)
    gone: set[str] = set()
    got: dict[tuple[str, int], list[int]] = {}
    while built.engine.unfinished:
        for delta in built.engine.step():
            got.setdefault((delta.request_id, delta.index), []).extend(delta.tokens)
        if rng.random() < 0.1:
            chosen = f"r{rng.randrange(8)}"
            gone.add(chosen)
            built.engine.cancel(chosen)
    for key, deltas in want.items():
        if key[0] not in gone:
            assert got[key] == tiny.tokens(deltas)
    settled(built, proposer)


def ends(self: Rollout) -> None:
    sys.exit()


def fails(self: Rollout) -> None:
    self._drafter.draft(self.lines[:1])
    self.failure = RuntimeError("the draft broke")
    self._over.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("dies", [ends, fails])
def test_when_the_thread_dies_drafts_are_made_serially(
    model: str, half: str, dies: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny.engine(model, **EXACT)
    built, proposer = mirroring(model, half, ":length=3")
    built.engine.add(one())
    tokens: list[int] = []
    while built.engine.unfinished:
        tokens += [token for delta in built.engine.step() for token in delta.tokens]
        if proposer.counts["rollouts"] == 4:
            monkeypatch.setattr(Rollout, "run", dies)
    assert tokens == tiny.tokens(tiny.run(plain, [one()])[("r", 0)])
    assert proposer.serial is not None and "drafting aside failed" in proposer.serial
    assert proposer.counts["rollouts"] in (4, 5) and len(accepted(built)[0]) > 10
    assert sum(count for name, count in proposer.counts.items() if name.startswith("serial")) > 5
    settled(built, proposer)
    built.engine.executor.close()


def test_an_exit_that_fails_fails_no_step(model: str, half: str) -> None:
    plain = tiny.engine(model, **EXACT)
    built, proposer = mirroring(model, half)

    def broken(*asked: Any) -> Any:
        raise RuntimeError("no idea")

    proposer.guess = broken
    assert tiny.tokens(tiny.run(built, [one()])[("r", 0)]) == tiny.tokens(tiny.run(plain, [one()])[("r", 0)])
    assert proposer.serial == "the exit failed: no idea" and proposer.counts["rollouts"] == 0
    settled(built, proposer)


def test_with_one_core_it_is_a_draft_model(model: str, half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = running()
    built, proposer = mirroring(model, half, executor__threads=1)
    serial = tiny.engine(model, with_=(f"draft-model:model={half}",), **EXACT)
    assert tiny.run(built, [one()]).keys() == tiny.run(serial, [one()]).keys()
    assert accepted(built) == accepted(serial)
    assert proposer.serial == "there is no second core" and built.info["mirror_serial"] == proposer.serial
    assert proposer.counts["serial: there is no second core"] > 10 and running() <= threads
    monkeypatch.setattr("hasten.engine.build.physical_cores", lambda: 1)
    assert mirroring(model, half, executor__threads=2)[1].serial == "there is no second core"


def test_many_sequences_draft_serially(model: str, half: str) -> None:
    built, proposer = mirroring(model, half, ":sequences=2")
    requests = [Request(id=f"r{i}", prompt=np.arange(i + 1, i + 9), sampling=one(30 + 20 * i).sampling) for i in range(4)]
    tiny.run(built, requests)
    assert proposer.counts["serial: many sequences"] > 5, "while three or four were there"
    assert proposer.counts["rollouts"] > 5, "when two were left"
    settled(built, proposer)


def test_closing_ends_the_thread(model: str, half: str) -> None:
    threads = running()
    built, proposer = mirroring(model, half)
    built.engine.add(one())
    while not proposer.counts["rollouts"]:
        built.engine.step()
    (mine,) = running() - threads
    built.engine.executor.close()  # with a rollout under way
    assert not mine.is_alive() and proposer._rollout is None
    proposer.twins.audit()


# -- its parts ----------------------------------------------------------------------------------------------------------


def test_a_look_at_a_pass_changes_nothing_and_sees_the_same_recorded_or_not(model: str) -> None:
    seen: list[list[tuple[int, np.ndarray]]] = []
    out = []
    for watched, native_ in ((False, True), (True, True), (True, False)):
        built = tiny.engine(model, executor__native=native_, model__dtype="bfloat16")
        looks: list[tuple[int, np.ndarray]] = []

        def watcher(look: Look, looks: list[tuple[int, np.ndarray]] = looks) -> None:
            looks.append((look.done, look.logits(range(len(look.batch.logits_rows)), None).float().numpy()))

        if watched:
            built.parts.executor.watch(watcher, (0, 1, 3, 4))  # type: ignore[union-attr]
        seen.append(looks)
        out.append(tiny.tokens(tiny.run(built, [one(12)])[("r", 0)]))
    assert out[0] == out[1] == out[2]
    assert [done for done, _ in seen[1]] == [0, 1, 3, 4] * 12 == [done for done, _ in seen[2]]
    for (_, one_), (_, other) in zip(seen[1], seen[2], strict=True):
        np.testing.assert_array_equal(one_, other)
    assert [int(logits.argmax()) for done, logits in seen[1] if done == 4] == out[0], "after the last block it is the answer"


def test_landings_are_ranked_by_their_chances() -> None:
    logits = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.2, 0.55, 0.25, 0.0], [0.25, 0.25, 0.1, 0.4]]).clamp(min=1e-9).log()
    chances = of_exit(logits, [0, 1], 3)
    # 0.3 that the first is not accepted; 0.6 * 0.25 that the second is not; 0.6 * 0.55 * 0.4 that both are
    assert landings(chances, [0, 1], [-1] * 3, 3, 0.0) == [(0, 1), (1, 2), (2, 3)]
    assert landings(chances, [0, 1], [0, 1, 2], 3, 0.9)[0] == (2, 2), "what the random numbers draw counts for most"
    assert landings(of_exit(logits[:1], [], 2), [], [-1], 2, 0.0) == [(0, 0), (0, 1)], "nothing was drafted"


def test_what_draft_and_exit_say_is_multiplied() -> None:
    said = torch.tensor([[0.5, 0.2, 0.3]]).log()  # of tokens 4, 7 and 9
    (row,) = of_both(said, [4, 7, 9], [[(4, -1.0), (9, -1.0)]])
    equal, more = 1.0, (0.5 / 0.3) ** WEIGHT
    assert row == pytest.approx({4: more / (more + equal), 9: equal / (more + equal)}, rel=1e-4)


def test_streams_draft_the_same_in_fewer_passes(model: str) -> None:
    """Greedy text of a random model soon repeats itself."""
    drafts, passes = [], []
    for stream in (0, 3):
        _, proposer = mirroring(model, model, f":length=8:stream={stream}", kv__reuse=None)
        made = []
        for number in range(3):
            prompt = np.arange(number + 1, number + 9)
            seq = sequence(number, [], Request(id=f"r{number}", prompt=prompt, sampling=SamplingParams(temperature=0.0)))
            seq.commit([1])
            for _ in range(30):
                (draft,) = proposer.propose([seq], [8], None)
                assert draft is not None
                made.append(draft.tokens.tolist())
                seq.commit(draft.tokens.tolist())
            proposer.twins.audit()
            proposer.twins.forget(number)
        drafts.append(made)
        passes.append(proposer._drafter.passes)
        assert proposer.second.books.available == proposer.second.memory.blocks
    assert drafts[0] == drafts[1]
    assert passes[1] < passes[0]


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("with_", "said"),
    [
        (("mirror-sd",), "mirror-sd: which model drafts for"),
        (("mirror-sd:model=M:exit=4",), "exit=4 leaves nothing to hide behind; the model has 4 blocks"),
        (("mirror-sd:model=M:exit=-1",), "exit"),
        (("mirror-sd:model=M:exit=0:shortlist=0",), "shortlist=0 keeps none"),
        (("mirror-sd:model=M:branches=0",), "branches"),
        (("mirror-sd:model=M:memory_bytes=100",), "mirror-sd: memory_bytes=100 holds no block"),
        (("mirror-sd:model=M", "draft-model:model=M"), "cannot run together: both load a draft model"),
    ],
)
def test_what_cannot_be_is_refused(model: str, with_: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny.engine(model, with_=tuple(name.replace("=M", f"={model}") for name in with_))


def test_its_word() -> None:
    config = EngineConfig.build(speculate="mirror:some/model")
    assert config.decoding.proposers == ("mirror-sd",) and config.techniques["mirror-sd"]["model"] == "some/model"
