"""Pre^3: grammars as deterministic pushdown automata, prepared ahead of the tokens that they mask.

Paper: "Pre^3: Enabling Deterministic Pushdown Automata for Faster Structured LLM Generation" (2025). An LR(1) grammar becomes a
deterministic pushdown automaton whose edges already hold their reductions, with what each edge demands of the stack; tokens
that stay within a lexeme are the same whatever lies on the stack, so most of a mask is one row copied; the rest is resolved
once for each stack seen and kept. Exact: a constrained answer is the plain engine's distribution cut down to what the grammar
allows at each token, and requests without a constraint are untouched. A mask costs a copy of vocabulary / 8 bytes and a walk
over the few stack states it depends on.

Where it differs from the paper: lexing is part of the automaton (terminals are automata of bytes, so tokens may begin and
end anywhere); edges are made when a stack first asks for them, not all ahead, so that a schema costs milliseconds; what LR(1)
cannot decide runs as several threads instead of being refused; and frames beside the stack hold what would need too many
states: keys in any order, counts, uniqueness.

This file is the policy: who compiles what when. The machine is `constraints/machine.py`, over kernels/grammar.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.engine.decoding.base import ConstraintState
from hasten.engine.decoding.constraints.armed import Armed, Watch
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.compiling import Compilations, Prepared, Spec, prepare, split
from hasten.engine.request import BadRequest, Request
from hasten.engine.technique import Technique
from hasten.engine.text import load_text

if TYPE_CHECKING:
    from hasten.engine.build import Parts
    from hasten.engine.decoding.constraints.machine import CompiledGrammar, Vocabulary
    from hasten.engine.text import Tokenizer

MOST_WATCHES = 64


@dataclass(frozen=True, slots=True)
class Options:
    """`compile_s`: most seconds of processor time for one grammar. `kept_bytes`: of all compiled grammars that no request uses;
    `grammar_bytes`: of one, with its masks."""

    compile_s: float = 5.0
    grammar_bytes: int = 256 << 20
    kept_bytes: int = 512 << 20


class Pre3:
    """Nothing is built before the first request with a constraint."""

    def __init__(self, parts: Parts, options: Options) -> None:
        self._parts = parts
        self._options = options
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._watches: dict[str, Watch] = {}
        self._grammars: Compilations[CompiledGrammar] = Compilations(options.kept_bytes, lambda grammar: grammar.bytes)

    def prepare(self, request: Request) -> Future[CompiledGrammar] | None:
        try:
            spec, _ = split(request.sampling.constraint)
            compiling = self._compile(spec)
            if isinstance(spec, Prepared):
                return compiling
            # What was not checked by whoever sent it is checked before it is accepted.
            compiling.result()
        except (GrammarError, RuntimeError) as error:  # or the native library is not there
            raise BadRequest(str(error), "constraint") from None
        return None

    def start(self, request: Request) -> ConstraintState:
        spec, after = split(request.sampling.constraint)
        state = self._compile(spec).result().start()
        return state if after is None else Armed(state, self._watch(after))

    def _compile(self, spec: Spec | Prepared) -> Future[CompiledGrammar]:
        return self._grammars.get(spec.key, lambda: self._compiled(spec))

    def _compiled(self, spec: Spec | Prepared) -> CompiledGrammar:
        from hasten.engine.decoding.constraints.machine import CompiledGrammar

        limits = Limits(self._options.compile_s, bytes=self._options.grammar_bytes)
        prepared = prepare(spec, limits)
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._read_vocabulary()
        return CompiledGrammar(prepared.blob, self._vocabulary, limits)

    def _read_vocabulary(self) -> Vocabulary:
        from hasten.engine.decoding.constraints.machine import Vocabulary

        size = self._parts.model.vocabulary
        return Vocabulary(tokenizer_of(self._parts).pieces.table(size), [end for end in self._parts.eos if end < size])

    def _watch(self, text: str) -> Watch:
        watch = self._watches.get(text)
        if watch is None:
            tokenizer, size = tokenizer_of(self._parts), self._parts.model.vocabulary
            ends = [end for end in self._parts.eos if end < size]
            watch = Watch(text.encode(), tokenizer.token_bytes, tokenizer.pieces.table(size), ends)
            if len(self._watches) < MOST_WATCHES:  # texts come from requests
                self._watches[text] = watch
        return watch


def tokenizer_of(parts: Parts) -> Tokenizer:
    """The tokenizer of the model that `parts` serve, read when first asked for if nobody has brought it."""
    if parts.tokenizer is None:
        parts.tokenizer, _ = load_text(parts.config.model)
    return parts.tokenizer


TECHNIQUE = Technique(
    name="pre3",
    seam="decoding",
    summary="answers that follow a JSON Schema, a grammar, a regular expression or a list of tools; masks prepared ahead",
    exact=True,
    default=True,
    sets={"decoding.constraint": "pre3"},
    options=Options,
    make=Pre3,
    paper="Pre^3: Enabling Deterministic Pushdown Automata for Faster Structured LLM Generation (2025)",
)
