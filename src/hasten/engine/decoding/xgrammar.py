"""XGrammar: masks from the package of that name (extra `grammar`), as another back end of constraints.

Paper: "XGrammar: Flexible and Efficient Structured Generation Engine for Large Language Models" (2024). A grammar of bytes runs
as a pushdown automaton (an Earley parser, since 0.1.20); tokens whose legality does not depend on the stack are checked for
every state when the grammar is compiled, so that a mask only walks the others. Exact: an answer is the plain engine's
distribution cut down to what XGrammar allows. That is not always the language that was asked for: keywords that it does
not know are passed over without a word. Compiling takes time in proportion to states times vocabulary, a mask then
microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.external import Compiled, Ends, External, choices, load, schema
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.technique import Technique

if TYPE_CHECKING:
    from hasten.engine.build import Parts

_PLACE = re.compile(r"^\[[0-9:]+\] \S+:[0-9]+: ")
"""Of the C++ source that an error begins with."""


@dataclass(frozen=True, slots=True)
class Options:
    """`threads`: that compile one grammar. `kept_bytes`: of all compiled grammars that no request uses."""

    threads: int = 2
    kept_bytes: int = 512 << 20


@dataclass(frozen=True, slots=True)
class Vocabulary:
    compiler: Any
    ends: Ends


class Matcher:
    """A `GrammarMatcher` that knows no end tokens."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property
    def ended(self) -> bool:
        return bool(self._inner.is_completed())

    def fill(self, mask: npt.NDArray[np.int32]) -> None:
        self._inner.fill_next_token_bitmask(mask)

    def accept(self, token: int) -> bool:
        return bool(self._inner.accept_token(token))

    def rollback(self, count: int) -> None:
        self._inner.rollback(count)

    def fork(self) -> Matcher:
        return Matcher(self._inner.fork())

    def forced(self) -> bytes:
        try:
            return str(self._inner.find_jump_forward_string()).encode()
        except UnicodeDecodeError as error:  # it ends within a character
            return bytes(error.object)


class XGrammar(External[Vocabulary]):
    name = "xgrammar"

    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts, options.kept_bytes)
        self._package = load("xgrammar")
        self._threads = options.threads

    def _read_vocabulary(self, pieces: Seq[bytes], ends: Seq[int]) -> Vocabulary:
        info = self._package.TokenizerInfo(pieces, self._package.VocabType.RAW, vocab_size=len(pieces), stop_token_ids=[])
        # Its own cache would keep what ours has forgotten.
        compiler = self._package.GrammarCompiler(info, max_threads=self._threads, cache_enabled=False)
        return Vocabulary(compiler, Ends(pieces, ends))

    def _translated(self, spec: ConstraintSpec, vocabulary: Vocabulary) -> Compiled:
        try:
            compiled = vocabulary.compiler.compile_grammar(self._grammar(spec))
            return Compiled(Matcher(self._package.GrammarMatcher(compiled)), vocabulary.ends, compiled.memory_size_bytes)
        except (RuntimeError, ValueError) as error:
            raise GrammarError(_PLACE.sub("", str(error)).strip(), f"xgrammar, {spec.kind}") from None

    def _grammar(self, spec: ConstraintSpec) -> Any:
        grammar = self._package.Grammar
        match spec.kind:
            case "json_schema" | "json_object":
                return grammar.from_json_schema(schema(spec), strict_mode=False, **_whitespace(spec.whitespace))
            case "choice":
                return grammar.from_ebnf(choices(spec, "root ::="))
            case "regex":
                return grammar.from_regex(spec.text)
            case "ebnf":
                return grammar.from_lark(spec.text)
            case "gbnf":
                return grammar.from_ebnf(spec.text)


def _whitespace(wanted: str | int) -> dict[str, Any]:
    match wanted:
        case "any":
            return {"any_whitespace": True}
        case "compact" | 0:
            return {"any_whitespace": False, "separators": (",", ":")}
        case "spaced":
            return {"any_whitespace": False, "separators": (", ", ": ")}
    return {"any_whitespace": True, "max_whitespace_cnt": wanted}


TECHNIQUE = Technique(
    name="xgrammar",
    seam="decoding",
    summary="masks of constraints from the package xgrammar instead of pre3's, which it follows where it can",
    exact=True,
    sets={"decoding.constraint": "xgrammar"},
    options=Options,
    make=XGrammar,
    paper="XGrammar: Flexible and Efficient Structured Generation Engine for Large Language Models (2024)",
)
