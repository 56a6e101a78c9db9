"""What constraint policies have in common, whichever back end makes their masks: compilation in workers, results kept, and
constraints that begin after an event."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from hasten.engine.decoding.constraints.armed import Armed, Watch
from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.compiling import Compilations, Prepared, Spec, split
from hasten.engine.request import BadRequest, Request
from hasten.engine.text import load_text

if TYPE_CHECKING:
    from hasten.engine.build import Parts
    from hasten.engine.decoding.base import ConstraintState
    from hasten.engine.text import Tokenizer

MOST_WATCHES = 64


class Compiled(Protocol):
    @property
    def bytes(self) -> int:
        """Memory that it takes now."""
        ...

    def start(self) -> ConstraintState: ...


V = TypeVar("V")
C = TypeVar("C", bound=Compiled)


class GrammarPolicy(ABC, Generic[V, C]):
    """A `Constraint` whose grammars become a `C` for a vocabulary `V`. `kept_bytes`: of compiled grammars that no request uses.
    Nothing is built before the first request with a constraint."""

    def __init__(self, parts: Parts, kept_bytes: int) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._read: V | None = None
        self._watches: dict[str, Watch] = {}
        self._grammars: Compilations[C] = Compilations(kept_bytes, lambda grammar: grammar.bytes)

    @abstractmethod
    def _read_vocabulary(self, pieces: Seq[bytes], ends: Seq[int]) -> V:
        """`pieces`: the bytes of each token, empty for what is no text. `ends`: tokens that end a text."""

    @abstractmethod
    def _compiled(self, spec: Spec | Prepared) -> C:
        """Called in a worker thread. Raises GrammarError."""

    def _accepted(self, compiling: Future[C], spec: Spec | Prepared) -> bool:
        """Whether a request may be accepted before its grammar is compiled. Raises what refuses it."""
        compiling.result()
        return False

    def prepare(self, request: Request) -> Future[C] | None:
        try:
            spec, after = split(request.sampling.constraint)
            if after is not None:
                self._watch(after)  # looks through the vocabulary: not while others wait
            compiling = self._compile(spec)
            return compiling if self._accepted(compiling, spec) else None
        except (GrammarError, RuntimeError) as error:  # or the native library is not there
            raise BadRequest(str(error), "constraint") from None

    def start(self, request: Request) -> ConstraintState:
        spec, after = split(request.sampling.constraint)
        state = self._compile(spec).result().start()
        return state if after is None else Armed(state, self._watch(after))

    def _compile(self, spec: Spec | Prepared) -> Future[C]:
        return self._grammars.get(spec.key, lambda: self._compiled(spec))

    def _vocabulary(self) -> V:
        with self._lock:
            if self._read is None:
                self._read = self._read_vocabulary(*self._pieces())
            return self._read

    def _pieces(self) -> tuple[list[bytes], list[int]]:
        size = self._parts.model.vocabulary
        return tokenizer_of(self._parts).pieces.table(size), sorted(end for end in self._parts.eos if end < size)

    def _watch(self, text: str) -> Watch:
        with self._lock:
            watch = self._watches.pop(text, None)
            if watch is None:
                watch = Watch(text.encode(), tokenizer_of(self._parts).token_bytes, *self._pieces())
                watch.barred(b"")
                if len(self._watches) >= MOST_WATCHES:  # texts come from requests
                    del self._watches[next(iter(self._watches))]
            self._watches[text] = watch  # the latest last
            return watch


def tokenizer_of(parts: Parts) -> Tokenizer:
    """The tokenizer of the model that `parts` serve, read when first asked for if nobody has brought it."""
    if parts.tokenizer is None:
        parts.tokenizer, _ = load_text(parts.config.model)
    return parts.tokenizer
