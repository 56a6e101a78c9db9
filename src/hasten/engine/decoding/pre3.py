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

Left out, with no change to what is legal: right recursion is not folded here, so its stack grows with the text (the readable
`constraints/reference.py` folds it); masks are made after the forward pass, not beside it. The first masks at places that were
not seen before cost some ten times the later ones.

This file is the policy: who compiles what when. The machine is `constraints/machine.py`, over kernels/grammar.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.engine.decoding.constraints.base import Limits
from hasten.engine.decoding.constraints.compiling import Prepared, Spec, prepare
from hasten.engine.decoding.constraints.policy import GrammarPolicy
from hasten.engine.technique import Technique

if TYPE_CHECKING:
    from hasten.engine.build import Parts
    from hasten.engine.decoding.constraints.machine import CompiledGrammar, Vocabulary


@dataclass(frozen=True, slots=True)
class Options:
    """`compile_s`: most seconds of processor time for one grammar. `kept_bytes`: of all compiled grammars that no request uses;
    `grammar_bytes`: of one, with its masks."""

    compile_s: float = 5.0
    grammar_bytes: int = 256 << 20
    kept_bytes: int = 512 << 20


class Pre3(GrammarPolicy["Vocabulary", "CompiledGrammar"]):
    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts, options.kept_bytes)
        self._options = options

    def _accepted(self, compiling: Future[CompiledGrammar], spec: Spec | Prepared) -> bool:
        """What was not checked by whoever sent it is checked before it is accepted."""
        return isinstance(spec, Prepared) or super()._accepted(compiling, spec)

    def _read_vocabulary(self, pieces: Seq[bytes], ends: Seq[int]) -> Vocabulary:
        from hasten.engine.decoding.constraints.machine import Vocabulary

        return Vocabulary(pieces, ends)

    def _compiled(self, spec: Spec | Prepared) -> CompiledGrammar:
        from hasten.engine.decoding.constraints.machine import CompiledGrammar

        limits = Limits(self._options.compile_s, bytes=self._options.grammar_bytes)
        prepared = prepare(spec, limits)
        return CompiledGrammar(prepared.blob, self._vocabulary(), limits)


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
