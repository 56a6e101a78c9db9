"""Constraints in the engine, over a model that is its own oracle: whatever else takes part, the tokens are those of plain
constrained decoding."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.constraints.world import END, GRAMMAR, VOCABULARY, engine, follows, parts, policy, text_of, tokenizer
from tests.engine.test_decoding_seam import NoisyOracle
from tests.engine.test_loop import gather, request

from hasten.engine.decoding.base import Row
from hasten.engine.decoding.constraints import kept
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.compiling import Prepared, prepare
from hasten.engine.decoding.constraints.machine import State
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.decoding.forced_tokens import ForcedTokens, Options
from hasten.engine.decoding.lossless import LosslessSampler
from hasten.engine.events import Kind
from hasten.engine.executors.base import StepResult
from hasten.engine.outputs import GRAMMAR_REFUSED
from hasten.engine.request import BadRequest, Request, SamplingParams
from hasten.kernels import ReferenceKernels

Answers = dict[tuple[str, int], list[int]]


def asked(temperature: float = 0.0) -> list[Request]:
    rng = random.Random(5)
    shared = [rng.randrange(VOCABULARY - 1) for _ in range(20)]
    return [
        request(
            f"r{i}",
            [*shared[: rng.choice([0, 8, 20])], rng.randrange(VOCABULARY - 1), i],
            max_tokens=40,
            n=1 + i % 2,
            seed=i,
            temperature=temperature,
            constraint=GRAMMAR if i % 4 else None,
        )
        for i in range(8)
    ]


def answers(requests: list[Request], **knobs: Any) -> tuple[Answers, Any]:
    made = engine(**knobs)
    for one in requests:
        made.add(one)
    out = []
    while made.unfinished:
        out += made.step()
        made.ledger.audit()
    assert [delta.error for delta in out if delta.error] == []
    got = gather(out)
    return {(id, index): tokens for id, parts in got.items() for index, tokens in parts.items()}, made


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_follow_the_grammar_whatever_takes_part(temperature: float) -> None:
    plain, _ = answers(asked(temperature), reuse=False, blocks=200)
    held = {one.id for one in asked() if one.sampling.constraint is not None}
    complete = 0
    for (id, _), tokens in plain.items():
        if id in held and tokens[-1] == END:
            assert follows(text_of(tokens)), text_of(tokens)
            complete += 1
    assert complete >= 3
    for tree in (False, True):
        drafted, made = answers(asked(temperature), proposer=NoisyOracle(plain, tree, 1), blocks=200)
        assert drafted == plain and made.events.counts[Kind.DRAFTED]
    forced, made = answers(asked(temperature), forced=True)
    assert forced == plain and made.events.counts[Kind.DRAFTED]
    for host in (0, 40):
        everything, made = answers(
            asked(temperature), forced=True, proposer=NoisyOracle(plain, True, 2), blocks=30, host_blocks=host
        )
        assert everything == plain
        assert made.events.counts[Kind.PREEMPTED] + made.events.counts[Kind.SWAPPED]


def test_forced_tokens_save_steps() -> None:
    one = request("r", [1, 2, 3], max_tokens=40, constraint=ConstraintSpec.of_choices(["false", 'null":{"true', "1"]))
    plain, without = answers([one])
    got, made = answers([one], forced=True)
    assert got == plain and made.executor.steps < without.executor.steps
    assert made.events.sums[Kind.DRAFTED] > 0


def drafted(choices: list[str], said: str) -> str:
    """What is drafted after a part of a choice."""
    one = request("r", [1], constraint=ConstraintSpec.of_choices(choices))
    held = policy()
    held.prepare(one)
    state = held.start(one)
    tokens = tokenizer().encode(said)
    for token in tokens:
        state.advance(token)
    seq = SimpleNamespace(id=0, constraint=state, tokens=np.array([1, *tokens], dtype=np.int32))
    proposer = ForcedTokens(parts(), Options())
    if not (budget := proposer.lookahead(seq)):  # type: ignore[arg-type]
        return ""
    [draft] = proposer.propose([seq], [budget], None)  # type: ignore[list-item]
    assert draft is not None
    return text_of(draft.tokens.tolist())


def test_forced_text_is_cut_where_a_longer_token_may_come() -> None:
    assert drafted(["true", "false"], "t") == "rue"
    assert drafted(["true", "truetrue"], "") == "true"
    assert drafted(["a[b]10", "a[b]1"], "a") == "[b]", "10 is one token"
    assert drafted(['ab":', 'ab",'], "a") == "b", "and so are both that follow the quote"
    assert drafted(['ab":', 'ab"0'], "a") == "b"
    assert drafted(['ab"1', 'ab"0'], "a") == 'b"'
    assert drafted(["true", "false"], "") == ""


def test_masks_of_a_batch_are_filled_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fill_many = State.fill_many
    monkeypatch.setattr(State, "fill_many", staticmethod(lambda states, masks: calls.append(fill_many(states, masks))))
    monkeypatch.setattr(State, "fill", None)
    answers([request("r", [1, 2, 3], max_tokens=6, n=4, constraint=GRAMMAR)])
    assert 0 < len(calls) <= 6


def test_a_bad_grammar_is_refused_at_once_and_nobody_else_notices() -> None:
    made = engine()
    for bad, why in (
        (ConstraintSpec("gbnf", 'root ::= "a" other'), "other"),
        ("something", "ConstraintSpec"),
        (ConstraintSpec("gbnf", "root ::= ["), "not expected here"),
    ):
        with pytest.raises(BadRequest, match=why) as refusal:
            made.add(request("bad", [1], constraint=bad))
        assert refusal.value.param == "constraint"
    with pytest.raises(BadRequest, match="ignore_eos"):
        made.add(request("bad", [1], constraint=GRAMMAR, ignore_eos=True))
    assert made.unfinished == 0
    made.add(request("good", [1], max_tokens=3, ignore_eos=True))
    assert made.run()[-1].finish == "length"


class Slow:
    """A spec that compiles when told to."""

    def __init__(self, fail: bool = False) -> None:
        self.go, self.fail, self.compiled = threading.Event(), fail, 0
        self.key = "slow"

    def compile(self, limits: Limits) -> Any:
        self.go.wait(10)
        self.compiled += 1
        if self.fail:
            raise GrammarError("it cannot be")
        return GRAMMAR.compile(limits)


def test_equal_grammars_are_compiled_once() -> None:
    slow, made = Slow(), policy()
    slow.go.set()
    for i in range(3):
        assert made.prepare(request(f"r{i}", [1], constraint=slow)) is None
    assert slow.compiled == 1
    assert made.start(request("r", [1], constraint=slow)) is not made.start(request("r", [1], constraint=slow))


def test_the_engine_serves_others_while_a_grammar_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepare(GRAMMAR, Limits())
    held = policy()
    go, compiled = threading.Event(), held._compiled
    monkeypatch.setattr(held, "_compiled", lambda spec: (go.wait(10), compiled(spec))[1])
    made = engine(constraint=held)
    for id in ("first", "gone", "second"):
        made.add(request(id, [1, 2], max_tokens=30, constraint=ready))
    made.cancel("gone")
    made.add(request("plain", [1, 2], max_tokens=5))
    out = []
    while made.unfinished > 2:
        out += made.step()
    assert {delta.request_id: delta.finish for delta in out if delta.finish} == {"plain": "length", "gone": "cancelled"}
    assert made.step() == [] and made.stats()["waiting"] == 2
    made.add(request("gone", [1, 2], max_tokens=30, constraint=ready))  # its name is free again
    made.cancel("gone")
    [last] = made.step()
    assert (last.request_id, last.finish, last.last) == ("gone", "cancelled", True)
    go.set()
    out = made.run()
    assert {delta.request_id for delta in out} == {"first", "second"}
    got = gather(out)
    assert got["first"] == got["second"] and follows(text_of(got["first"][0]))


def test_a_grammar_that_fails_in_the_engine_ends_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    held, tried = policy(), []
    compiled = held._compiled
    monkeypatch.setattr(held, "_compiled", lambda spec: (tried.append(spec), compiled(spec))[1])
    made = engine(constraint=held)
    made.add(request("bad", [1], constraint=Prepared("key", b"nonsense")))
    made.add(request("good", [1], max_tokens=3, ignore_eos=True))
    out = {delta.request_id: delta for delta in made.run() if delta.finish}
    assert out["bad"].finish == "error" and out["bad"].error.startswith(GRAMMAR_REFUSED) and out["good"].finish == "length"
    assert len(tried) == 1, "it is not compiled again between two steps of others"


def test_the_latest_grammars_are_kept() -> None:
    made = policy(kept_bytes=1)
    with pytest.raises(BadRequest):
        made.prepare(request("r", [1], constraint=ConstraintSpec("gbnf", "root ::= [")))
    for i in range(4):
        made.prepare(request("r", [1], constraint=ConstraintSpec.of_choices(["1" * (i + 1)])))
    assert len(made._grammars._found) < 4
    assert made.start(request("r", [1], constraint=ConstraintSpec.of_choices(["1"]))).forced_bytes() == b"1"


def test_what_took_long_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    monkeypatch.setattr(kept, "LEAST_S", 0.0)
    slow = Slow()
    slow.go.set()
    first = prepare(slow, Limits())
    assert prepare(slow, Limits()) == first and slow.compiled == 1
    [file] = (tmp_path / "grammars").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert prepare(slow, Limits()) == first and slow.compiled == 2, "a broken file is none"
    monkeypatch.setattr(kept, "MOST_FILES", 3)
    for i in range(5):
        prepare(ConstraintSpec.of_choices(["a" * (i + 1)]), Limits())
    assert len(list((tmp_path / "grammars").iterdir())) == 3
    monkeypatch.setenv("HASTEN_CACHE", "/dev/null")
    assert prepare(slow, Limits()) == first


def test_a_grammar_follows_one_text() -> None:
    made = engine()
    made.add(request("r", [1], max_tokens=20, constraint=GRAMMAR))
    made.step()
    with pytest.raises(ValueError, match="joined"):
        made.control.join(list(made.ledger.sequences.values()), [1])
    with pytest.raises(ValueError, match="legal"):
        made.control.inject(next(iter(made.ledger.sequences.values())), [END])
    assert made.run()[-1].error is None


# -- where a text may end ----------------------------------------------------------------------------------------------

ONE = ConstraintSpec("gbnf", 'root ::= "1" | "1" "0"+')


def test_own_stop_tokens_end_the_text_where_it_may_end() -> None:
    zero, comma = tokenizer().encode("0")[0], tokenizer().encode(",")[0]
    for seed in range(6):
        one = request("r", [seed], max_tokens=30, constraint=ONE, stop_token_ids=(comma, zero), temperature=1.0, seed=seed)
        got, _ = answers([one])
        tokens = got["r", 0]
        assert tokens[-1] in (END, comma, zero) and text_of(tokens).startswith("1"), "a stop token is no text: it ends"
        assert set(text_of(tokens[:-1])) <= {"1", "0"}


def test_min_tokens_yields_to_the_end_of_the_grammar() -> None:
    one = request("r", [3], max_tokens=30, min_tokens=12, constraint=ConstraintSpec.of_choices(["true"]))
    got, _ = answers([one])
    assert text_of(got["r", 0]) == "true" and got["r", 0][-1] == END
    longer = request("r", [3], max_tokens=30, min_tokens=12, constraint=ONE)
    got, _ = answers([longer])
    assert len(got["r", 0]) > 12


def test_without_a_token_that_ends_texts_the_grammar_ends_them() -> None:
    held = policy()
    held._parts.eos = frozenset()
    made = engine(constraint=held)
    made.add(request("r", [3], max_tokens=30, n=2, constraint=ConstraintSpec.of_choices(["true", "false"])))
    out = made.run()
    assert [delta.finish for delta in out if delta.finish] == ["stop", "stop"]
    assert {text_of(tokens) for tokens in gather(out)["r"].values()} <= {"true", "false"}


def test_a_dead_end_is_told() -> None:
    made = engine()
    made.add(request("r", [3], max_tokens=30, constraint=ConstraintSpec.of_choices(["tz"])))
    made.add(request("good", [1], max_tokens=3, ignore_eos=True))
    out = {delta.request_id: delta for delta in made.run() if delta.finish}
    assert out["good"].finish == "length" and out["r"].finish == "error"
    assert "allows no token of this vocabulary" in (out["r"].error or "")


# -- the sampler -------------------------------------------------------------------------------------------------------


def test_log_probabilities_are_those_before_the_mask() -> None:
    state = policy()
    one = request("r", [1], constraint=GRAMMAR, logprobs=2)
    state.prepare(one)
    logits = torch.randn(3, VOCABULARY)
    raw = torch.log_softmax(logits, -1)
    seq = SimpleNamespace(request=one, seed=0, output_length=0)
    sampler = LosslessSampler(ReferenceKernels(), VOCABULARY, frozenset({END}))
    rows = [Row(seq, i, (), state.start(one) if i else None) for i in range(3)]  # type: ignore[arg-type]
    drawn = sampler.draw(StepResult(logits.clone()), rows)
    for i, (token, score) in enumerate(zip(drawn.tokens, drawn.logprobs, strict=True)):
        assert score is not None and score.logprob == pytest.approx(float(raw[i, token]), abs=1e-6)
        assert score.top[0][1] == pytest.approx(float(raw[i].max()), abs=1e-6)
        assert i == 0 or tokenizer().token_text(token).startswith("{")


def test_a_dict_is_a_schema() -> None:
    assert SamplingParams(constraint={"type": "object"}).constraint == ConstraintSpec.of_schema({"type": "object"})
    with pytest.raises(BadRequest, match="constraint"):
        SamplingParams(constraint={"type": np.array([1])})
