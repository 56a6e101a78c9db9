"""JSON Schema to a grammar.

`keywords.py` reads a schema as a formula, `normal.py` makes alternatives of it, `arrays.py` and `objects.py` say how their
containers are written, `emptiness.py` finds what cannot be finished, and `emit.py` writes the productions.
"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Grammar
from hasten.engine.decoding.constraints.schema.conditions import Conditions
from hasten.engine.decoding.constraints.schema.emit import Emitter, Unsatisfiable
from hasten.engine.decoding.constraints.schema.emptiness import Nodes
from hasten.engine.decoding.constraints.schema.formulas import Formulas
from hasten.engine.decoding.constraints.schema.keywords import Keywords
from hasten.engine.decoding.constraints.schema.normal import Normal
from hasten.engine.decoding.constraints.schema.scalars import Scalars

__all__ = ["Unsatisfiable", "compile_schema"]

MOST_BLANKS = 1_000
"""In one place, where they are counted."""


def compile_schema(
    schema: dict[str, Any] | bool | str,
    *,
    whitespace: str | int = "any",
    order: str = "any",
    lenient: bool = False,
    limits: Limits | None = None,
) -> Grammar:
    """The grammar of the JSON texts that satisfy the schema (a string: its text).

    `whitespace`: "any" as JSON allows it, at most so many characters in each place, "compact" for none, or "spaced" for one
    after commas and colons. `order`: of properties, "any", or "schema" for named ones as they are listed, others after them.
    `lenient`: a keyword that cannot be enforced is left out, with a warning in the grammar, instead of refused.

    Raises GrammarError: the schema is not valid, says something that cannot be enforced, cannot be satisfied, or compiling it
    takes more than `limits` allow.
    """
    if order not in ("any", "schema"):
        raise GrammarError(f'the order is "any" or "schema", not {order!r}')
    if not (whitespace in ("any", "compact", "spaced") or (type(whitespace) is int and 0 <= whitespace <= MOST_BLANKS)):
        raise GrammarError(f'whitespace is "any", "compact", "spaced" or up to {MOST_BLANKS} characters, not {whitespace!r}')
    limits = limits or Limits()
    try:
        if isinstance(schema, str):
            schema = json.loads(schema, parse_float=_exact)
        formulas, conditions = Formulas(), Conditions()
        keywords = Keywords(schema, formulas, limits, lenient)
        scalars = Scalars(conditions, limits)
        normal = Normal(formulas, conditions, keywords, scalars, limits)
        grammar = Emitter(Nodes(keywords.root, normal, limits), whitespace, order, limits).emit(keywords.root)
    except RecursionError:
        raise GrammarError("its schemas are nested too deep") from None
    except ValueError as error:
        if isinstance(error, GrammarError):
            raise
        raise GrammarError(f"the schema is no JSON: {error}") from None
    grammar.warnings += dict.fromkeys(keywords.warnings)
    return grammar


def _exact(number: str) -> Decimal:
    try:
        return Decimal(number)
    except InvalidOperation:
        raise GrammarError(f"{number:.60} is beyond all bounds") from None
