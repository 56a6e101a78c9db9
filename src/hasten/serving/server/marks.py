"""Pieces of a conversation that are marked for reuse: documents, and parts of messages with `cache`.

What a chat template makes of a conversation is text, and what of it is a piece is found again by marks around the piece. They
are characters that nobody uses and a number drawn for this request, so no text can hold them. A template may do with them what
it wants: where what comes out does not hold every piece once and whole, it is asked again, without marks.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

from hasten.serving.server.strict import Strict


class Content(str):
    """The text of a message. `parts`: what it is joined of, and whether each is marked."""

    parts: tuple[tuple[str, bool], ...]

    @classmethod
    def of(cls, parts: list[tuple[str, bool]]) -> Content:
        content = cls("".join(text for text, _ in parts))
        content.parts = tuple(parts)
        return content

    @property
    def marked(self) -> bool:
        return any(cached and text for text, cached in self.parts)


def read_parts(value: Any) -> str | None:
    """Content of a message: a string, or parts of text which are joined."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("content", "should be a string or a list of parts")
    parts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal"):
            raise PydanticCustomError("part", "has a part of type {kind}; only text is understood", {"kind": repr(kind)})
        text, cached = part.get(kind), part.get("cache") or False
        if not isinstance(text, str):
            raise PydanticCustomError("part", "has a part of type '{kind}' without text", {"kind": kind})
        if not isinstance(cached, bool):
            raise PydanticCustomError("part", "has a part whose cache is neither true nor false")
        parts.append((text, cached))
    return Content.of(parts)


def read_documents(value: Any) -> list[dict[str, str]] | None:
    """`documents`: strings, or objects with a text and perhaps a title, as chat templates want them."""
    if value is None:
        return None
    documents = []
    for item in value if isinstance(value, list) else [None]:
        found = {"text": item} if isinstance(item, str) else item
        if not isinstance(found, dict) or not isinstance(found.get("text"), str) or not found["text"]:
            raise PydanticCustomError("documents", "should be a list of texts, or of objects with a text and perhaps a title")
        if not isinstance(found.get("title", ""), str):
            raise PydanticCustomError("documents", "has a title that is no string")
        documents.append({"title": found.get("title", ""), "text": found["text"]})
    return documents


class DocumentsBody(Strict):
    documents: Annotated[list[dict[str, str]] | None, PlainValidator(read_documents)] = None
    """Texts that the conversation is about, each a piece to be reused."""


class Marks:
    """Those of one request; `number` empty: none."""

    def __init__(self, number: str | None = None) -> None:
        self._number = secrets.token_hex(8) if number is None else number
        self._begin, self._end = f"\ue000{self._number}\ue001", f"\ue002{self._number}\ue003"
        self._count = 0

    def around(self, text: str) -> str:
        self._count += 1
        return f"{self._begin}{text}{self._end}" if self._number else text

    def content(self, content: str) -> str:
        """With marks around the parts that are marked."""
        if not isinstance(content, Content):
            return content
        return "".join(self.around(text) if cached and text else text for text, cached in content.parts)

    def split(self, text: str) -> list[tuple[str, bool]] | None:
        """What a template wrote, as pieces without marks, and whether each is to be reused. None where it did not leave the
        marks as they were."""
        if not self._number:
            return [(text, False)]
        first, *others = text.split(self._begin)
        pieces = [(first, False)]
        for other in others:
            piece, found, after = other.partition(self._end)
            if not found:
                return None
            pieces += [(piece, True), (after, False)]
        if len(others) != self._count or any(self._number in piece for piece, _ in pieces):
            return None
        return [piece for piece in pieces if piece[0]]

    def place(
        self, messages: list[dict[str, Any]], documents: list[dict[str, str]], known: bool
    ) -> list[dict[str, str]] | None:
        """`documents` with marks, for a template that knows of them (`known`); else they are put before the first thing that
        the user says."""
        marked = [{**document, "text": self.around(document["text"])} for document in documents]
        if known:
            return [{**document, "content": document["text"], "contents": document["text"]} for document in marked]
        user = next((message for message in messages if message["role"] == "user"), messages[-1])
        titled = (f"{one['title']}\n{one['text']}" if one["title"] else one["text"] for one in marked)
        user["content"] = "".join(f"{text}\n\n" for text in titled) + user["content"]
        return None


async def tokenised(
    pieces: list[tuple[str, bool]], encode: Callable[[str], Awaitable[list[int]]]
) -> tuple[list[int], tuple[tuple[int, int], ...]]:
    """Token ids of all pieces, each by itself, and the ranges of those that are to be reused; the last token is in none."""
    tokens: list[int] = []
    chunks: list[tuple[int, int]] = []
    for text, cached in pieces:
        start = len(tokens)
        tokens += await encode(text)
        if cached:
            chunks.append((start, len(tokens)))
    last = len(tokens) - 1
    return tokens, tuple((start, min(stop, last)) for start, stop in chunks if start < min(stop, last))
