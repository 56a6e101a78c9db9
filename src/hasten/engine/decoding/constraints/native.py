"""Loads the native library of grammars (kernels/grammar), and the languages in it."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import hasten  # not hasten.kernels, which imports torch: a server's own process does without
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Form
from hasten.engine.decoding.constraints.languages import Expr, program

INTERFACE = 2
ERROR_BYTES = 512


@functools.cache
def library() -> ctypes.CDLL:
    """The library. Raises RuntimeError where it is not built or of other sources."""
    path = Path(hasten.__path__[0], "kernels", "grammar", "libhasten_grammar.so")
    if not path.exists():
        raise RuntimeError(f"grammars need the native library {path.name}, which is not built (make native)")
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"the native library of grammars cannot be loaded: {error}") from error
    if not hasattr(loaded, "hasten_grammar_interface") or loaded.hasten_grammar_interface() != INTERFACE:
        raise RuntimeError(f"the native library of grammars was built from other sources: build {path.name} anew (make native)")
    pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    loaded.hasten_language_new.argtypes = [ctypes.c_char_p, int64, int32, int32, ctypes.c_double, ctypes.c_char_p, int32]
    loaded.hasten_language_new.restype = pointer
    loaded.hasten_language_free.argtypes, loaded.hasten_language_free.restype = [pointer], None
    loaded.hasten_language_states.argtypes, loaded.hasten_language_states.restype = [pointer], int32
    loaded.hasten_language_match.argtypes = [pointer, ctypes.c_char_p, int64, ctypes.POINTER(int32)]
    loaded.hasten_language_match.restype = int64
    return loaded


class Language:
    """An expression as an automaton of the bytes of a form. Raises GrammarError where that takes more than `limits` allow."""

    def __init__(self, expr: Expr, form: Form = Form.TEXT, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self._library = library()
        code, error = program(expr), ctypes.create_string_buffer(ERROR_BYTES)
        self._handle: int | None = self._library.hasten_language_new(
            code, len(code), form, limits.nodes, limits.left_s(), error, ERROR_BYTES
        )
        if self._handle is None:
            raise GrammarError(error.value.decode(errors="replace"), "language")
        self.states: int = self._library.hasten_language_states(self._handle)
        """That lead to acceptance; 0: there is no text."""

    def match(self, text: bytes) -> tuple[int, bool]:
        """How many bytes of `text` some accepted text begins with, and whether all of it is one."""
        accepted = ctypes.c_int32()
        length: int = self._library.hasten_language_match(self._handle, text, len(text), accepted)
        return length, bool(accepted.value)

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._library.hasten_language_free(self._handle)
