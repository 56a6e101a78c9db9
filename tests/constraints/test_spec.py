"""What a request carries: one value for each notation, equal where the grammar is."""

from __future__ import annotations

import pickle

import pytest

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.machine import CompiledGrammar, Vocabulary
from hasten.engine.decoding.constraints.spec import ConstraintSpec

BYTES = [*(bytes((byte,)) for byte in range(256)), b""]


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (ConstraintSpec("regex", "[a-c]+|x"), ["abc", "x"], ["abx", ""]),
        (ConstraintSpec("gbnf", 'root ::= "a" root | "b"'), ["aab"], ["aa"]),
        (ConstraintSpec("ebnf", 'start: "a" start | "b"\n%ignore " "'), ["a ab "], ["aa"]),
        (ConstraintSpec("choice", ("yes", "no")), ["yes", "no"], ["ye", "yesno"]),
        (ConstraintSpec.of_choices(["é"]), ["é"], ["e"]),
        (ConstraintSpec.of_schema({"type": "integer"}), ["1", "-20"], ["1.5", "x"]),
        (ConstraintSpec.of_schema({"enum": [[1, 2]]}, whitespace="compact"), ["[1,2]"], ["[1, 2]"]),
        (ConstraintSpec("json_object"), ["{}", '{"a": [1]}'], ["[]", "1"]),
    ],
)
def test_compiles(spec: ConstraintSpec, good: list[str], bad: list[str]) -> None:
    assert pickle.loads(pickle.dumps(spec)) == spec and hash(spec.key) == hash(pickle.loads(pickle.dumps(spec)).key)
    compiled = CompiledGrammar(spec.compile(Limits()), Vocabulary(BYTES, [256]))
    for text in (*good, *bad):
        data, state = text.encode(), compiled.start()
        accepted = state.match(data) == len(data)
        for byte in data if accepted else ():
            state.advance(byte)
        assert (accepted and state.ended) == (text in good), text


def test_equal_grammars_have_equal_keys() -> None:
    assert ConstraintSpec.of_choices(["b", "a", "b"]).key == ConstraintSpec.of_choices(["a", "b"]).key
    assert ConstraintSpec("regex", "a", whitespace="compact").key == ConstraintSpec("regex", "a").key
    assert ConstraintSpec("regex", "a").key != ConstraintSpec("gbnf", "a").key
    schema = {"type": "object"}
    assert ConstraintSpec.of_schema(schema, order="schema").key != ConstraintSpec.of_schema(schema).key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("yaml", ""), "there is no kind of constraint 'yaml'; there are json_schema, json_object, regex, ebnf, gbnf, choice"),
        (("choice", ()), "choice: one text or more is wanted, none of them empty"),
        (("choice", ("a", "")), "choice: one text or more is wanted, none of them empty"),
        (("regex", ("a",)), "regex: a text is wanted, not tuple"),
    ],
)
def test_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(GrammarError) as refused:
        ConstraintSpec(*arguments)
    assert str(refused.value) == message


def test_what_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(GrammarError, match="gbnf: it is nested too deep"):
        ConstraintSpec("gbnf", 'root ::= "a"' + "?" * 3000).compile(Limits())


def test_a_schema_nested_too_deep_is_refused() -> None:
    schema: dict = {}
    for _ in range(3000):
        schema = {"not": schema}
    with pytest.raises(GrammarError, match="nested too deep"):
        ConstraintSpec.of_schema(schema)


def test_an_empty_text_is_left_out() -> None:
    assert ConstraintSpec("regex", "a*").compile(Limits()).warnings == [
        "the start 'text' may be empty; the empty text is left out"
    ]
    with pytest.raises(GrammarError, match="has the empty text only"):
        ConstraintSpec("regex", "").compile(Limits())
