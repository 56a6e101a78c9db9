"""Tasks whose answers have a form (JSON, calls, SQL, Python), language modelling, and the chat template with tools."""

from __future__ import annotations

import gc
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hasten.engine.text.chat import ChatTemplate
from hasten.lab.testbed import json_check, queries, sandbox_sql
from hasten.lab.testbed.document import END_OF_TEXT, END_OF_TURN, Document, tool_call, tool_turn, tools_turn, turn
from hasten.lab.testbed.functions import FUNCTIONS
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks import extraction, python_fill, sql
from hasten.lab.testbed.tasks.base import Task, Wordings
from hasten.lab.testbed.tasks.calls import Calls
from hasten.lab.testbed.tasks.extraction import Extraction
from hasten.lab.testbed.tasks.language import Language
from hasten.lab.testbed.tasks.python_fill import PythonFill
from hasten.lab.testbed.tasks.sql import Sql
from hasten.lab.testbed.things import KINDS
from hasten.lab.testbed.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS

SEEDS = range(25)
PROSE = "\n\n".join(" ".join(f"Word {i * j} of paragraph {i} is said." for j in range(1, 60)) for i in range(1, 9))
MODULES = (Path(json.__file__).with_name("scanner.py"), Path(json.__file__).with_name("decoder.py"))
GENERATED = (Extraction(), Extraction(fields=1), Extraction(fields=6), Calls(), Calls(tools=1), Sql(), Sql(columns=5, rows=12))
FILLED = (PythonFill(), PythonFill(lines=3))
HOSTILE = (
    "",
    "nonsense",
    "{",
    "null",
    "[" * 100_000,
    '{"a":' * 5000,
    "9" * 10_000,
    '{"a": ' + "9" * 4000 + "}",
    '{"a": NaN}',
    '"\ud800"',
    "\x00",
    "<tool_call>\n{}\n</tool_call>",
    '<tool_call>{"name": [], "arguments": []}</tool_call>',
    "<tool_call>" + "[" * 100_000 + "</tool_call>",
    "DROP TABLE orders",
    "SELECT 1; SELECT 2",
    "SELECT zeroblob(1000000000)",
    "SELECT * FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n)",
    "SELECT load_extension('evil')",
    "SELECT '\ud800'",
    "SELECT " + "(" * 1900,
    "(" * 1900,
    "-" * 1900 + "1",
    "x" + "[0]" * 600,
    "'''",
)


@pytest.fixture(scope="module")
def material() -> Material:
    texts = [Document("essay", "essay", PROSE), Document("encyclopaedia", "article", PROSE[::-1])]
    train, held_out = ([Document("python", path.stem, path.read_text(encoding="utf-8"))] for path in MODULES)
    return Material(lambda text: (len(text) + 3) // 4, [*texts, *train], [*texts, *held_out])


def test_parsing_in_the_midst_of_somebodys_finalizers() -> None:
    class Parses:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            python_fill._parse("a")

    module = MODULES[1].read_text(encoding="utf-8")
    for _ in range(1000):
        Parses()
    for _ in range(3):
        assert python_fill._parse(module) is not None
    assert gc.isenabled()


@pytest.mark.parametrize("task", [*GENERATED, *FILLED], ids=str)
def test_reference_answers_score_one_and_draws_repeat(task: Task, material: Material) -> None:
    for seed in SEEDS:
        for split in ("train", "held-out"):
            example = task.example(random.Random(seed), split, material)
            assert example == task.example(random.Random(seed), split, material)
            assert task.score(example, example.answer) == dict.fromkeys(task.metrics, 1.0)
            assert material.count(example.answer) <= example.max_tokens


@pytest.mark.parametrize("task", [*GENERATED, *FILLED], ids=str)
def test_hostile_outputs_score_zero(task: Task, material: Material) -> None:
    example = task.example(random.Random(1), "held-out", material)
    for output in HOSTILE:
        assert task.score(example, output)[task.metrics[0]] == 0.0, output[:50]
        if not isinstance(task, PythonFill):  # nothing at all may well parse there
            assert task.score(example, output)[task.metrics[1]] == 0.0, output[:50]


@pytest.mark.parametrize("task", GENERATED, ids=str)
def test_lessons_are_conversations_whose_answers_are_right(task: Task, material: Material) -> None:
    for seed in SEEDS:
        easier = task.easier(random.Random(seed), 512)
        lesson = easier.lesson(random.Random(seed), material)
        assert lesson == easier.lesson(random.Random(seed), material)
        assert [piece.learn for piece in lesson] == [False, True] * (len(lesson) // 2)
        assert all(piece.text.endswith("<|im_start|>assistant\n") for piece in lesson[::2])
        assert all(piece.text.endswith(END_OF_TURN) for piece in lesson[1::2])


def wordings() -> list[Wordings]:
    told = [fact.told for kind in KINDS for fact in kind.facts]
    asked = [function.requests for function in FUNCTIONS] + [pattern.questions for pattern in queries.PATTERNS]
    return [*told, *asked, extraction.REQUESTS, sql.LAYOUTS]


def test_held_out_wordings_are_never_trained_on() -> None:
    for each in wordings():
        assert each.train and each.held_out and not set(each.train) & set(each.held_out)


def test_names_of_functions_and_parameters_are_never_ambiguous() -> None:
    names = [name for function in FUNCTIONS for name in function.names]
    assert len(set(names)) == len(names) and len(FUNCTIONS) == 16
    for function in FUNCTIONS:
        parameters = [name for parameter in function.parameters.values() for name in parameter.names]
        assert len(set(parameters)) == len(parameters)
        for request in (*function.requests.train, *function.requests.held_out):
            assert all(f"{{{word}}}" in request for word in function.parameters)


@pytest.mark.parametrize("task", [*GENERATED, *FILLED], ids=str)
def test_other_answers_are_wrong(task: Task, material: Material) -> None:
    examples = [task.example(random.Random(seed), "held-out", material) for seed in SEEDS]
    for one, other in pairwise(examples):
        if one.answer.strip() != other.answer.strip():
            assert task.score(one, other.answer)[task.metrics[0]] == 0.0
        assert task.score(one, f"{one.answer}, x")[task.metrics[0]] == 0.0


def test_json_may_be_valid_without_being_right(material: Material) -> None:
    for seed in SEEDS:
        example = Extraction().example(random.Random(seed), "held-out", material)
        values = dict(example.expected["values"])
        name = next(iter(values))
        assert Extraction().score(example, json.dumps(dict(reversed(values.items())))) == {"exact": 1.0, "valid": 1.0}
        assert Extraction().score(example, json.dumps({**values, name: None})) == {"exact": 0.0, "valid": 0.0}
        del values[name]
        assert Extraction().score(example, json.dumps(values)) == {"exact": 0.0, "valid": 0.0}
        strings = [n for n, s in example.expected["schema"]["properties"].items() if s == {"type": "string"}]
        for text in strings:
            wrong = {**example.expected["values"], text: "something else"}
            assert Extraction().score(example, json.dumps(wrong)) == {"exact": 0.0, "valid": 1.0}


def test_what_json_asks_for_stands_in_the_text(material: Material) -> None:
    for seed in SEEDS:
        example = Extraction(fields=6).example(random.Random(seed), "train", material)
        for value in example.expected["values"].values():
            for part in value if isinstance(value, list) else [value]:
                assert isinstance(part, bool) or str(part) in example.prompt


@pytest.mark.parametrize(
    ("value", "schema", "fits"),
    [
        (True, {"type": "integer"}, False),
        (3, {"type": "integer"}, True),
        (3.5, {"type": "integer"}, False),
        (1, {"type": "boolean"}, False),
        (1, {"enum": [True]}, False),
        (["a", 1], {"type": "array", "items": {"type": "string"}}, False),
        ({"a": 1, "b": 2}, {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, True),
        ({"b": 2}, {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, False),
    ],
)
def test_schemas_are_checked(value: Any, schema: dict[str, Any], fits: bool) -> None:
    assert json_check.conforms(value, schema) is fits


def test_calls_must_use_the_tools_on_offer(material: Material) -> None:
    for seed in SEEDS:
        example = Calls().example(random.Random(seed), "held-out", material)
        name, arguments = example.expected["name"], example.expected["arguments"]
        assert name in example.prompt and len(example.tools) == 3
        for wrong in (
            tool_call("delete_all", arguments),
            tool_call(name, {**arguments, "extra": 1}),
            tool_call(name, {}),
            "{}",
        ):
            assert Calls().score(example, wrong) == {"exact": 0.0, "valid": 0.0}
        rendered = ChatTemplate({"default": CHAT_TEMPLATE}).render(example.messages, tools=example.tools)
        assert rendered == example.prompt


def test_sql_needs_more_than_the_right_result_on_the_table_shown(material: Material) -> None:
    lucky = 0
    for seed in range(100):
        example = Sql().example(random.Random(seed), "held-out", material)
        create, (shown, _) = example.expected["create"], example.expected["tables"]
        result = sandbox_sql.run(example.answer, create, shown)
        if len(result) == 1 and result[0][0] is not None:
            constant = "SELECT " + ("'{}'" if isinstance(result[0][0], str) else "{}").format(result[0][0])
            assert sandbox_sql.same_rows(sandbox_sql.run(constant, create, shown), result)
            assert Sql().score(example, constant)["runs"] == 1.0
            lucky += Sql().score(example, constant)["correct"] == 1.0
        near = example.answer.replace(" > ", " >= ").replace(" < ", " <= ")
        assert Sql().score(example, near)["correct"] == float(near == example.answer)
        assert Sql().score(example, example.answer.lower().replace("select", " SELECT") + ";")["runs"] == 1.0
    assert lucky <= 5  # two sevens among some eighty small counts and lowest numbers can happen


def test_a_query_without_end_is_stopped() -> None:
    endless = "SELECT * FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT COUNT(*) FROM n)"
    with pytest.raises(ValueError, match="interrupted"):
        sandbox_sql.run(endless, "CREATE TABLE t (a INTEGER)", [(1,)])
    for forbidden in ("PRAGMA user_version", "ATTACH 'x' AS y", "INSERT INTO t VALUES (1)", "VALUES (1)"):
        with pytest.raises(ValueError, match="not a SELECT"):
            sandbox_sql.run(forbidden, "CREATE TABLE t (a INTEGER)", [(1,)])


def test_python_masks_whole_lines_of_code(material: Material) -> None:
    for seed in SEEDS:
        for task in FILLED:
            example = task.example(random.Random(seed), "train", material)
            parts = example.expected
            assert example.answer.count("\n") == task.lines and example.answer.endswith("\n")
            assert material.count(parts["prefix"] + parts["middle"] + parts["suffix"]) <= task.context
            assert parts["prefix"].startswith("def ")
            assert task.score(example, example.answer.rstrip()) == {"exact": 1.0, "parses": 1.0}
            assert task.score(example, example.answer + END_OF_TEXT)["exact"] == 1.0
            assert task.score(example, example.answer.lstrip())["exact"] == 0.0
            (piece,) = task.lesson(random.Random(seed), material)
            assert piece.learn and piece.text == example.prompt + example.answer + END_OF_TEXT


def test_python_says_when_there_is_no_source() -> None:
    with pytest.raises(ValueError, match="no Python function"):
        PythonFill().example(random.Random(0), "train", Material(len))


@pytest.mark.parametrize("source", ["wikitext", "essay", "python"])
def test_language_gives_stretches_of_the_text(source: str, material: Material) -> None:
    task = Language(source=source, tokens=64)
    for seed in SEEDS:
        example = task.example(random.Random(seed), "held-out", material)
        assert example == task.example(random.Random(seed), "held-out", material)
        assert 40 <= material.count(example.answer) <= 64
        assert any(example.answer in document.text for document in material.held_out)
        assert example.prompt == END_OF_TEXT
    start, text = task.lesson(random.Random(0), material)
    assert (start.text, start.learn, text.learn) == (END_OF_TEXT, False, True)
    assert task.likelihood and not Sql.likelihood
    with pytest.raises(TypeError, match="likelihood"):
        task.score(example, example.answer)
    with pytest.raises(ValueError, match="no train text"):
        task.lesson(random.Random(0), Material(len))


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        (Extraction, {"fields": 0}),
        (Extraction, {"fields": 7}),
        (Calls, {"tools": 5}),
        (Sql, {"columns": 2}),
        (Sql, {"rows": 13}),
        (PythonFill, {"lines": 0}),
        (PythonFill, {"context": 10}),
        (Language, {"source": "news"}),
        (Language, {"tokens": 1}),
    ],
)
def test_difficulty_out_of_range_is_refused(kind: type[Task], knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(knobs))} is .*must be"):
        kind(**knobs)


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice("ab <>&'\"é日\n\\{}%") for _ in range(rng.randint(1, 20)))


def test_chat_template_with_tools_writes_what_lessons_hold() -> None:
    template = ChatTemplate({"default": CHAT_TEMPLATE})
    for seed in range(200):
        rng = random.Random(seed)
        functions = [{"name": random_text(rng), "parameters": {"type": "object"}} for _ in range(rng.randint(1, 3))]
        tools = [{"type": "function", "function": f} if rng.random() < 0.5 else f for f in functions]
        system = random_text(rng) if rng.random() < 0.5 else None
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        expected = tools_turn(tools, system)
        for _ in range(3):
            asked, result, said = random_text(rng), random_text(rng), random_text(rng)
            calls = [
                (random_text(rng), {random_text(rng): rng.choice([1, True, None, "é<"])}) for _ in range(rng.randint(1, 2))
            ]
            given: list[dict[str, Any]] = [dict(name=n, arguments=json.dumps(a) if rng.random() < 0.5 else a) for n, a in calls]
            said = said if rng.random() < 0.5 else ""
            called = "\n".join(tool_call(g["name"], g["arguments"]) for g in given)
            messages.append({"role": "user", "content": asked})
            form = [{"id": "1", "type": "function", "function": g} for g in given] if rng.random() < 0.5 else given
            messages.append({"role": "assistant", "content": said or rng.choice(["", None]), "tool_calls": form})
            messages.append({"role": "tool", "content": result})
            expected += turn("user", asked) + turn("assistant", f"{said}\n{called}" if said else called) + tool_turn(result)
        assert template.render(messages, tools=tools, add_generation_prompt=False) == expected
        assert template.render(messages, tools=tools) == expected + "<|im_start|>assistant\n"
        thinking = template.render(messages, tools=tools, enable_thinking=True)
        assert thinking == expected + "<|im_start|>assistant\n<think>\n"


def test_chat_template_without_tools_is_plain_chatml() -> None:
    template = ChatTemplate({"default": CHAT_TEMPLATE})
    messages = [{"role": role, "content": f"{role} <&>"} for role in ("system", "user", "assistant", "user")]
    expected = "".join(turn(m["role"], m["content"]) for m in messages)
    without: tuple[list[dict[str, Any]] | None, ...] = (None, [])
    for tools in without:
        assert template.render(messages, tools=tools, enable_thinking=False) == expected + "<|im_start|>assistant\n"
    assert template.render([{"role": "user", "content": "Hi"}], tools=[{"name": "f"}], add_generation_prompt=False) == (
        tools_turn([{"name": "f"}]) + turn("user", "Hi")
    )


def test_the_first_ten_special_tokens_keep_their_ids() -> None:
    assert SPECIAL_TOKENS[9:] == ("<|fim_middle|>", "<tools>", "</tools>", "<tool_response>", "</tool_response>")
