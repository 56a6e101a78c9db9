"""Engines of masks behind one face, to be measured side by side: ours, and llguidance and xgrammar where they are installed.

Each peer is given the setting it is fastest with, as llguidance its slices of JSON; xgrammar keeps no grammars, since compiling
is timed. Masks are filled by one thread.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.compiling import Compilations
from hasten.engine.decoding.constraints.machine import CompiledGrammar, State, Vocabulary
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.lab.bench.mask_vocabulary import Words

INSTALLED = tuple(name for name in ("llguidance", "xgrammar") if importlib.util.find_spec(name) is not None)
Masks = npt.NDArray[np.int32]
"""[states, words]"""


class Refused(ValueError):
    """An engine does not take a grammar."""


class MaskEngine(Protocol):
    name: str

    def compile(self, kind: str, text: str) -> Any:
        """`kind`: "json_schema", or a notation of grammars that the engine reads. Raises Refused."""

    def start(self, compiled: Any) -> Any: ...
    def fill(self, state: Any, masks: Masks) -> None:
        """Into the first row."""

    def fill_many(self, states: Sequence[Any], masks: Masks) -> None: ...
    def accept(self, state: Any, token: int) -> bool: ...
    def ended(self, state: Any) -> bool: ...
    def bytes(self, compiled: Any) -> int:
        """Memory of a compiled grammar; 0 where the engine does not say."""


def peers(words: Words, *, whole: bool = True, threads: int = 1) -> list[MaskEngine]:
    """Those that are installed, in their settings; `whole` leaves out what takes half a minute for one schema. `threads`: of a
    compilation, where the peer can use several."""
    found: list[MaskEngine] = []
    if "llguidance" in INSTALLED:
        found += [LLGuidance(words), LLGuidance(words, lenient=True)]
    if "xgrammar" in INSTALLED:
        found += [XGrammar(words, threads=threads)]
        found += [XGrammar(words, open_=True, threads=threads)] if whole else []
    return found


class Hasten:
    name = "hasten"

    def __init__(self, words: Words) -> None:
        self.vocabulary = Vocabulary(words.all, [words.end])
        self._kept: Compilations[CompiledGrammar] = Compilations(512 << 20, lambda grammar: grammar.bytes)

    def compile(self, kind: str, text: str) -> CompiledGrammar:
        return self._compile(ConstraintSpec(kind, text))  # type: ignore[arg-type]

    def again(self, text: str) -> CompiledGrammar:
        """What a request gets whose schema was asked for before, if it was."""
        spec = ConstraintSpec("json_schema", text)
        return self._kept.get(spec.key, lambda: self._compile(spec)).result()

    def _compile(self, spec: ConstraintSpec) -> CompiledGrammar:
        try:
            limits = Limits()
            return CompiledGrammar(spec.compile(limits), self.vocabulary, limits)
        except GrammarError as error:
            raise Refused(str(error)) from None

    def start(self, compiled: CompiledGrammar) -> State:
        return compiled.start()

    def fill(self, state: State, masks: Masks) -> None:
        state.fill(masks[0])

    def fill_many(self, states: Sequence[State], masks: Masks) -> None:
        State.fill_many(states, masks)

    def accept(self, state: State, token: int) -> bool:
        try:
            state.advance(token)
        except ValueError:
            return False
        return True

    def ended(self, state: State) -> bool:
        return state.ended

    def bytes(self, compiled: CompiledGrammar) -> int:
        return compiled.bytes


class LLGuidance:
    """`lenient`: keywords that it does not know are left out, and `oneOf` is `anyOf`."""

    def __init__(self, words: Words, lenient: bool = False) -> None:
        import llguidance
        from llguidance._tokenizer import TokenizerWrapper

        self.name = "llguidance, lenient" if lenient else "llguidance"
        self._overrides: Any = {"lenient": True, "coerce_one_of": True} if lenient else None
        self._matcher = llguidance.LLMatcher
        tokenizer = llguidance.LLTokenizer(TokenizerWrapper(_ForLLGuidance(words)), n_vocab=len(words.all), eos_token=words.end)
        self._tokenizer = tokenizer.with_slices(llguidance.LLTokenizer.json_slices())
        self._executor = llguidance.LLExecutor(num_threads=1)

    def compile(self, kind: str, text: str) -> Any:
        if kind == "json_schema":
            grammar = self._matcher.grammar_from_json_schema(text, overrides=self._overrides)
        else:
            grammar = self._matcher.grammar_from_lark(text)
        compiled = self._matcher(self._tokenizer, grammar, log_level=0)
        if compiled.is_error():
            raise Refused(compiled.get_error())
        return compiled

    def start(self, compiled: Any) -> Any:
        return compiled.deep_copy()

    def fill(self, state: Any, masks: Masks) -> None:
        state.unsafe_compute_mask_ptr(masks.ctypes.data, masks.strides[0])

    def fill_many(self, states: Sequence[Any], masks: Masks) -> None:
        pairs = [(state, row) for row, state in enumerate(states)]
        self._executor.unsafe_compute_mask_ptr(pairs, masks.ctypes.data, masks.strides[0], len(masks))

    def accept(self, state: Any, token: int) -> bool:
        return bool(state.consume_token(token)) and not state.is_error()

    def ended(self, state: Any) -> bool:
        return bool(state.is_accepting())

    def bytes(self, compiled: Any) -> int:
        return 0


class _ForLLGuidance:
    """A tokenizer as llguidance wants one; 0xff marks what is no text."""

    bos_token_id = unk_token_id = None

    def __init__(self, words: Words) -> None:
        self.eos_token_id = words.end
        self.tokens = [piece or b"\xff<%d>" % token for token, piece in enumerate(words.all)]
        self.special_token_ids = [token for token, piece in enumerate(words.all) if not piece]
        self._split = words.split

    def __call__(self, text: str | bytes, **ignored: Any) -> list[int]:
        return self._split(text if isinstance(text, str) else text.decode(errors="replace"))


class XGrammar:
    """`open_`: objects are open where the schema leaves them open; by default those are closed that name no other keys."""

    def __init__(self, words: Words, open_: bool = False, threads: int = 1) -> None:
        import xgrammar

        self.name = "xgrammar, non-strict" if open_ else "xgrammar"
        self._strict = not open_
        self._library = xgrammar
        vocabulary = [piece or b"<%d>" % token for token, piece in enumerate(words.all)]
        info = xgrammar.TokenizerInfo(
            vocabulary, vocab_type=xgrammar.VocabType.RAW, vocab_size=len(vocabulary), stop_token_ids=[words.end]
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=threads, cache_enabled=False)
        self._batch = xgrammar.BatchGrammarMatcher(max_threads=1)
        self._end = words.end
        self._mask = np.zeros((1, (len(vocabulary) + 31) // 32), np.int32)

    def compile(self, kind: str, text: str) -> Any:
        try:
            if kind == "json_schema":
                return self._compiler.compile_json_schema(text, any_whitespace=True, strict_mode=self._strict)
            return self._compiler.compile_grammar(text)
        except Exception as error:  # of several kinds, none of them its own
            raise Refused(str(error)) from None

    def start(self, compiled: Any) -> Any:
        return self._library.GrammarMatcher(compiled)

    def fill(self, state: Any, masks: Masks) -> None:
        state.fill_next_token_bitmask(masks, 0)

    def fill_many(self, states: Sequence[Any], masks: Masks) -> None:
        self._batch.batch_fill_next_token_bitmask(states, masks)

    def accept(self, state: Any, token: int) -> bool:
        return bool(state.accept_token(token))

    def ended(self, state: Any) -> bool:
        self.fill(state, self._mask)
        return bool(self._mask[0, self._end >> 5] >> (self._end & 31) & 1)

    def bytes(self, compiled: Any) -> int:
        return int(compiled.memory_size_bytes)
