"""Incremental detokenising: tokens in, text out as soon as it is certain, up to a stop string."""

from __future__ import annotations

import codecs

from hasten.engine.text.tokenizer import Tokenizer

_utf8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one sequence, token by token, at a cost that does not grow with its length.

    What `push` and `flush` give, put together, is `tokenizer.decode` of all tokens, cut right before the first stop
    string to be completed, however the tokens are divided into pushes. Two differences are meant: a character that is
    incomplete at the very end is left out, never shown as U+FFFD; and where SentencePiece byte tokens are not UTF-8,
    only the bytes at fault become U+FFFD, while `decode` gives up on the whole run of byte tokens.

    `stopped`: the stop string that ended the text. `tokens_used`: tokens up to and including the one that completed
    it, or all so far. `continues`: the text goes on from other text, so that a space at its start is kept."""

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), skip_special: bool = True, *, continues: bool = False
    ) -> None:
        self.stopped: str | None = None
        self.tokens_used = 0
        self._pieces = tokenizer.pieces
        self._skip = self._pieces.special if skip_special else frozenset()
        self._stop = stop
        self._decoder = _utf8(errors="replace")
        self._held = ""
        self._first = not continues
        self._strip = 0 if continues else self._pieces.rules.strip_count

    def push(self, tokens: list[int]) -> str:
        """The text that `tokens` make certain; empty once stopped."""
        out = ""
        for token in tokens:
            if self.stopped is not None:
                break
            self.tokens_used += 1
            if token in self._skip:
                continue
            if self._first:
                self._first = False
                piece = self._pieces.first(token)
            else:
                piece = self._pieces(token)
            text = self._decoder.decode(piece)
            if self._strip and text:
                text = self._strip_start(text)
            if text:
                out += self._until_stop(text) if self._stop else text
        return out

    def flush(self) -> str:
        """The sequence is over: the text that was held back because a stop string might have begun with it."""
        held, self._held = self._held, ""
        self._decoder.reset()
        return held

    def _strip_start(self, text: str) -> str:
        """`text` without the spaces that the beginning of the whole loses."""
        mark, kept = self._pieces.rules.strip, 0
        while kept < min(self._strip, len(text)) and text[kept] == mark:
            kept += 1
        self._strip = self._strip - kept if kept == len(text) else 0
        return text[kept:]

    def _until_stop(self, text: str) -> str:
        """What of the held text and `text` can be given out. The stop string that is completed first wins, and of two
        that end together the longer."""
        text = self._held + text
        _, begin, stop = min(
            ((at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0), default=(0, 0, None)
        )
        if stop is not None:
            self.stopped, self._held = stop, ""
            return text[:begin]
        hold = max(_overlap(text, stop) for stop in self._stop)
        keep = len(text) - hold
        self._held = text[keep:]
        return text[:keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
