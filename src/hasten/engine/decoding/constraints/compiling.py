"""From what a user wrote to a compiled grammar: in worker threads, each once however many ask for it, the latest ones kept.

It happens in two places. The front end (Python) runs where a request comes in, so that a bad grammar is refused there: in the
server's process, which then sends the engine a `Prepared` grammar, or in `Engine.add`. The native part runs beside the engine.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import xxhash

from hasten.engine.decoding.constraints import kept
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Grammar

T = TypeVar("T")

WORKERS = 2
MOST_KEPT = 512
"""Results, so that looking through them takes no time worth speaking of."""


class Spec(Protocol):
    """What a user wrote: hashable and picklable. `key`: equal ones compile to the same grammar."""

    @property
    def key(self) -> Hashable: ...
    def compile(self, limits: Limits) -> Grammar:
        """Raises GrammarError."""
        ...


@dataclass(frozen=True, slots=True)
class After:
    """A constraint that begins once `text` was written (such as the end of a thought); until then the text may be anything but
    may not end."""

    text: str
    constraint: Any


@dataclass(frozen=True, slots=True)
class Prepared:
    """A grammar that the front end has accepted, as `Grammar.blob` writes it; what goes to another process."""

    key: str
    blob: bytes
    warnings: tuple[str, ...] = ()


def prepare(spec: Spec | Prepared, limits: Limits) -> Prepared:
    """Raises GrammarError."""
    if isinstance(spec, Prepared):
        return spec
    warnings: list[str] = []
    if (blob := kept.find(spec.key)) is None:
        began = time.perf_counter()
        grammar = spec.compile(limits)
        blob, warnings = grammar.blob(), grammar.warnings
        # Warnings are to be heard each time.
        if time.perf_counter() - began > kept.LEAST_S and not warnings:
            kept.keep(spec.key, blob)
    return Prepared(xxhash.xxh3_128_hexdigest(blob), blob, tuple(warnings))


def split(constraint: Any) -> tuple[Spec | Prepared, str | None]:
    """What `SamplingParams.constraint` holds as (grammar, text after which it begins). Raises GrammarError."""
    spec, after = (constraint.constraint, constraint.text) if isinstance(constraint, After) else (constraint, None)
    if not isinstance(spec, Prepared) and not is_spec(spec):
        raise GrammarError(f"a constraint is a ConstraintSpec or a dict that holds a JSON Schema, not {type(spec).__name__}")
    if after == "":
        raise GrammarError("the text after which a constraint begins is empty")
    if after is not None and any("\ud800" <= sign <= "\udfff" for sign in after):
        raise GrammarError("the text after which a constraint begins has half a character (a lone surrogate)")
    return spec, after


def is_spec(constraint: Any) -> bool:
    return hasattr(constraint, "compile") and hasattr(constraint, "key")


def made_ready(constraint: Any) -> Any:
    """A constraint as it should go to another process; kinds that are not known here as they are. Raises GrammarError."""
    if not is_spec(constraint.constraint if isinstance(constraint, After) else constraint):
        return constraint
    spec, after = split(constraint)
    prepared = prepare(spec, Limits())
    return prepared if after is None else After(after, prepared)


class Compilations(Generic[T]):
    """Results by key; the least recently used are forgotten when all together take more than `most_bytes`, or are too many.
    Thread-safe."""

    def __init__(self, most_bytes: int, size: Callable[[T], int]) -> None:
        self._most_bytes = most_bytes
        self._size = size
        self._lock = threading.Lock()
        self._found: OrderedDict[Hashable, Future[T]] = OrderedDict()
        self._pool = ThreadPoolExecutor(WORKERS, "hasten-grammar")

    def get(self, key: Hashable, make: Callable[[], T]) -> Future[T]:
        """The result of `make`, begun now if nobody has asked before (or that failed)."""
        with self._lock:
            found = self._found.get(key)
            if found is not None and not (found.done() and found.exception() is not None):
                self._found.move_to_end(key)
                return found
            self._forget()
            found = self._found[key] = self._pool.submit(make)
            return found

    def _forget(self) -> None:
        done = {key: future for key, future in self._found.items() if future.done()}
        sizes = {key: 0 if future.exception() is not None else self._size(future.result()) for key, future in done.items()}
        total = sum(sizes.values())
        for key in list(self._found):
            failed = key in done and done[key].exception() is not None
            if failed or (key in done and (total > self._most_bytes or len(self._found) >= MOST_KEPT)):
                total -= sizes[key]
                del self._found[key]
