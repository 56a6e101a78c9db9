"""The back ends of other packages: the same verdicts as pre3 where all of them judge, and states that keep the contract."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from tests.constraints.test_builtin import BUILTIN, ORDER, PROMPTS, valid
from tests.constraints.test_engine import answers
from tests.constraints.world import END, GRAMMAR, VOCABULARY, follows, parts, text_of
from tests.engine.test_loop import request

from hasten import LLM, After, ConstraintSpec, SamplingParams
from hasten.engine.async_engine import AsyncEngine
from hasten.engine.config import EngineConfig
from hasten.engine.decoding.constraints.external import TOLD_S
from hasten.engine.decoding.constraints.tools import Tool, ToolSpec
from hasten.engine.request import BadRequest
from hasten.engine.technique import ConfigError, find
from hasten.engine.text import Tokenizer

NAMES = ("llguidance", "xgrammar")
EACH = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")) for name in NAMES
]
each = pytest.mark.parametrize("name", EACH)


def policy(name: str, where: Any = None) -> Any:
    technique = find(name)
    assert technique.make is not None
    return technique.make(where or parts(), technique.options() if technique.options is not None else None)


def of_bytes() -> Any:
    """256 tokens that are bytes, one that ends."""
    made = parts()
    made.tokenizer, made.model.vocabulary, made.eos = Tokenizer.of_bytes(), 257, frozenset({256})
    return made


def started(made: Any, spec: Any) -> Any:
    one = request("r", [1], constraint=spec)
    compiling = made.prepare(one)
    if compiling is not None:
        compiling.result()
    return made.start(one)


def legal(state: Any, tokens: int = VOCABULARY) -> set[int]:
    mask = np.full((tokens + 31) // 32, 0x5A5A5A5A, dtype=np.int32)
    state.fill(mask)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def accepts(made: Any, spec: ConstraintSpec, text: str) -> bool:
    """By masks; of tokens that are one byte there is one way to split a text."""
    state = started(made, spec)
    by_text = of_bytes().tokenizer.encode(text)
    for token in by_text:
        if token not in legal(state, 257):
            with pytest.raises(ValueError, match="legal"):
                state.advance(token)
            return False
        state.advance(token)
    assert state.ended == (256 in legal(state, 257))
    return bool(state.ended)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
TREE = {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}
JUDGED: list[tuple[ConstraintSpec, list[str]]] = [
    (
        ConstraintSpec.of_schema(PERSON),
        [
            *('{"name": "Ann", "age": 3}', '{"name":"Ann"}', "{}", '{"name": "Annabel"}', '{"age": 3}', '{"name": 1}', "[]"),
            *('{\n "name" : "A" }', '{"name": "A", "b": 1}', '{"name": "A", "age": 1.5}', '{"name": "é"}'),
        ],
    ),
    (ConstraintSpec.of_schema(PERSON, whitespace="compact"), ['{"name":"A","age":1}', '{"name": "A"}', '{ "name":"A"}']),
    (ConstraintSpec.of_schema(PERSON, whitespace="spaced"), ['{"name": "A", "age": 1}', '{"name":"A"}', '{"name":  "A"}']),
    (ConstraintSpec.of_schema(PERSON, whitespace=2), ['{"name":  "A"}', '{"name":   "A"}', '{"name":"A"}']),
    (ConstraintSpec.of_schema(TREE), ["[]", "[[],[[]]]", "[1]", "[[]", "[]]"]),
    (ConstraintSpec.of_schema({"enum": ["a", 1, None]}), ['"a"', "1", "null", "a", "2"]),
    (ConstraintSpec("json_object"), ["{}", '{"a": [1, {"b": null}]}', "[]", "1", '{"a"}']),
    (ConstraintSpec("regex", r"[A-Z]{2}-\d+/é?"), ["AB-12/", "AB-1/é", "AB-", "ab-1/", "AB-1/ "]),
    (ConstraintSpec.of_choices(['say "é"', "a\nb", "ab", "abc"]), ['say "é"', "a\nb", "ab", "abc", "a", "abcd"]),
    (ConstraintSpec("gbnf", 'root ::= "(" root ")" | [ab]+'), ["ab", "((a))", "(a", "()", "c"]),
    (
        ConstraintSpec("ebnf", 'start: item ("," item)*\nitem: /[a-z]+/ "=" INT\nINT: /[0-9]+/\n'),
        ["a=1", "a=1,bc=23", "a=", "=1"],
    ),
]


@each
def test_verdicts_are_those_of_pre3(name: str) -> None:
    ours, theirs = policy("pre3", of_bytes()), policy(name, of_bytes())
    for spec, texts in JUDGED:
        verdicts = [accepts(ours, spec, text) for text in texts]
        assert True in verdicts and False in verdicts
        assert [accepts(theirs, spec, text) for text in texts] == verdicts, (spec, texts)


@each
def test_forks_and_rollbacks_equal_replay(name: str) -> None:
    made, rng = policy(name), random.Random(3)
    complete = 0
    for _ in range(20):
        state, told = started(made, GRAMMAR), []
        while len(told) < 30 and not (told and told[-1] == END):
            now = legal(state)
            assert now and max(now) < VOCABULARY and (END in now) == state.ended
            for token in {-1, VOCABULARY, END} - now:
                with pytest.raises(ValueError, match="legal"):
                    state.advance(token)
            assert legal(state) == now, "nothing has changed"
            other = state.fork()
            steps = 0
            while steps < 3 and (further := sorted(legal(other))):
                other.advance(rng.choice(further))
                steps += 1
            assert legal(state) == now, "a fork is another text"
            other.rollback(steps)
            assert legal(other) == now
            told.append(rng.choice(sorted(now)))
            (state if rng.random() < 0.5 else other).advance(told[-1])
            state = state if state._length == len(told) else other
        replayed = started(made, GRAMMAR)
        for token in told:
            replayed.advance(token)
        assert legal(replayed) == legal(state)
        if told[-1] == END:
            assert follows(text_of(told)) and not legal(state) and not state.ended and state.forced_bytes() == b""
            complete += 1
        with pytest.raises(ValueError, match="undone"):
            state.rollback(len(told) + 1)
    assert complete


@each
def test_forced_bytes(name: str) -> None:
    made = policy(name, of_bytes())
    assert started(made, ConstraintSpec.of_choices(["true"])).forced_bytes() == b"true"
    assert started(made, ConstraintSpec.of_choices(["é", "è"])).forced_bytes() == b"\xc3"
    assert started(made, ConstraintSpec.of_choices(["a", "b"])).forced_bytes() == b""


@each
def test_llguidance_alone_forces_one_way_to_split_a_text(name: str) -> None:
    first = {parts().tokenizer.token_text(token) for token in legal(started(policy(name), ConstraintSpec.of_choices(["true"])))}
    assert first == ({"true"} if name == "llguidance" else {"t", "tr", "true"})


@each
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_follow_the_grammar_whatever_takes_part(name: str, temperature: float) -> None:
    asked = [request(f"r{i}", [i], max_tokens=40, n=2, seed=i, temperature=temperature, constraint=GRAMMAR) for i in range(6)]
    plain, _ = answers(asked, constraint=policy(name), reuse=False, blocks=200)
    assert all(follows(text_of(tokens)) for tokens in plain.values() if tokens[-1] == END)
    assert any(tokens[-1] == END for tokens in plain.values())
    for knobs in ({"blocks": 200}, {"blocks": 30, "host_blocks": 40}):
        assert answers(asked, constraint=policy(name), forced=True, **knobs)[0] == plain


@each
def test_what_cannot_be_is_refused_by_name(name: str) -> None:
    made = policy(name)
    for spec in (
        ConstraintSpec("gbnf", "root ::= ["),
        ConstraintSpec("ebnf", "start: other"),
        ConstraintSpec("regex", "(?!a)b"),
        ConstraintSpec("json_schema", "{"),
        ConstraintSpec.of_schema({"type": "nothing"}),
    ):
        with pytest.raises(BadRequest, match=f"{name}, {spec.kind}") as refusal:
            made.prepare(request("r", [1], constraint=spec))
        assert refusal.value.param == "constraint" and "/project/" not in str(refusal.value)
    with pytest.raises(BadRequest, match="ToolSpec"):
        made.prepare(request("r", [1], constraint=ToolSpec((Tool("f"),))))


@pytest.mark.skipif(find_spec("llguidance") is None, reason="llguidance is not installed")
def test_llguidance_without_a_token_that_ends_texts_is_refused() -> None:
    where = parts()
    where.eos = frozenset()
    with pytest.raises(BadRequest, match="ends texts"):
        policy("llguidance", where).prepare(request("r", [1], constraint=GRAMMAR))


@each
def test_slow_grammars_do_not_hold_up_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = policy(name)
    compiled = made._compiled
    monkeypatch.setattr(made, "_compiled", lambda spec: (time.sleep(3 * TOLD_S), compiled(spec))[1])
    asked = request("r", [1], max_tokens=20, constraint=ConstraintSpec.of_choices(["true"]))
    assert not made.prepare(asked).done()
    got, _ = answers([asked], constraint=made)
    assert text_of(got["r", 0]) == "true"


@pytest.mark.parametrize("name", NAMES)
def test_without_the_package_the_engine_is_not_configured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'hasten\[grammar\]'"):
        EngineConfig.build(with_=[name]).make(name, parts())


@each
@pytest.mark.skipif(not BUILTIN.is_dir(), reason="there is no built-in model")
def test_answers_of_the_built_in_model(name: str) -> None:
    spec = ConstraintSpec.of_schema(ORDER, whitespace="compact", order="schema")
    found = []
    for with_ in ((name,), (name, "forced-tokens")):
        llm = LLM(with_=with_, set_={"model.dtype": "float32"})
        done = llm.chat(PROMPTS, SamplingParams(max_tokens=120, temperature=0.0, constraint=spec))
        found.append([one.choices[0].text for one in done])
        assert all(map(valid, found[-1])), found[-1]
    assert found[0] == found[1]
    after = After("</think>", ConstraintSpec.of_choices(["yes", "no"]))
    [one] = llm.generate("Is 7 prime? <think>It is.", SamplingParams(max_tokens=200, temperature=0.7, seed=1, constraint=after))
    assert one.choices[0].finish == "length" or one.choices[0].text.partition("</think>")[2] in ("yes", "no")


@each
@pytest.mark.skipif(not BUILTIN.is_dir(), reason="there is no built-in model")
def test_an_engine_in_its_own_process_takes_what_the_user_wrote(name: str) -> None:
    async def answer() -> str:
        engine = await AsyncEngine.start(EngineConfig.build(with_=[name]))
        prompt = engine.tokenizer.encode("The answer:")
        with pytest.raises(BadRequest, match=f"{name}, regex"):
            async for _ in engine.generate(request("bad", prompt, constraint=ConstraintSpec("regex", "("))):
                pass
        asked = request("good", prompt, max_tokens=20, constraint=ConstraintSpec.of_choices(["yes", "no"]))
        text = "".join([delta.text async for delta in engine.generate(asked)])
        await engine.close()
        return text

    assert asyncio.run(answer()) in ("yes", "no")
