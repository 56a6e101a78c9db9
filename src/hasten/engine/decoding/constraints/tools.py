"""Tools: how a model writes calls of functions, the grammar of answers that may hold some, and reading them as they come."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grafting import graft
from hasten.engine.decoding.constraints.grammar import Grammar, Terminal
from hasten.engine.decoding.constraints.languages import ANY, EVERYTHING, SURROGATE, Expr, both, cat, repeat, text, without
from hasten.engine.decoding.constraints.spec import ConstraintSpec


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A call is `open`, the name, `middle`, the arguments, `close`; several have `between` between them. `marker`: what of
    `open` no other text may hold; empty: calls come first or not at all, and other text does not begin with `open`."""

    open: str
    middle: str
    close: str
    between: str
    marker: str = ""


HERMES = ToolFormat('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n", "<tool_call>")
"""Hermes, Qwen and the built-in model."""
LLAMA = ToolFormat('{"name": "', '", "parameters": ', "}", "; ")
JSON = ToolFormat('{"name": "', '", "arguments": ', "}", "\n")
"""Of models whose template says nothing that we know."""


def format_of(template: str) -> ToolFormat:
    """The format that a chat template writes calls in."""
    if "<tool_call>" in template:
        return HERMES
    if "<|python_tag|>" in template or '"parameters": ' in template:
        return LLAMA
    return JSON


@dataclass(frozen=True, slots=True)
class Tool:
    """`parameters`: JSON Schema, as text, of the arguments, an object. `strict`: all of it is enforced or it is refused;
    otherwise as much as can be."""

    name: str
    parameters: str = '{"type": "object"}'
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A constraint (`compiling.Spec`): answers that call tools. `required`: one call or more comes, and nothing else; otherwise
    there may be text, in a format with a marker also before the calls, which satisfies `answer` if that is given. `parallel`:
    there may be several calls."""

    tools: tuple[Tool, ...]
    format: ToolFormat = HERMES
    required: bool = False
    parallel: bool = True
    answer: ConstraintSpec | None = None
    whitespace: str | int = "any"

    @property
    def key(self) -> ToolSpec:
        return self

    def compile(self, limits: Limits) -> Grammar:
        """Raises GrammarError, whose `where` is `tool NAME`, or `the answer`."""
        grammar, form = Grammar(), self.format
        calls, call = grammar.nonterminal("calls"), grammar.nonterminal("call")
        close = grammar.terminal(Terminal(text(form.close), name="end of call"))
        for tool in self.tools:
            if json.dumps(tool.name, ensure_ascii=False) != f'"{tool.name}"' or SURROGATE.search(tool.name):
                raise GrammarError(f"JSON has no plain way to write the name {tool.name!r:.80}", where="tools")
            opened = grammar.terminal(Terminal(text(form.open + tool.name + form.middle), name=f"call of {tool.name}"))
            grammar.produce(call, opened, graft(grammar, self._arguments(tool, limits)), close)
        grammar.produce(calls, call)
        if self.parallel:
            between = grammar.terminal(Terminal(text(form.between), name="next call"))
            grammar.produce(calls, calls, between, call)
        grammar.start = calls
        if not self.required:
            grammar.start = grammar.nonterminal("answer")
            grammar.produce(grammar.start, calls)
            if self.answer is not None:
                answer = self._answer(self.answer, limits)
                if answer.longest:
                    raise GrammarError("a grammar as Lark writes it cannot stand beside tools; GBNF can")
                grammar.produce(grammar.start, graft(grammar, answer))
            else:
                other = grammar.terminal(Terminal(self._other(), name="text"))
                grammar.produce(grammar.start, other)
                if form.marker:
                    grammar.produce(grammar.start, other, calls)
        return grammar

    def _other(self) -> Expr:
        """Text that is no call."""
        form = self.format
        call = cat(EVERYTHING, text(form.marker), EVERYTHING) if form.marker else cat(text(form.open), EVERYTHING)
        return both(without(call), repeat(ANY, 1))

    def _answer(self, answer: ConstraintSpec, limits: Limits) -> Grammar:
        try:
            return answer.compile(limits)
        except GrammarError as error:
            raise GrammarError(str(error), where="the answer") from None

    def _arguments(self, tool: Tool, limits: Limits) -> Grammar:
        try:
            return ConstraintSpec("json_schema", tool.parameters, self.whitespace, lenient=not tool.strict).compile(limits)
        except GrammarError as error:
            if tool.strict:
                raise GrammarError(str(error), where=f"tool {tool.name}") from None
            grammar = ConstraintSpec("json_object", "", self.whitespace).compile(limits)
            grammar.warnings.append(f"tool {tool.name}: arguments may be any object: {error}")
            return grammar


Found = tuple[Literal["text", "call", "arguments"], str]
"""A piece of text beside the calls; the name of a call that begins; a piece of its arguments."""


class CallReader:
    """Reads an answer that follows a `ToolSpec`'s grammar, however it is cut into pieces."""

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._left = ""
        self._state: Literal["text", "name", "arguments", "close"] = "text"
        self._nested, self._quoted, self._escaped = 0, False, False
        self._said = False
        self.calls = 0

    @property
    def midway(self) -> bool:
        """Whether the arguments of the last call are not complete."""
        return self._state == "arguments"

    def feed(self, text: str) -> list[Found]:
        """What is certain after `text`."""
        self._left += text
        found: list[Found] = []
        while self._advance(found):
            pass
        return [(kind, piece) for kind, piece in found if piece]

    def end(self) -> list[Found]:
        """The answer is over: what was held back because a call might have begun with it."""
        left, self._left = self._left, ""
        return [("text", left)] if self._state == "text" and left and not self.calls else []

    def _advance(self, found: list[Found]) -> bool:
        """Take one part of what is left; False when more must come first."""
        if self._state == "text":
            return self._text(found)
        if self._state == "arguments":
            return self._arguments(found)
        wanted = self._form.middle if self._state == "name" else self._form.close
        before, there, self._left = self._cut(wanted)
        if not there:
            return False
        if self._state == "name":
            self.calls += 1
            found.append(("call", before))
        self._state, self._said = ("arguments" if self._state == "name" else "text"), False
        return True

    def _cut(self, wanted: str) -> tuple[str, bool, str]:
        before, there, after = self._left.partition(wanted)
        return (before, True, after) if there else ("", False, self._left)

    def _text(self, found: list[Found]) -> bool:
        text = self._left
        opening = self._form.between + self._form.open if self.calls else self._form.open
        anywhere = bool(self._form.marker) and not self.calls  # otherwise a call begins right here or not at all
        at = text.find(opening) if anywhere else 0 if text.startswith(opening) and not self._said else -1
        if at >= 0:
            self._tell(text[:at].rstrip(), found)
            self._left, self._state = text[at + len(opening) :], "name"
            return True
        held = 0
        if anywhere:
            held = next((n for n in range(min(len(text), len(opening) - 1), 0, -1) if opening.startswith(text[-n:])), 0)
        elif opening.startswith(text) and not self._said:
            held = len(text)
        sure = text[: len(text) - held]
        kept = sure.rstrip() if anywhere else sure  # blanks before a call are no part of what is said
        self._tell(kept, found)
        self._left = text[len(kept) :]
        return False

    def _tell(self, text: str, found: list[Found]) -> None:
        self._said = self._said or bool(text)
        found.append(("text", text))

    def _arguments(self, found: list[Found]) -> bool:
        for at, letter in enumerate(self._left):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._quoted = False
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._nested += 1
            elif letter in "}]":
                self._nested -= 1
                if not self._nested:
                    found.append(("arguments", self._left[: at + 1]))
                    self._left, self._state = self._left[at + 1 :], "close"
                    return True
        found.append(("arguments", self._left))
        self._left = ""
        return False
