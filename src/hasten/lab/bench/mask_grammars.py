"""Four grammars written by hand, with texts to replay: as GBNF, as xgrammar's dialect of it, and as Lark for llguidance.

All writings have the same texts. xgrammar's strings say what may follow them, as its own grammar of JSON does; without that
its masks take tens of milliseconds. `TEXTS[name]`: (text, whether it belongs to the language).
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.lab.bench.mask_peers import LLGuidance, MaskEngine, XGrammar
from hasten.lab.bench.mask_vocabulary import Words
from hasten.lab.bench.masks import Times, quiet, room, walk

_STRING = r"""
string ::= "\"" ( [^"\\\x00-\x1f] | "\\" escape )* "\""
"""
_STRING_FOLLOWED = r"""
string ::= "\"" rest
rest ::= ( "\"" | [^"\\\x00-\x1f] rest | "\\" escape rest ) (= ws [,}\]:])
"""
_QUOTED = r"""
quoted ::= "'" [^'\n]* "'"
"""
_QUOTED_FOLLOWED = r"""
quoted ::= "'" rest
rest ::= ( "'" | [^'\n] rest ) (= [ );])
"""
_VALUE = r"""
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws ( pair ( ws "," ws pair )* )? ws "}"
pair ::= string ws ":" ws value
array ::= "[" ws ( value ( ws "," ws value )* )? ws "]"
escape ::= ["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F]
number ::= "-"? ( "0" | [1-9] [0-9]* ) ( "." [0-9]+ )? ( [eE] [-+]? [0-9]+ )?
ws ::= [ \n]*
"""


def _bnf(string: str, quoted: str) -> dict[str, str]:
    return {
        "json": "root ::= object | array" + _VALUE + string,
        "call": r"""
root ::= call
call ::= "{\"name\": \"" [a-z_]+ "\", \"arguments\": {" ( argument ( ", " argument )* )? "}}"
argument ::= string ": " ( call | value )
"""
        + _VALUE
        + string,
        "arithmetic": r"""
root ::= sum
sum ::= product ( ( " + " | " - " ) product )*
product ::= factor ( ( " * " | " / " ) factor )*
factor ::= [0-9]+ ( "." [0-9]+ )? | [a-z]+ | "-" factor | "(" sum ")"
""",
        "sql": r"""
root ::= query ";"
query ::= "SELECT " columns " FROM " name ( " JOIN " name " ON " condition )* ( " WHERE " condition )? ( " LIMIT " digits )?
columns ::= "*" | column ( ", " column )*
column ::= path | ( "COUNT" | "SUM" | "MAX" ) "(" ( "*" | path ) ")"
condition ::= test ( ( " AND " | " OR " ) test )*
test ::= operand ( " = " | " < " | " > " ) operand | operand " IN (" query ")" | "(" condition ")"
operand ::= path | digits | quoted
path ::= name ( "." name )?
name ::= [a-z] [a-z_0-9]*
digits ::= [0-9]+
"""
        + quoted,
    }


GBNF = _bnf(_STRING, _QUOTED)
XGRAMMAR = _bnf(_STRING_FOLLOWED, _QUOTED_FOLLOWED)
_LARK_VALUE = r"""
value: object | array | STRING | NUMBER | "true" | "false" | "null"
object: "{" WS? (pair (WS? "," WS? pair)*)? WS? "}"
pair: STRING WS? ":" WS? value
array: "[" WS? (value (WS? "," WS? value)*)? WS? "]"
STRING: /"([^"\\\x00-\x1f]|\\(["\\\/bfnrt]|u[0-9a-fA-F]{4}))*"/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/
WS: /[ \n]+/
"""

LARK = {
    "json": "start: object | array" + _LARK_VALUE,
    "call": r"""
start: call
call: "{\"name\": \"" NAME "\", \"arguments\": {" (argument (", " argument)*)? "}}"
argument: STRING ": " (call | value)
NAME: /[a-z_]+/
"""
    + _LARK_VALUE,
    "arithmetic": r"""
start: sum
sum: product ((" + " | " - ") product)*
product: factor ((" * " | " / ") factor)*
factor: NUMBER | WORD | "-" factor | "(" sum ")"
NUMBER: /[0-9]+(\.[0-9]+)?/
WORD: /[a-z]+/
""",
    "sql": r"""
start: query ";"
query: "SELECT " columns " FROM " NAME (" JOIN " NAME " ON " condition)* (" WHERE " condition)? (" LIMIT " DIGITS)?
columns: "*" | column (", " column)*
column: path | ("COUNT" | "SUM" | "MAX") "(" ("*" | path) ")"
condition: test ((" AND " | " OR ") test)*
test: operand (" = " | " < " | " > ") operand | operand " IN (" query ")" | "(" condition ")"
operand: path | DIGITS | QUOTED
path: NAME ("." NAME)?
NAME: /[a-z][a-z_0-9]*/
DIGITS: /[0-9]+/
QUOTED: /'[^'\n]*'/
""",
}
TEXTS: dict[str, list[tuple[str, bool]]] = {
    "json": [
        ('{"name": "Ada \\u00e9", "born": 1815, "notes": [1, -2.5e3, true, null, {"deep": [[], {}]}], "x": "\\n"}', True),
        ('[ {"a": [0, 10, 200]}, "a longer string, with, commas: and {brackets}" ]', True),
        ('{"a": 01}', False),
        ('["a\nb"]', False),
    ],
    "call": [
        ('{"name": "send_mail", "arguments": {"to": ["a@b.org"], "body": {"name": "summary", "arguments": {"n": 3}}}}', True),
        ('{"name": "now", "arguments": {}}', True),
        ('{"name": "Now", "arguments": {}}', False),
        ('{"name": "now", "arguments": []}', False),
    ],
    "arithmetic": [
        ("(alpha + 12.5) * -(beta - 3 / (gamma + 100)) + ((x)) * 7 - total", True),
        ("1 + 22 + 333 * (4444 - 5 * 6) / seven", True),
        ("(1 + 2", False),
        ("1 +", False),
    ],
    "sql": [
        ("SELECT COUNT(*), person.name FROM person JOIN city ON city = city.id WHERE (a > 3 AND name = 'Ann') LIMIT 5;", True),
        ("SELECT * FROM orders WHERE customer IN (SELECT id FROM customers WHERE country = 'New Zealand');", True),
        ("SELECT FROM orders;", False),
        ("SELECT * FROM orders WHERE ;", False),
    ],
}  # fmt: skip


def measure(engines: Sequence[MaskEngine], words: Words) -> dict[str, dict[str, Times]]:
    """The times of every grammar, by engine. Raises RuntimeError where an engine judges a text wrongly, since then its grammar
    is another one."""
    masks = room(words)
    found: dict[str, dict[str, Times]] = {name: {} for name in GBNF}
    for name, of in found.items():
        for engine in engines:
            compiled = engine.compile(*_written(engine, name))
            of[engine.name] = Times()
            with quiet():
                for text, valid in TEXTS[name]:
                    if walk(engine, compiled, words.split(text), masks, of[engine.name]) is not valid:
                        raise RuntimeError(f"{engine.name} judges {text!r} wrongly")
    return found


def _written(engine: MaskEngine, name: str) -> tuple[str, str]:
    if isinstance(engine, LLGuidance):
        return "lark", LARK[name]
    return "gbnf", (XGRAMMAR if isinstance(engine, XGrammar) else GBNF)[name]
