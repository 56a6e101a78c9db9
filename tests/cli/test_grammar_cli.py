"""`hasten grammar check` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hasten.cli.grammar import app
from hasten.engine.technique import ConfigError

ARITHMETIC = """start: e
e: e "+" t | t
t: t "*" f | f
f: INT | "(" e ")"
%import common (INT, WS)
%ignore WS
"""
ELSE = 'root ::= "if " e root | "if " e root " else " root | e\ne ::= [a-c] ";"\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(*arguments: str, **files: str) -> tuple[int, str]:
    """`files`: by name, the last underscore standing for the dot."""
    for name, text in files.items():
        Path(".".join(name.rsplit("_", 1))).write_text(text)
    done = CliRunner().invoke(app, ["check", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_sizes_and_the_automaton() -> None:
    status, output = check("g.lark", g_lark='start: "a" start "b" | "c"\n')
    lines = output.splitlines()
    assert status == 0
    assert lines[0].startswith("grammar: 3 terminals, 1 rule, 2 productions; read in ")
    assert lines[1].startswith("automaton: 10 LR(1) states, 12 edges that look at up to 4 states (0 partial); no conflicts; ")
    assert lines[2].split() == ["state", "reads", "if", "below", "lie", "pops", "pushes"]
    assert [line.split() for line in lines[3:5]] == [["0", '"a"', "2"], ["0", '"c"', "3"]]
    assert ["3", "the", "end", "0", "1", "1"] in [line.split() for line in lines]


def test_a_large_automaton_is_not_printed() -> None:
    status, output = check(
        "g.gbnf", g_gbnf='root ::= "if " e root | "if " e root " else " root | e\ne ::= [a-c] | "(" root ")"'
    )
    assert status == 0 and "state  reads" not in output and "(0 partial)" not in output


def test_conflicts_with_an_example() -> None:
    status, output = check("g.gbnf", g_gbnf=ELSE)
    assert status == 0
    assert "1 conflict;" in output
    assert (
        'conflict (shift/reduce): after "if " e "if " e e, with " else " next, these two fit:\n'
        '    root -> "if " e root " else " root    (goes on)\n'
        '    root -> "if " e root    (complete)\n'
        "All readings of a text are followed, which is exact but slower.\n"
    ) in output


def test_warnings() -> None:
    _, output = check("g.lark", g_lark='start: "a"*\nother: "b"')
    assert output.startswith(
        "warning: the start 'start' may be empty; the empty text is left out\nwarning: the rule 'other' is never used\n"
    )


def test_a_refused_grammar() -> None:
    status, output = check("g.lark", g_lark='start: "a"\n     | b "c"\n')
    assert status == 1
    assert output == "refused: there is no rule 'b' (at line 2, column 8)\n         | b \"c\"\n           ^\n"


def test_the_graph() -> None:
    check("g.lark", "--dot", "g.dot", g_lark='start: "a" start "b" | "c"\n')
    lines = Path("g.dot").read_text().splitlines()
    assert lines[0] == "digraph grammar {" and lines[-1] == "}"
    assert '  0 -> 2 [label="\\"a\\""];' in lines
    assert '  3 -> end [label="the end\\nbelow 0, pop 1"];' in lines


def test_instances() -> None:
    status, output = check(
        *("g.lark", "--instance", "good.txt", "--instance", "bad.txt", "--instance", "short.txt"),
        g_lark=ARITHMETIC,
        good_txt="1 + 2 *\n (3)\n",
        bad_txt="1 + 2 *\n (é) 4\n",
        short_txt="1 + ",
    )
    assert status == 1
    assert output.endswith(
        "good.txt: accepted\n"
        'bad.txt: is not accepted at line 2, column 3 (byte 10); expected "(", INT\n'
        "     (é) 4\n"
        "      ^\n"
        'short.txt: ends too early at line 1, column 5 (byte 4); expected "(", INT\n'
        "    1 + \n"
        "        ^\n"
    )
    assert check("g.lark", "--instance", "good.txt")[0] == 0


def test_a_long_line_is_cut() -> None:
    _, output = check("g.gbnf", "--instance", "t.txt", g_gbnf='root ::= "a"+', t_txt="a" * 500 + "b" + "c" * 500)
    assert output.splitlines()[-2:] == ["    " + "a" * 60 + "b" + "c" * 39, "    " + " " * 60 + "^"]


def test_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    status, output = check(
        *("s.json", "--instance", "good.txt", "--instance", "bad.txt"),
        s_json=json.dumps(schema),
        good_txt='{"a": 1}\n',
        bad_txt='{"a": "1"}\n',
    )
    assert status == 1
    assert "good.txt: accepted\nbad.txt: is not accepted at line 1, column 7 (byte 6); expected " in output
    status, output = check("s.json", "--whitespace", "compact", "--instance", "good.txt")
    assert status == 1 and "good.txt: is not accepted at line 1, column 6 (byte 5)" in output


def test_a_pattern() -> None:
    status, output = check("p.regex", "--instance", "t.txt", p_regex="[a-c]+x?\n", t_txt="abcx\n")
    assert status == 0 and "t.txt: accepted" in output
    status, output = check("p.regex", p_regex="a(b|c\n")
    assert status == 1 and output.startswith("refused: pattern: ") and output.endswith("\n    a(b|c\n     ^\n")


def test_the_tokens_of_a_model() -> None:
    status, output = check("g.lark", "--model", "builtin", g_lark='start: "abc" | "d"')
    assert status == 0
    assert "builtin: 8192 tokens; compiled in " in output and " tokens legal), " in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.lark"], "nowhere.lark cannot be read: No such file or directory"),
        (["g.txt"], "g.txt: its suffix tells no kind of grammar; --kind is one of json_schema, ebnf, gbnf, regex"),
        (["g.txt", "--kind", "choice"], "g.txt: its suffix tells no kind"),
        (["g.txt", "--kind", "gbnf", "--instance", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (["g.txt", "--kind", "gbnf", "--dot", "no/where.dot"], "--dot no/where.dot: No such file or directory"),
        (["bytes.lark"], "bytes.lark is no text in UTF-8: invalid start byte at byte 1"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    Path("bytes.lark").write_bytes(b"a\xff")
    with pytest.raises(ConfigError) as refused:
        check(*arguments, g_txt='root ::= "a"')
    assert str(refused.value).startswith(message)
