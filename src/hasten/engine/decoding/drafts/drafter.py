"""The draft's passes: several sequences draft together, one batch of the draft for each depth."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.engine.batch import BatchBuilder
from hasten.engine.decoding.base import Row
from hasten.engine.kv.base import NoBlocks
from hasten.engine.sequence import Draft, Span

if TYPE_CHECKING:
    from hasten.engine.decoding.base import Sampler
    from hasten.engine.decoding.drafts.landing import Likely
    from hasten.engine.decoding.drafts.second import SecondModel
    from hasten.engine.decoding.drafts.twins import Twin, Twins
    from hasten.engine.executors.base import StepResult
    from hasten.kernels import Kernels

LOOK_BACK = 512
"""Tokens in which `_ahead` looks for what stood there before."""
ALIKE = 2
"""Last tokens that must be the same there."""


@dataclass(slots=True)
class Line:
    """A draft in the making, behind what its twin holds. `most`: nodes that it may have; `length`: tokens one after the other;
    `state`: the constraint's after `tokens`."""

    twin: Twin
    most: int
    length: int
    state: Any
    tokens: list[int] = field(default_factory=list)
    sides: list[tuple[int, int]] = field(default_factory=list)
    """(depth, token) of what else is tried."""
    likely: list[Likely] = field(default_factory=list)
    """For each of `tokens` the likeliest ones there, if the drafter keeps them."""

    def draft(self) -> Draft | None:
        if not self.tokens:
            return None
        sides = self.sides[: self.most - len(self.tokens)]
        tokens = np.array(self.tokens + [token for _, token in sides], dtype=np.int32)
        if not sides:
            return Draft(tokens)
        chain = range(-1, len(self.tokens) - 1)
        return Draft(tokens, np.array([*chain, *(depth - 1 for depth, _ in sides)], dtype=np.int32))


@dataclass(slots=True)
class _Piece:
    """What a pass computes of a line: `span`; `ahead`: tokens at its end that nobody has drawn yet; `draws`: whether it ends in
    a draw."""

    line: Line
    span: Span
    ahead: list[int]
    draws: bool


class Drafter:
    """`length`: tokens that a draft has, one after the other; `chunk`: tokens of prompts in a pass, of all lines together;
    `width`: tokens tried at each depth; `stream`: tokens that a pass may take over from where the text repeats itself, beside
    the one that it draws; `keep`: how many of the likeliest tokens to keep at each depth. One thread at a time."""

    def __init__(
        self,
        second: SecondModel,
        twins: Twins,
        sampler: Sampler,
        kernels: Kernels,
        eos: frozenset[int],
        *,
        length: int,
        chunk: int,
        width: int = 1,
        stream: int = 0,
        keep: int = 0,
    ) -> None:
        self.length, self.chunk = length, chunk
        self.few = length + 1
        """Tokens that a sequence may be ahead of its twin after a step with drafts."""
        self._second, self._twins, self._sampler, self._kernels, self._eos = second, twins, sampler, kernels, eos
        self._width, self._stream, self._keep = width, stream, keep
        self._builder = BatchBuilder()
        self.passes = 0
        """So far."""

    def draft(self, lines: Seq[Line], going: Callable[[list[Line]], list[Line]] = lambda lines: lines) -> None:
        """Give each line what tokens it can have. `going` is asked before every pass but the first which of them go on. If this
        raises anything, what KV of their twins was computed is not known."""
        left = self._computed(self._next(lines))
        while left and (left := going(left)):
            left = self._computed([(line, 1) for line in left])

    def _next(self, lines: Seq[Line]) -> list[tuple[Line, int]]:
        """How many tokens of each twin to compute first. Of a request's sequences one computes the prompt for all."""
        left, found, busy = self.chunk, [], set()
        for line in lines:
            twin, count = line.twin, line.twin.remaining
            if count > self.few:
                if not left or twin.request.id in busy or not self._twins.make_room(twin, count + self.length):
                    continue
                busy.add(twin.request.id)
                count = min(count, left)
                left -= count
            found.append((line, count))
        return found

    def _computed(self, counts: Seq[tuple[Line, int]]) -> list[Line]:
        """Compute so many tokens of each twin in one batch, draw guesses where none is left; the lines that go on."""
        pieces = [piece for line, count in counts if (piece := self._piece(line, count)) is not None]
        if not pieces:
            return []
        executor = self._second.executor
        executor.copy_blocks(self._second.books.take_copies())
        result = self._second.fitted(executor.submit(self._builder.build([piece.span for piece in pieces])).wait())
        self.passes += 1
        for piece in pieces:
            twin, count = piece.line.twin, piece.span.count
            twin.computed(count)
            if piece.ahead:  # they are nobody's before the draws agree
                twin.cut(twin.length - len(piece.ahead))
            if count > self.few:
                self._twins.keep(twin)
        drawing = [piece for piece in pieces if piece.draws]
        return self._guess(drawing, result) if drawing else []

    def _piece(self, line: Line, count: int) -> _Piece | None:
        """None where there is no memory for it."""
        twin = line.twin
        ((start, stop),) = twin.next_ranges(count)
        draws = stop == twin.length
        ahead = self._ahead(line) if draws and self._stream and count <= self.few else []
        for token in ahead:
            twin.append(token)
        tokens, positions, segments = twin.piece(start, stop + len(ahead))
        try:
            slots = self._twins.append(twin, positions)
        except NoBlocks:
            twin.cut(twin.length - len(ahead))
            return None
        last = stop - start - 1
        logits = list(range(last, last + 1 + len(ahead))) if draws else []
        return _Piece(line, Span(twin, len(tokens), tokens, positions, segments, slots, logits=logits), ahead, draws)

    def _ahead(self, line: Line) -> list[int]:
        """What followed the last tokens where they stood last. Under a constraint nothing: every draw needs its state."""
        room = min(line.most, line.length) - len(line.tokens) - 1
        if room < 1 or line.state is not None:
            return []
        text = line.twin.tokens[-LOOK_BACK:]
        if len(text) <= ALIKE:
            return []
        same = np.ones(len(text) - ALIKE, dtype=bool)
        for back in range(1, ALIKE + 1):
            same &= text[ALIKE - back : len(text) - back] == text[-back]
        places = np.flatnonzero(same)
        if not len(places):
            return []
        at = int(places[-1]) + ALIKE
        ahead: list[int] = text[at : at + min(self._stream, room)].tolist()
        return ahead

    def _guess(self, pieces: list[_Piece], result: StepResult) -> list[Line]:
        """Draw the next tokens of each line as the served model will; the lines that go on."""
        rows: list[Row] = []
        firsts: list[int] = []
        for piece in pieces:
            firsts.append(len(rows))
            line = piece.line
            rows += [Row(line.twin, len(rows) + i, tuple(piece.ahead[:i]), line.state) for i in range(1 + len(piece.ahead))]
        drawn = self._sampler.draw(result, rows).tokens
        likely = self._likely(result) if max(self._width - 1, self._keep) else []
        going = []
        for piece, first in zip(pieces, firsts, strict=True):
            line, agreed = piece.line, 0
            while agreed < len(piece.ahead) and drawn[first + agreed] == piece.ahead[agreed]:
                agreed += 1
            if piece.ahead:  # what lies behind them is of another text
                self._twins.books.truncate(line.twin.view, line.twin.length + agreed)
            for i in range(agreed + 1):
                if self._width > 1:
                    sides = [token for token, _ in likely[first + i] if token != drawn[first + i]]
                    line.sides += [(len(line.tokens), token) for token in sides[: self._width - 1]]
                if self._keep and drawn[first + i] >= 0:
                    line.likely.append(likely[first + i])
                if not self._goes_on(line, drawn[first + i]):
                    self._twins.books.truncate(line.twin.view, min(line.twin.view.length, line.twin.length))
                    break
            else:
                line.twin.todo = [(line.twin.view.length, line.twin.length)]
                going.append(line)
        return going

    def _likely(self, result: StepResult) -> list[Likely]:
        """Of each row of the step's logits."""
        most = min(max(self._width, self._keep), self._second.model.vocabulary, self._second.served)
        values, ids = self._kernels.top_logprobs(result.logits, most)
        return [list(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]

    def _goes_on(self, line: Line, token: int) -> bool:
        """Take `token` in; whether anything may follow it. Then the twin has it, and the constraint's state is the next."""
        if token < 0:
            return False
        line.tokens.append(token)
        if len(line.tokens) >= min(line.most, line.length):
            return False
        sampling = line.twin.request.sampling
        if token in sampling.stop_token_ids or (token in self._eos and not sampling.ignore_eos):
            return False
        if line.state is not None:
            line.state = line.state.fork()
            try:
                line.state.advance(token)
            except ValueError:
                return False
        line.twin.append(token)
        return True
