"""Grammars compiled for a vocabulary, and the states of sequences in them: handles of the native library (kernels/grammar)."""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Grammar
from hasten.engine.decoding.constraints.native import ERROR_BYTES, library

MOST_FORCED = 256
"""Bytes of forced text that are looked for at a time."""

_REFUSED, _FAILED = -1, -2


@functools.cache
def _machine() -> ctypes.CDLL:
    pointer, int32, int64, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p
    loaded = library()
    for name, result, *arguments in (
        ("failure", int64, text, int64),
        ("vocabulary_new", pointer, text, pointer, int32, pointer, int32, text, int32),
        ("vocabulary_free", None, pointer),
        ("grammar_new", pointer, pointer, text, int64, ctypes.c_double, int64, text, int32),
        ("grammar_free", None, pointer),
        ("grammar_bytes", int64, pointer),
        ("grammar_report", int64, pointer, text, int64),
        ("state_new", pointer, pointer),
        ("state_fork", pointer, pointer),
        ("state_free", None, pointer),
        ("state_advance", int32, pointer, int32),
        ("state_rollback", int32, pointer, int32),
        ("state_ended", int32, pointer),
        ("state_fill", int32, pointer, pointer),
        ("state_fill_plain", int32, pointer, pointer),
        ("states_fill", int32, pointer, int32, pointer, int64, int32),
        ("state_bytes", int32, pointer, text, int32),
        ("state_forced", int32, pointer, text, int32),
        ("state_expected", int64, pointer, text, int64),
    ):
        function = getattr(loaded, f"hasten_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


def _text_of(function: Any, *handle: int | None) -> str:
    """What a function writes that returns the length of all of it."""
    size = 4096
    while True:
        out = ctypes.create_string_buffer(size)
        length = _checked(function(*handle, out, size))
        if length < size:
            return out.value.decode(errors="replace")
        size = length + 1


def _checked(result: Any) -> Any:
    """What a function returned. Raises GrammarError where it failed."""
    if result is None or result == _FAILED:
        raise GrammarError(_text_of(_machine().hasten_failure))
    return result


class Vocabulary:
    """`pieces`: the bytes of each token, empty for what is no text. `ends`: tokens that end a text. Raises GrammarError."""

    def __init__(self, pieces: Sequence[bytes], ends: Sequence[int]) -> None:
        self._library = _machine()
        offsets = np.fromiter(itertools.accumulate(map(len, pieces), initial=0), np.int64, len(pieces) + 1)
        numbers = np.asarray(ends, np.int32)
        error = ctypes.create_string_buffer(ERROR_BYTES)
        self.handle: int | None = self._library.hasten_vocabulary_new(
            b"".join(pieces), offsets.ctypes.data, len(pieces), numbers.ctypes.data, len(numbers), error, ERROR_BYTES
        )
        if self.handle is None:
            raise GrammarError(error.value.decode(errors="replace"), "vocabulary")
        self.tokens = len(pieces)
        self.words = (self.tokens + 31) // 32
        """Of a mask."""

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None:
            self._library.hasten_vocabulary_free(self.handle)
            self.handle = None


class CompiledGrammar:
    """`grammar`: or its blob. Raises GrammarError."""

    def __init__(self, grammar: Grammar | bytes, vocabulary: Vocabulary, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self._library = _machine()
        blob = grammar if isinstance(grammar, bytes) else grammar.blob()
        error = ctypes.create_string_buffer(ERROR_BYTES)
        self.vocabulary = vocabulary
        self.handle: int | None = self._library.hasten_grammar_new(
            vocabulary.handle, blob, len(blob), limits.left_s(), limits.bytes, error, ERROR_BYTES
        )
        if self.handle is None:
            raise GrammarError(error.value.decode(errors="replace"))

    def start(self) -> State:
        return State(self, _checked(self._library.hasten_state_new(self.handle)))

    @property
    def bytes(self) -> int:
        """Memory that it takes now."""
        return int(self._library.hasten_grammar_bytes(self.handle))

    def report(self) -> dict[str, int]:
        """Sizes, the number of conflicts, and how often a text had too many readings to go on (`crowded`), as known so far."""
        found: dict[str, int] = json.loads(_text_of(self._library.hasten_grammar_report, self.handle))
        return found

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None:
            self._library.hasten_grammar_free(self.handle)
            self.handle = None


class State:
    """Where one sequence stands (decoding.base.ConstraintState). One thread at a time; others may use other states.

    Methods raise GrammarError where a grammar is so ambiguous, or so large, that following all that is possible takes too long
    or too much memory; the state is as it was."""

    __slots__ = ("_handle", "_library", "grammar")

    def __init__(self, grammar: CompiledGrammar, handle: int) -> None:
        self.grammar = grammar
        self._library = _machine()
        self._handle: int | None = handle

    @property
    def ended(self) -> bool:
        """Whether the text may end here."""
        return bool(_checked(self._library.hasten_state_ended(self._handle)))

    def fill(self, mask: npt.NDArray[Any]) -> None:
        """Write the legal tokens into `mask` int32 [words], one bit a token, lowest bit first."""
        self._check(mask, (self.grammar.vocabulary.words,))
        _checked(self._library.hasten_state_fill(self._handle, mask.ctypes.data))

    def fill_plain(self, mask: npt.NDArray[Any]) -> None:
        """The same by walking the whole vocabulary: what `fill` is tested against."""
        self._check(mask, (self.grammar.vocabulary.words,))
        _checked(self._library.hasten_state_fill_plain(self._handle, mask.ctypes.data))

    @staticmethod
    def fill_many(states: Sequence[State], masks: npt.NDArray[Any], threads: int = 1) -> None:
        """`masks`: int32 [states, words], for states of one vocabulary."""
        if not states:
            return
        states[0]._check(masks, (len(states), states[0].grammar.vocabulary.words))
        if any(state.grammar.vocabulary is not states[0].grammar.vocabulary for state in states):
            raise ValueError("masks of several vocabularies cannot be filled together")
        handles = (ctypes.c_void_p * len(states))(*[state._handle for state in states])
        library, stride = states[0]._library, masks.strides[0] // 4
        _checked(library.hasten_states_fill(handles, len(states), masks.ctypes.data, stride, threads))

    @staticmethod
    def _check(mask: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
        if mask.dtype != np.int32 or mask.shape != shape or mask.strides[-1] != 4 or not mask.flags.writeable:
            raise ValueError(f"a mask is int32 {list(shape)}, rows without gaps, not {mask.dtype} {list(mask.shape)}")

    def advance(self, token: int) -> None:
        """Commit a token; ValueError if it is not legal here."""
        if _checked(self._library.hasten_state_advance(self._handle, token)) == _REFUSED:
            names = ", ".join(self.expected()) or "nothing"
            raise ValueError(f"token {token} is not legal here: expected {names}")

    def rollback(self, count: int) -> None:
        """Undo the last `count` tokens."""
        if self._library.hasten_state_rollback(self._handle, count) == _REFUSED:
            raise ValueError(f"{count} tokens cannot be undone")

    def fork(self) -> State:
        return State(self.grammar, _checked(self._library.hasten_state_fork(self._handle)))

    def forced_bytes(self) -> bytes:
        """What must come next, as far as it is certain."""
        out = ctypes.create_string_buffer(MOST_FORCED)
        length = self._library.hasten_state_forced(self._handle, out, MOST_FORCED)
        return out.raw[:length]

    def match(self, text: bytes) -> int:
        """How many bytes of `text` may follow."""
        return int(_checked(self._library.hasten_state_bytes(self._handle, text, len(text))))

    def expected(self) -> list[str]:
        """Names of the terminals that may come or go on here."""
        return _text_of(self._library.hasten_state_expected, self._handle).split("\n")[:-1]

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._library.hasten_state_free(self._handle)
            self._handle = None
