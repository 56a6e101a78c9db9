"""One piece of training text, and the notation for conversations inside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A text with where it came from.

    kind: the sort of text, for mixing and for reporting loss ("essay", "python", "chat: essay", ...).
    origin: the work it was made from; documents of one origin are never divided between training and held-out.
    """

    kind: str
    origin: str
    text: str


def chat_turn(role: str, content: str) -> str:
    """One ChatML turn, ending with a newline. The tokenizer's chat template writes the same characters."""
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def chat(question: str, answer: str, system: str | None = None) -> str:
    """A conversation of one question and one answer."""
    opening = chat_turn("system", system) if system else ""
    return opening + chat_turn("user", question) + chat_turn("assistant", answer)
