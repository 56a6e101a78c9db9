"""Compiling what clients ask for in the server's own process, so that a bad grammar is a 400 and costs the engine nothing."""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
from collections import Counter
from collections.abc import Hashable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.compiling import After, Compilations, Prepared, Spec, prepare
from hasten.serving.server.errors import invalid
from hasten.serving.server.structured import bad_grammar

log = logging.getLogger("hasten.server")

T = TypeVar("T")

_MOST_BYTES = 1 << 20
"""Of a grammar or schema as its writer has it."""
_KEPT_BYTES = 64 << 20
_QUICK_S = 0.2
"""What takes longer begins again in a queue of its own, so that nobody's everyday schema waits behind it for seconds."""


class _Left(Exception):
    """Whoever asked for a grammar is gone."""


class Grammars:
    """The latest ones are kept; requests that ask for the same one at a time wait for one compilation. Without `prepares`
    the engine compiles and refuses them."""

    def __init__(self, prepares: bool = True, limits_s: float = 5.0) -> None:
        self._prepares = prepares
        self._limits_s = limits_s
        self._quick: Compilations[Prepared | None] = Compilations(_KEPT_BYTES, lambda found: len(found.blob) if found else 0)
        """None: it takes longer."""
        self._long: Compilations[Prepared] = Compilations(_KEPT_BYTES, lambda found: len(found.blob))
        self._waiting: Counter[Hashable] = Counter()
        """Clients that are there, by what they wait for."""

    async def compile(
        self, spec: Spec, param: str, after: str | None = None, params: Mapping[str, str] | None = None
    ) -> Prepared | Spec | After:
        """What to send to the engine; ApiError 400 with the reason where there is none. `param`: what asks for it; `params`:
        what does at certain places (`GrammarError.where`)."""
        if len(pickle.dumps(spec)) > _MOST_BYTES:
            raise invalid(f"{param} is larger than the {_MOST_BYTES} bytes this server compiles", param, "grammar_too_large")
        if not self._prepares:
            return spec if after is None else After(after, spec)
        key = spec.key
        self._waiting[key] += 1
        try:
            prepared = await self._found(key, spec)
        except GrammarError as error:
            raise bad_grammar(error, (params or {}).get(error.where, param)) from None
        except RuntimeError as error:  # the native library is not there
            raise bad_grammar(error, param) from None
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        return prepared if after is None else After(after, prepared)

    async def _found(self, key: Hashable, spec: Spec) -> Prepared:
        while True:
            try:
                found = await _result(self._quick.get(key, lambda: self._quickly(spec)))
                if found is not None:
                    return found
                return await _result(self._long.get(key, lambda: self._at_length(spec)))
            except _Left:  # somebody else, and just before this one came
                continue

    def _quickly(self, spec: Spec) -> Prepared | None:
        limits = self._limits(spec, min(_QUICK_S, self._limits_s))
        try:
            return self._compiled(spec, limits)
        except GrammarError:
            if limits.left_s() > 0:
                raise
            return None

    def _at_length(self, spec: Spec) -> Prepared:
        return self._compiled(spec, self._limits(spec, self._limits_s))

    def _limits(self, spec: Spec, seconds: float) -> Limits:
        if not self._waiting[spec.key]:
            raise _Left
        return Limits(seconds)

    def _compiled(self, spec: Spec, limits: Limits) -> Prepared:
        from hasten.engine.decoding.constraints.machine import CompiledGrammar

        prepared = prepare(spec, limits)
        CompiledGrammar(prepared.blob, _letters(), limits)  # what the engine will do, but for its vocabulary
        for warning in prepared.warnings:
            log.warning("a client's grammar: %.500s", warning)
        return prepared


async def _result(future: Future[T]) -> T:
    # Others may wait for it when this client has left.
    return future.result() if future.done() else await asyncio.shield(asyncio.wrap_future(future))


@functools.cache
def _letters() -> Any:
    from hasten.engine.decoding.constraints.machine import Vocabulary

    return Vocabulary([bytes([byte]) for byte in range(256)], [])
