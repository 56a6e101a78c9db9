"""Log-probabilities in the two shapes of the OpenAI API, and the text of single tokens in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.engine.decoding.base import TokenLogprobs
    from hasten.engine.text.tokenizer import Tokenizer


class Pieces:
    """Text and bytes of single tokens. A token that is part of a character has the text ``bytes:\\xe2\\x82``, as at OpenAI."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}

    def __call__(self, token: int) -> tuple[str, list[int]]:
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._look_up(token)
        return found

    def _look_up(self, token: int) -> tuple[str, list[int]]:
        raw = self._tokenizer.token_bytes(token)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return text, list(raw)


def chat_logprobs(pieces: Pieces, tokens: Sequence[int], found: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
    """``choices[].logprobs`` of chat completions for `tokens`."""
    content = []
    for token, entry in zip(tokens, found, strict=False):
        if entry is None:
            continue
        text, raw = pieces(token)
        top = []
        for other, logprob in entry.top:
            other_text, other_raw = pieces(other)
            top.append({"token": other_text, "logprob": logprob, "bytes": other_raw})
        content.append({"token": text, "logprob": entry.logprob, "bytes": raw, "top_logprobs": top})
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """``choices[].logprobs`` of text completions, of one choice: it remembers where in the text it is."""

    def __init__(self, pieces: Pieces, top: int) -> None:
        self._pieces = pieces
        self._top = top
        self._offset = 0

    def add(self, tokens: Sequence[int], found: Sequence[TokenLogprobs | None]) -> dict[str, list[Any]]:
        """The four columns for further `tokens`; what nothing predicts (the first of a prompt) has null."""
        columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, entry in zip(tokens, found, strict=False):
            text, _ = self._pieces(token)
            columns["tokens"].append(text)
            columns["text_offset"].append(self._offset)
            self._offset += len(text)
            columns["token_logprobs"].append(None if entry is None else entry.logprob)
            top = None
            if entry is not None and self._top:
                # The token drawn is always among them, so there may be one more than asked for.
                top = {self._pieces(other)[0]: logprob for other, logprob in entry.top}
                top.setdefault(text, entry.logprob)
            columns["top_logprobs"].append(top)
        return columns
