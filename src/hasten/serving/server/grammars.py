"""Compiling what clients ask for in the server's own process, so that a bad grammar is a 400 and costs the engine nothing."""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
from typing import Any

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.compiling import After, Compilations, Prepared, Spec, prepare
from hasten.serving.server.errors import invalid
from hasten.serving.server.structured import bad_grammar

log = logging.getLogger("hasten.server")

_MOST_BYTES = 1 << 20
"""Of a grammar or schema as its writer has it."""
_KEPT_BYTES = 64 << 20


class Grammars:
    """The latest ones are kept; requests that ask for the same one at a time wait for one compilation. Without `prepares`
    the engine compiles and refuses them."""

    def __init__(self, prepares: bool = True, limits_s: float = 5.0) -> None:
        self._prepares = prepares
        self._limits_s = limits_s
        self._known: Compilations[Prepared] = Compilations(_KEPT_BYTES, lambda prepared: len(prepared.blob))

    async def compile(self, spec: Spec, param: str, after: str | None = None) -> Prepared | Spec | After:
        """What to send to the engine; ApiError 400 with the reason where there is none."""
        if len(pickle.dumps(spec)) > _MOST_BYTES:
            raise invalid(f"{param} is larger than the {_MOST_BYTES} bytes this server compiles", param, "grammar_too_large")
        if not self._prepares:
            return spec if after is None else After(after, spec)
        future = self._known.get(spec.key, lambda: self._compiled(spec))
        try:
            # Others may wait for it when this client has left.
            prepared = future.result() if future.done() else await asyncio.shield(asyncio.wrap_future(future))
        except (GrammarError, RuntimeError) as error:  # or the native library is not there
            raise bad_grammar(error, param) from None
        return prepared if after is None else After(after, prepared)

    def _compiled(self, spec: Spec) -> Prepared:
        from hasten.engine.decoding.constraints.machine import CompiledGrammar

        limits = Limits(self._limits_s)
        prepared = prepare(spec, limits)
        CompiledGrammar(prepared.blob, _letters(), limits)  # what the engine will do, but for its vocabulary
        for warning in prepared.warnings:
            log.warning("a client's grammar: %.500s", warning)
        return prepared


@functools.cache
def _letters() -> Any:
    from hasten.engine.decoding.constraints.machine import Vocabulary

    return Vocabulary([bytes([byte]) for byte in range(256)], [])
