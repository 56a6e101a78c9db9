"""A constraint that begins after an event: a text such as the end of a thought, or the text of a token."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hasten.engine.decoding.base import ConstraintState

Past = tuple[bytes | None, Any] | None
"""What was held before each token, the latest first."""


class Watch:
    """Finds the event in a stream of tokens. `piece`: the bytes of a token, special ones included; `pieces`: of all that are
    text; `ends`: tokens that end a text."""

    def __init__(self, event: bytes, piece: Callable[[int], bytes], pieces: Seq[bytes], ends: Seq[int]) -> None:
        self.event = event
        self._piece = piece
        self._pieces = pieces
        self._ends = list(ends)
        self._barred: dict[bytes, npt.NDArray[np.int64]] = {}

    def step(self, held: bytes, token: int) -> bytes | None:
        """What to hold after `token`: the part of the event that the text ends with. None: the event is complete."""
        text = held + self._piece(token)
        if self.event in text:
            return None
        longest = min(len(text), len(self.event) - 1)
        return next((text[-n:] for n in range(longest, 0, -1) if self.event.startswith(text[-n:])), b"")

    def barred(self, held: bytes) -> npt.NDArray[np.int64]:
        """Tokens that may not follow: those that end the text, or go on beyond the event, unseen by the grammar."""
        found = self._barred.get(held)
        if found is None:
            event, skip = self.event, len(self.event) - len(held)
            beyond = [
                token
                for token, piece in enumerate(self._pieces)
                if len(piece) > skip and 0 <= (text := held + piece).find(event) < len(text) - len(event)
            ]
            found = self._barred[held] = np.array([*beyond, *self._ends], dtype=np.int64)
        return found


class Armed:
    """The state of a sequence whose constraint begins after the event. `held`: what of it was seen; None: all."""

    __slots__ = ("_held", "_inner", "_past", "_watch")

    def __init__(self, inner: ConstraintState, watch: Watch, held: bytes | None = b"", past: Past = None) -> None:
        self._inner = inner
        self._watch = watch
        self._held = held
        self._past = past

    @property
    def ended(self) -> bool:
        return self._held is None and self._inner.ended

    def fill(self, mask: npt.NDArray[Any]) -> None:
        if self._held is None:
            self._inner.fill(mask)
            return
        mask[:] = -1
        barred = self._watch.barred(self._held)
        np.bitwise_and.at(mask.view(np.uint32), barred // 32, ~(np.uint32(1) << (barred % 32).astype(np.uint32)))

    def advance(self, token: int) -> None:
        held = self._held
        if held is None:
            self._inner.advance(token)
        elif token in self._watch.barred(held):
            raise ValueError(f"token {token} may not come before the text {self._watch.event.decode(errors='replace')!r}")
        else:
            self._held = self._watch.step(held, token)
        self._past = (held, self._past)

    def rollback(self, count: int) -> None:
        held, past, inner = self._held, self._past, 0
        for _ in range(count):
            if past is None:
                raise ValueError(f"{count} tokens cannot be undone")
            held, past = past
            inner += held is None
        self._inner.rollback(inner)
        self._held, self._past = held, past

    def fork(self) -> Armed:
        return Armed(self._inner.fork(), self._watch, self._held, self._past)

    def forced_bytes(self) -> bytes:
        return self._inner.forced_bytes() if self._held is None else b""
