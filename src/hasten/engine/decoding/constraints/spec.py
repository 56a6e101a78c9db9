"""What a request carries to say which texts it wants: a grammar as its writer has it, in one of several notations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Grammar
from hasten.engine.decoding.constraints.languages import Expr, words
from hasten.engine.decoding.constraints.rules import grammar_of, text

Kind = Literal["json_schema", "json_object", "regex", "ebnf", "gbnf", "choice"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class ConstraintSpec:
    """`text`: the schema (JSON), the pattern (which the whole text matches), the grammar, or the choices; of "json_object"
    nothing. `whitespace`, `order` and `lenient` concern JSON and mean what they mean to `schema.compile_schema`."""

    kind: Kind
    text: str | tuple[str, ...] = ""
    whitespace: str | int = "any"
    order: str = "any"
    lenient: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise GrammarError(f"there is no kind of constraint {self.kind!r}; there are {', '.join(KINDS)}")
        if self.kind == "choice":
            if not self.text or isinstance(self.text, str) or not all(isinstance(one, str) and one for one in self.text):
                raise GrammarError("one text or more is wanted, none of them empty", "choice")
        elif not isinstance(self.text, str):
            raise GrammarError(f"a text is wanted, not {type(self.text).__name__}", self.kind)

    @classmethod
    def of_schema(cls, schema: dict[str, Any] | bool, **options: Any) -> ConstraintSpec:
        try:
            return cls("json_schema", json.dumps(schema, ensure_ascii=False), **options)
        except RecursionError:
            raise GrammarError("its schemas are nested too deep", "json_schema") from None

    @classmethod
    def of_choices(cls, choices: Sequence[str]) -> ConstraintSpec:
        return cls("choice", tuple(choices))

    @property
    def key(self) -> ConstraintSpec:
        """Equal for those that compile to the same grammar."""
        if self.kind == "choice":
            return ConstraintSpec("choice", tuple(sorted(set(self.text))))
        if self.kind in ("json_schema", "json_object"):
            return self
        return ConstraintSpec(self.kind, self.text)

    def compile(self, limits: Limits) -> Grammar:
        """Raises GrammarError."""
        try:
            return self._compile(limits)
        except RecursionError:
            raise GrammarError("it is nested too deep", self.kind) from None

    def _compile(self, limits: Limits) -> Grammar:
        match self.kind:
            case "json_schema" | "json_object":
                from hasten.engine.decoding.constraints.schema import compile_schema

                schema = self.text if self.kind == "json_schema" else {"type": "object"}
                assert not isinstance(schema, tuple)
                return compile_schema(schema, whitespace=self.whitespace, order=self.order, lenient=self.lenient, limits=limits)
            case "choice":
                return _single(words(self.text), limits)
            case "regex":
                from hasten.engine.decoding.constraints import regex

                return _single(regex.parse(str(self.text), search=False, limits=limits), limits)
            case "ebnf":
                from hasten.engine.decoding.constraints import ebnf

                return ebnf.parse(str(self.text), limits)
            case "gbnf":
                from hasten.engine.decoding.constraints import gbnf

                return gbnf.parse(str(self.text), limits)


def _single(language: Expr, limits: Limits) -> Grammar:
    """Texts of one language."""
    return grammar_of({"text": text(language, "text")}, "text", limits, longest=False)
