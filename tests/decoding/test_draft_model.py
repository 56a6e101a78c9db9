"""A draft model: the tokens are the plain engine's, its KV is what a fresh pass computes, its books balance."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine import tiny
from tests.engine.test_exactness import answers, mixed_requests

from hasten import LLM, SamplingParams
from hasten.engine.batch import BatchBuilder
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.decoding.draft_model import DraftModel
from hasten.engine.decoding.drafts.twins import Twins
from hasten.engine.events import Kind
from hasten.engine.kv.base import ReuseKey
from hasten.engine.kv.view import View
from hasten.engine.request import Request
from hasten.engine.sequence import Draft, Sequence, Span
from hasten.engine.technique import ConfigError

BLOCK = 16
HALF_BLOCK_BYTES = BLOCK * 2 * 2 * 16 * 4
"""Of one layer: slots, keys and values, heads, dimensions, bytes."""
EXACT: dict[str, Any] = {"executor__deterministic": True, "kv__block_size": BLOCK}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first layer of the same weights: right now and then."""
    return tiny.folder(tmp_path_factory.mktemp("half"), num_hidden_layers=1)


def drafting(model: str, draft: str, knobs: str = "", with_: tuple[str, ...] = (), **settings: Any) -> tuple[Any, DraftModel]:
    built = tiny.engine(model, with_=(f"draft-model:model={draft}{knobs}", *with_), **{**EXACT, **settings})
    proposer = built.engine.decoding.proposer
    assert isinstance(proposer, DraftModel)
    return built, proposer


def settled(built: Any, proposer: DraftModel) -> None:
    """Nothing is left of anybody."""
    built.engine.ledger.audit()
    proposer.twins.audit()
    assert len(proposer.twins) == 0
    assert proposer.second.books.available == proposer.second.memory.blocks


def accepted(built: Any) -> tuple[list[int], list[int]]:
    """Tokens drafted and accepted, draft by draft."""
    columns = built.engine.events.columns()
    drafts = columns["kind"] == Kind.DRAFTED
    return columns["a"][drafts].astype(int).tolist(), columns["b"][drafts].astype(int).tolist()


# -- the draft's KV -----------------------------------------------------------------------------------------------------


def sequence(id: int, tokens: list[int], request: Request | None = None) -> Sequence:
    request = request or Request(id=f"r{id}", prompt=np.array(tokens), sampling=SamplingParams(temperature=0.8, seed=id))
    return Sequence(id, request, 0, id, ReuseKey("served"), 0.0)


def kv_at(proposer: DraftModel, view: View) -> np.ndarray:
    """Keys and values of every entry, of all layers."""
    second = proposer.second
    size = second.memory.block_size
    slots = torch.from_numpy(view.slots(np.arange(view.length), size))
    found = [plane for site in second.model.sites for plane in site.form.read(site.planes, slots, size)]
    return np.concatenate([plane.reshape(view.length, -1).numpy() for plane in found], axis=1)


def fresh_kv(proposer: DraftModel, tokens: list[int]) -> np.ndarray:
    """Of these tokens, computed at once in another pool."""
    second, alone = proposer.second, sequence(10_000, tokens)
    slots = second.books.append(alone.view, alone.positions)
    span = Span(alone, alone.length, alone.tokens, alone.positions, alone.segments, slots)
    second.executor.submit(BatchBuilder().build([span])).wait()
    kv = kv_at(proposer, alone.view)
    second.books.close(alone.view)
    return kv


def check(proposer: DraftModel, other: DraftModel, live: list[Sequence]) -> None:
    proposer.twins.audit()
    for seq in live:
        twin = proposer.twins._twins.get(seq.id)
        if twin is not None and twin.view.length:
            fresh = fresh_kv(other, twin.tokens[: twin.view.length].tolist())
            np.testing.assert_allclose(kv_at(proposer, twin.view), fresh, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_the_drafts_kv_is_what_a_fresh_pass_computes(model: str, half: str, seed: int) -> None:
    """Over random histories of drafts accepted and not, of steps without drafts, forks, ends and pools of any size."""
    rng = random.Random(seed)
    blocks, reuse = rng.choice([9, 14, 60]), rng.choice([None, "prefix-tree"])
    knobs = f":length={rng.randint(1, 5)}:chunk={rng.choice([5, 40])}:memory_bytes={blocks * HALF_BLOCK_BYTES}"
    _, proposer = drafting(model, half, knobs, kv__reuse=reuse)
    _, other = drafting(model, half)
    shared = [rng.randrange(1, 256) for _ in range(40)]
    live: list[Sequence] = []
    drafted = 0
    for number in range(60):
        if len(live) < 5 and rng.random() < 0.4:
            live.append(
                sequence(number, shared[: rng.randint(0, 40)] + [rng.randrange(1, 256) for _ in range(rng.randint(1, 30))])
            )
        if live and rng.random() < 0.1:
            ended = live.pop(rng.randrange(len(live)))
            proposer.twins.forget(ended.id)
        if live and rng.random() < 0.1:
            parent = rng.choice(live)
            child = sequence(1000 + number, [], parent.request)
            child.take_after(parent)
            proposer.twins.fork(parent.id, child.id)
            live.append(child)
        asked = [seq for seq in live if rng.random() < 0.8]  # whoever is preempted is not asked for
        wanted = [(seq, proposer.lookahead(seq)) for seq in asked]
        wanted = [(seq, rng.randint(1, most)) for seq, most in wanted if most]
        drafts = proposer.propose([seq for seq, _ in wanted], [most for _, most in wanted], None)
        check(proposer, other, live)
        for (seq, most), draft in zip(wanted, drafts, strict=True):
            guessed = draft.tokens.tolist() if draft is not None else []
            assert len(guessed) <= most
            drafted += len(guessed)
            seq.commit([*guessed[: rng.randint(0, len(guessed))], rng.choice([*guessed, rng.randrange(1, 256)])])
        for seq in live:
            if rng.random() < 0.1:
                seq.commit([rng.randrange(1, 256) for _ in range(rng.randint(1, 9))])
    for seq in live:
        proposer.twins.forget(seq.id)
    proposer.twins.audit()
    assert drafted and len(proposer.twins) == 0
    assert proposer.second.books.available == blocks


# -- the served tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", ["", ":length=7:chunk=10", ":length=3:branches=3", f":memory_bytes={5 * HALF_BLOCK_BYTES}"])
def test_drafts_change_no_token_and_no_logprob(model: str, half: str, knobs: str) -> None:
    """With penalties, bias, filters, n > 1, prompt log-probabilities, the prefix cache, chunks, preemption and swapping."""
    plain = tiny.engine(model, kv__reuse=None, scheduling__max_rows=1, **EXACT)
    alone: dict[Any, Any] = {}
    for request in mixed_requests():
        alone.update(answers(plain, [request]))
    moved = {Kind.PREEMPTED: 0, Kind.SWAPPED: 0}
    for blocks, host in ((14, 0), (17, 1 << 20), (23, 0), (26, 1 << 20)):
        built, proposer = drafting(
            model,
            half,
            knobs,
            ("stall-free:chunk=23", "newest-yields:swap_from=1"),
            kv__memory_bytes=blocks * 2 * HALF_BLOCK_BYTES,
            kv__host_bytes=host,
            scheduling__max_tokens=60,
        )
        for _ in range(2):  # the second time prompts are cached
            assert answers(built, mixed_requests()) == alone
            settled(built, proposer)
        counts = built.engine.events.counts
        assert counts[Kind.REUSED]
        for kind in moved:
            moved[kind] += counts[kind]
        if "memory" not in knobs:
            assert sum(accepted(built)[1]) > 0
    assert all(moved.values()), "memory was not short"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_equal_to_the_served_model_is_always_right(model: str, temperature: float) -> None:
    """Also where it draws: with the same random numbers, from the same distribution."""
    built, proposer = drafting(model, model, ":length=5")
    sampling = SamplingParams(
        max_tokens=40, temperature=temperature, seed=1, n=2, top_p=0.9, repetition_penalty=1.2, ignore_eos=True
    )
    prompts = [np.arange(1, 30), np.arange(40, 50), np.arange(3, 90)]
    requests = [Request(id=f"r{i}", prompt=prompt, sampling=sampling) for i, prompt in enumerate(prompts)]
    tiny.run(built, requests)
    drafted, right = accepted(built)
    assert drafted == right and sum(right) > 180
    settled(built, proposer)


def test_text_that_may_end_ends_its_draft(model: str) -> None:
    built, proposer = drafting(model, model, ":length=5")
    sampling = SamplingParams(max_tokens=60, temperature=1.0, seed=1, stop_token_ids=tuple(range(100, 256)), n=8)
    tiny.run(built, [Request(id="r", prompt=np.arange(1, 30), sampling=sampling)])
    drafted, right = accepted(built)
    assert drafted == right and drafted
    settled(built, proposer)


SCHEMA = {
    "type": "object",
    "properties": {
        "customer": {"type": "string", "maxLength": 20},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
        "express": {"type": "boolean"},
    },
    "required": ["customer", "count", "express"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("with_", [(), ("forced-tokens",)])
def test_grammars_hold_and_change_nothing(with_: tuple[str, ...]) -> None:
    """The draft is drawn under the grammar too: nothing of it is lost to that."""
    asked = [[{"role": "user", "content": f"Order {n} apples for {who}."}] for n in (1, 2) for who in ("Nina", "Omar")]
    constraint = ConstraintSpec.of_schema(SCHEMA, whitespace="compact", order="schema")
    texts = []
    for side, memory in ((with_, None), ((*with_, "draft-model"), 500_000)):
        llm = LLM(with_=side, set_={"model.dtype": "float32", "executor.deterministic": True, "kv.memory_bytes": memory})
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
    assert llm.engine.events.counts[Kind.PREEMPTED] and sum(accepted(llm)[1]) > 50
    asked: Any = llm.engine.decoding.proposer
    (proposer,) = (one for one in getattr(asked, "_proposers", [asked]) if isinstance(one, DraftModel))
    assert len(proposer.twins) == 0
    proposer.twins.audit()


# -- prompts, memory, trouble -------------------------------------------------------------------------------------------


def sizes(proposer: DraftModel) -> list[int]:
    """Tokens of every pass of the draft from now on."""
    found: list[int] = []
    submit = proposer.second.executor.submit

    def counted(batch: Any, *rest: Any) -> Any:
        found.append(batch.size)
        return submit(batch, *rest)

    proposer.second.executor.submit = counted  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("chunk", [20, 2000])
def test_prompts_are_computed_in_chunks_and_once_for_all_samples(model: str, half: str, chunk: int) -> None:
    built, proposer = drafting(model, half, f":length=3:chunk={chunk}")
    passes = sizes(proposer)
    sampling = SamplingParams(max_tokens=40, temperature=1.0, seed=1, n=6, ignore_eos=True)

    def computed(id: str, tenant: str) -> int:
        passes.clear()
        tiny.run(built, [Request(id=id, prompt=np.arange(1, 201), sampling=sampling, tenant=tenant)])
        assert max(passes) <= min(chunk, 201) + 6 * (3 + 1)
        return sum(passes)

    first, again, other = computed("r", "one"), computed("again", "one"), computed("other", "two")
    going_on = 6 * 40 * 4
    assert first <= 250 + going_on, "the prompt was computed more than once"
    assert again <= first - 150, "it was cached"
    assert other >= again + 150, "what one tenant computed is not another's"
    settled(built, proposer)


def test_a_long_prompt_leaves_those_that_draft_alone(model: str) -> None:
    built, proposer = drafting(model, model, ":length=4:chunk=8")
    short = Request(id="s", prompt=np.arange(1, 5), sampling=SamplingParams(max_tokens=200, temperature=0, ignore_eos=True))
    long = Request(id="l", prompt=np.arange(1, 250), sampling=SamplingParams(max_tokens=40, temperature=0, ignore_eos=True))
    built.engine.add(short)
    while not accepted(built)[0]:
        built.engine.step()
    built.engine.add(long)
    first = len(accepted(built)[0])
    for _ in range(20):
        built.engine.step()
    assert accepted(built)[0][first:] == [4] * 20, "one draft a step: the short one's"
    built.engine.run()
    settled(built, proposer)


def test_memory_goes_to_the_first_and_comes_back(model: str) -> None:
    """Five blocks hold one sequence and a bit: the others wait, nobody takes turns computing prompts in vain."""
    built, proposer = drafting(model, model, f":length=4:chunk=8:memory_bytes={5 * 2 * HALF_BLOCK_BYTES}", kv__reuse=None)
    passes = sizes(proposer)
    sampling = SamplingParams(max_tokens=50, temperature=0, ignore_eos=True)
    prompts = [[*range(9 * i + 1, 9 * i + 25)] for i in range(4)]
    tiny.run(built, [Request(id=f"r{i}", prompt=np.array(prompt), sampling=sampling) for i, prompt in enumerate(prompts)])
    drafted, right = accepted(built)
    assert drafted == right and sum(drafted) >= 8
    assert sum(passes) < 330, "prompts were computed for which there was no room"
    settled(built, proposer)
    too_long = Request(id="long", prompt=np.arange(1, 80), sampling=sampling)
    before = len(drafted)
    tiny.run(built, [too_long])
    assert len(accepted(built)[0]) == before and settled(built, proposer) is None


@pytest.mark.parametrize("seed", range(4))
def test_cancelled_and_failed_requests_leave_nothing(model: str, half: str, seed: int) -> None:
    rng = random.Random(seed)
    built, proposer = drafting(model, half, ":length=3", kv__memory_bytes=20 * 2 * HALF_BLOCK_BYTES)
    submit = proposer.second.executor.submit

    def failing(batch: Any, *rest: Any) -> Any:
        if rng.random() < 0.1:
            raise RuntimeError("the draft broke")
        return submit(batch, *rest)

    proposer.second.executor.submit = failing  # type: ignore[method-assign]
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
        proposer.twins.audit()
        if rng.random() < 0.05:
            chosen = f"r{rng.randrange(8)}"
            gone.add(chosen)
            built.engine.cancel(chosen)
    for key, deltas in want.items():
        if key[0] not in gone:
            assert got[key] == tiny.tokens(deltas)
    settled(built, proposer)


def test_after_a_failure_the_drafts_kv_is_not_trusted(model: str) -> None:
    _, proposer = drafting(model, model, ":length=3", kv__reuse=None)
    seq = sequence(1, [*range(1, 41)])
    seq.commit([7])
    (before,) = proposer.propose([seq], [3], None)
    submit = proposer.second.executor.submit

    def failing(batch: Any, *rest: Any) -> Any:
        raise RuntimeError("the draft broke")

    proposer.second.executor.submit = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        proposer.propose([seq], [3], None)
    proposer.twins.audit()
    assert proposer.twins.computed(seq) == 0
    proposer.second.executor.submit = submit  # type: ignore[method-assign]
    (after,) = proposer.propose([seq], [3], None)
    assert before is not None and after is not None and before.tokens.tolist() == after.tokens.tolist()


def test_trees_put_the_likeliest_beside_the_drawn(model: str) -> None:
    _, proposer = drafting(model, model, ":length=3:branches=3")
    seq = sequence(1, [*range(1, 9)])
    seq.commit([9])
    (draft,) = proposer.propose([seq], [proposer.lookahead(seq)], None)
    assert isinstance(draft, Draft) and draft.parents is not None
    assert draft.parents.tolist() == [-1, 0, 1, -1, -1, 0, 0, 1, 1]
    for parent in (-1, 0, 1):
        tried = draft.tokens[draft.parents == parent].tolist()
        assert len(set(tried)) == 3
    (short,) = proposer.propose([seq], [4], None)
    assert short is not None and short.parents is not None and short.parents.tolist() == [-1, 0, 1, -1]
    proposer.twins.forget(1)


def test_preempted_twins_lose_their_kv_only_for_want_of_memory(model: str, half: str) -> None:
    _, proposer = drafting(model, half, f":length=2:memory_bytes={5 * HALF_BLOCK_BYTES}", kv__reuse=None)
    twins: Twins = proposer.twins
    first, second = sequence(1, [*range(1, 41)]), sequence(2, [*range(1, 41)])
    for seq in (first, second):
        seq.commit([7])
    proposer.propose([first], [2], None)
    assert twins.computed(first) == 42
    proposer.propose([second], [2], None)
    assert twins.computed(first) == 0 and twins.computed(second) == 42, "five blocks hold one of them with its drafts"
    proposer.propose([second, first], [2, 2], None)
    assert twins.computed(first) == 0 and twins.computed(second) == 42, "who comes first keeps what it has"


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ("", "which model drafts for"),
        (":model=builtin-draft", r"builtin-draft cannot draft for .*: it has 8,192 tokens, not 256"),
        (":model=/nowhere/at-all", "there is no folder /nowhere/at-all"),
        (":model=M:length=0", "length: .*greater than or equal to 1"),
        (":model=M:length=four", "length"),
        (":model=M:branches=99", "branches"),
        (":model=M:chunk=0", "chunk"),
        (":model=M:memory_bytes=100", "holds no block"),
        (":model=M:memory_bytes=900000000000000", "more than the .* bytes that are free"),
        (":model=M:weights=int5", "no technique is called 'int5'"),
        (":model=M:dtype=int3", "dtype"),
    ],
)
def test_what_cannot_be_is_refused(model: str, knobs: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny.engine(model, with_=("draft-model" + knobs.replace("=M", f"={model}"),))


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from hasten.engine.models import resolve

    draft = resolve("builtin-draft")
    for file in draft.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, other = [name for name, id in vocabulary.items() if id in (4000, 4001)]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="their tokenizers give other numbers"):
        LLM(with_=[f"draft-model:model={tmp_path}"])


@pytest.mark.parametrize("longer", ["served", "draft"])
def test_weights_padded_to_other_sizes(tmp_path: Path, longer: str) -> None:
    """Rows that no token has. In the draft they are large, so that it would like nothing better."""
    served, draft = "builtin", "builtin-draft"
    if longer == "served":
        served = padded(served, tmp_path, 0.0)
    else:
        draft = padded(draft, tmp_path, 4.0)
    settings: dict[str, Any] = {"set_": ("model.dtype=float32", "executor.deterministic=true")}
    plain, drafting = LLM(served, **settings), LLM(served, **settings, with_=[f"draft-model:model={draft}"])
    prompts = ["import os\nimport ", "Once upon a time", "def f(x):\n    return "]
    wanted, found = (llm.generate(prompts, SamplingParams(max_tokens=30, temperature=0)) for llm in (plain, drafting))
    assert [answer.text for answer in found] == [answer.text for answer in wanted]
    assert sum(answer.accepted for answer in found) > 10
    proposer = drafting.engine.decoding.proposer
    assert isinstance(proposer, DraftModel)
    unknown = sequence(1, [5, 8192 if longer == "served" else 8191, 7])
    assert (proposer.lookahead(unknown) == 0) == (longer == "served")


def padded(name: str, folder: Path, value: float) -> str:
    """A copy of a model with tied embeddings whose vocabulary has 64 rows more."""
    from safetensors.torch import load_file, save_file

    from hasten.engine.models import resolve

    for file in resolve(name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 64}))
    weights = load_file(folder / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = torch.cat([table, table.new_full((64, table.shape[1]), value)])
    save_file(weights, folder / "model.safetensors")
    return str(folder)
