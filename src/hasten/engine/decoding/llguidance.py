"""llguidance: masks from the package of that name (extra `grammar`), as another back end of constraints.

Source: github.com/guidance-ai/llguidance (Microsoft, 2024); no paper. An Earley parser over a lexer of regular-expression
derivatives, both built as a text needs them; a mask is a walk over the vocabulary's prefix tree, shortened by sets of tokens
known to lie inside of a lexeme. Nothing is compiled ahead: grammars are ready at once, and a mask costs what the place
in the grammar costs. Exact: an answer is the plain engine's distribution cut down to what llguidance allows. That is less than
the language: where the text is forced it allows one way to split it into tokens, the tokenizer's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.external import Compiled, Ends, External, choices, load, schema
from hasten.engine.decoding.constraints.policy import tokenizer_of
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.technique import Technique

if TYPE_CHECKING:
    from hasten.engine.build import Parts
    from hasten.engine.text import Tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    tokenizer: Any
    ends: Ends


class Wrapped:
    """Our tokenizer as `LLTokenizer` wants it: what begins with 0xFF, a byte that no text holds, is no text."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: Tokenizer, pieces: Seq[bytes], end: int) -> None:
        self.tokens = [piece or b"\xff<%d>" % token for token, piece in enumerate(pieces)]
        self.eos_token_id = end
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


class Matcher:
    __slots__ = ("_inner",)

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property
    def ended(self) -> bool:
        return bool(self._inner.is_accepting())

    def fill(self, mask: npt.NDArray[np.int32]) -> None:
        self._inner.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()

    def accept(self, token: int) -> bool:
        accepted = bool(self._inner.try_consume_tokens([token]))
        self._check()
        return accepted

    def rollback(self, count: int) -> None:
        self._inner.rollback(count)

    def fork(self) -> Matcher:
        return Matcher(self._inner.deep_copy())

    def forced(self) -> bytes:
        return bytes(self._inner.compute_ff_bytes())

    def _check(self) -> None:
        """After it has reached a limit of its own it allows nothing but the end."""
        if self._inner.is_error():
            raise ValueError(f"llguidance gave up: {self._inner.get_error()}")


class LLGuidance(External[Vocabulary]):
    name = "llguidance"

    def __init__(self, parts: Parts, options: None) -> None:
        super().__init__(parts, kept_bytes=0)
        self._package = load("llguidance")

    def _read_vocabulary(self, pieces: Seq[bytes], ends: Seq[int]) -> Vocabulary:
        if not ends:
            raise GrammarError("a model with a token that ends texts is wanted", self.name)
        wrapped = Wrapped(tokenizer_of(self._parts), pieces, ends[0])
        tokenizer = self._package.LLTokenizer(wrapped, n_vocab=len(pieces), eos_token=ends[0])
        return Vocabulary(tokenizer, Ends(pieces, ends))

    def _translated(self, spec: ConstraintSpec, vocabulary: Vocabulary) -> Compiled:
        try:
            matcher = self._package.LLMatcher(vocabulary.tokenizer, self._grammar(spec), log_level=0)
        except ValueError as error:
            raise GrammarError(str(error), f"llguidance, {spec.kind}") from None
        if matcher.is_error():
            raise GrammarError(matcher.get_error().strip(), f"llguidance, {spec.kind}")
        for warning in matcher.get_grammar_warnings():
            _log.warning("a grammar: %.500s", warning)
        # What it takes is not told; `Compilations` keeps a limited number.
        return Compiled(Matcher(matcher), vocabulary.ends, bytes=0)

    def _grammar(self, spec: ConstraintSpec) -> str:
        """Raises ValueError."""
        matcher = self._package.LLMatcher
        match spec.kind:
            case "json_schema" | "json_object":
                options = {"lenient": spec.lenient, "coerce_one_of": spec.lenient, **_whitespace(spec.whitespace)}
                return str(matcher.grammar_from_json_schema(schema(spec), overrides=options))
            case "choice":
                lark = choices(spec, "start:")
            case "regex":
                lark = f"start: /{self._package.regex_to_lark(spec.text, 'dw')}/\n"
            case "ebnf":
                lark = str(spec.text)
            case "gbnf":
                lark = self._from_gbnf(str(spec.text))
        return str(matcher.grammar_from_lark(lark))

    def _from_gbnf(self, text: str) -> str:
        translation = load("llguidance.gbnf_to_lark")
        try:
            return str(translation.gbnf_to_lark(text))
        except Exception as error:  # of its own kind and of others
            raise ValueError(str(error)) from None


def _whitespace(wanted: str | int) -> dict[str, Any]:
    match wanted:
        case "any":
            return {"whitespace_flexible": True}
        case "compact":
            return {"whitespace_flexible": False}
        case "spaced":
            return {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return {"whitespace_pattern": f"[ \\n\\r\\t]{{0,{wanted}}}"}


TECHNIQUE = Technique(
    name="llguidance",
    seam="decoding",
    summary="masks of constraints from the package llguidance instead of pre3's, which it follows where it can",
    exact=True,
    sets={"decoding.constraint": "llguidance"},
    make=LLGuidance,
)
