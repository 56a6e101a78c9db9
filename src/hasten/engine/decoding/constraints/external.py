"""Back ends that other packages bring (`xgrammar`, `llguidance`): what they need to be constraint policies.

They take what a user wrote as it is, not our `Grammar`: each reads schemas and grammars in its own way. Where a text ends is
ours: matchers know text only, and the states around them add the tokens that end it."""

from __future__ import annotations

import importlib
import json
from abc import abstractmethod
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.compiling import Prepared, Spec
from hasten.engine.decoding.constraints.policy import GrammarPolicy
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.technique import ConfigError

TOLD_S = 0.1
"""Most seconds that a request waits for its grammar to be refused; what takes longer is compiled while others are served."""


def load(package: str) -> Any:
    """Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"{package} needs a package of that name: pip install 'hasten[grammar]' ({error})") from None


class Matcher(Protocol):
    """Where a text stands in its grammar, as the package knows it; the text has no end token."""

    @property
    def ended(self) -> bool: ...
    def fill(self, mask: npt.NDArray[np.int32]) -> None:
        """Bits of tokens that are no text may be anything."""
        ...

    def accept(self, token: int) -> bool:
        """Nothing has changed if it returns False."""
        ...

    def rollback(self, count: int) -> None: ...
    def fork(self) -> Matcher: ...
    def forced(self) -> bytes: ...


class Ends:
    """Masks int32 [words] of the tokens that are text, and of those that end one."""

    def __init__(self, pieces: Seq[bytes], ends: Seq[int]) -> None:
        self.tokens = frozenset(ends)
        text = np.array([bool(piece) for piece in pieces])
        text[list(ends)] = False
        self.text = _packed(text)
        self.ends = _packed(np.isin(np.arange(len(pieces)), ends))

    def is_text(self, token: int) -> bool:
        return 0 <= token < 32 * len(self.text) and bool(self.text[token // 32] >> token % 32 & 1)


def _packed(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    padded = np.pad(bits, (0, -len(bits) % 32))
    return np.packbits(padded, bitorder="little").view(np.int32)


class State:
    """Where one sequence stands (decoding.base.ConstraintState)."""

    __slots__ = ("_ends", "_length", "_matcher", "_over")

    def __init__(self, matcher: Matcher, ends: Ends, length: int = 0, over: bool = False) -> None:
        self._matcher = matcher
        self._ends = ends
        self._length = length
        self._over = over

    @property
    def ended(self) -> bool:
        return not self._over and self._matcher.ended

    def fill(self, mask: npt.NDArray[Any]) -> None:
        if self._over:
            mask[:] = 0
            return
        self._matcher.fill(mask)
        np.bitwise_and(mask, self._ends.text, out=mask)
        if self._matcher.ended:
            np.bitwise_or(mask, self._ends.ends, out=mask)

    def advance(self, token: int) -> None:
        if token in self._ends.tokens and self.ended:
            self._over = True
        elif self._over or not self._ends.is_text(token) or not self._matcher.accept(token):
            raise ValueError(f"token {token} is not legal here")
        self._length += 1

    def rollback(self, count: int) -> None:
        if count > self._length:
            raise ValueError(f"{count} tokens cannot be undone")
        if count:
            self._matcher.rollback(count - self._over)
            self._length, self._over = self._length - count, False

    def fork(self) -> State:
        return State(self._matcher.fork(), self._ends, self._length, self._over)

    def forced_bytes(self) -> bytes:
        return b"" if self._over else self._matcher.forced()


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar: a matcher at the beginning of a text, which others are forked from. `bytes`: memory that it takes."""

    matcher: Matcher
    ends: Ends
    bytes: int

    def start(self) -> State:
        return State(self.matcher.fork(), self.ends)


V = TypeVar("V")


class External(GrammarPolicy[V, Compiled], Generic[V]):
    """The policy of a package: `name`, and what a subclass makes of a spec."""

    name: str

    def _accepted(self, compiling: Future[Compiled], spec: Spec | Prepared) -> bool:
        self._vocabulary()  # which takes longer than most grammars
        try:
            compiling.result(TOLD_S)
        except TimeoutError:
            return True
        return False

    def _compiled(self, spec: Spec | Prepared) -> Compiled:
        if not isinstance(spec, ConstraintSpec):
            raise GrammarError(f"{self.name} takes no {type(spec).__name__}: pre3 does")
        return self._translated(spec, self._vocabulary())

    @abstractmethod
    def _translated(self, spec: ConstraintSpec, vocabulary: V) -> Compiled:
        """Raises GrammarError."""


def choices(spec: ConstraintSpec, rule: str) -> str:
    """A grammar whose `rule` is one of the choices; JSON's way to write strings is that of GBNF and Lark too."""
    return f"{rule} {' | '.join(json.dumps(text, ensure_ascii=False) for text in spec.text)}\n"


def schema(spec: ConstraintSpec) -> str:
    return str(spec.text) if spec.kind == "json_schema" else '{"type": "object"}'
