"""One piece of training text, and the notation for conversations inside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class Document:
    """A text with where it came from.

    kind: the sort of text, for mixing and for reporting loss ("essay", "python", "chat: essay", ...).
    origin: the work it was made from; documents of one origin are never divided between training and held-out.
    """

    kind: str
    origin: str
    text: str


def turn(role: str, content: str) -> str:
    """One ChatML turn, ending with a newline. The tokenizer's chat template writes the same characters."""
    return f"<|im_start|>{role}\n{content}{END_OF_TURN}\n"


def chat(question: str, answer: str, system: str | None = None) -> str:
    """A conversation of one question and one answer."""
    opening = turn("system", system) if system else ""
    return opening + turn("user", question) + turn("assistant", answer)


def tools_turn(tools: Iterable[Mapping[str, Any]], system: str | None = None) -> str:
    """The system turn that offers tools: `system`, then the function of each tool as JSON on a line of its own.

    A tool is {"type": "function", "function": {...}}, as in OpenAI's chat API, or just the function.
    """
    lines = "".join(json.dumps(tool.get("function") or tool, ensure_ascii=False) + "\n" for tool in tools)
    return turn("system", (f"{system}\n" if system else "") + f"<tools>\n{lines}</tools>")


def tool_call(name: str, arguments: Mapping[str, Any] | str) -> str:
    """A call as the assistant writes it, without its turn; `arguments`: an object, or one that is JSON already."""
    called = json.dumps(name, ensure_ascii=False)
    given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {called}, "arguments": {given}}}\n</tool_call>'


def tool_turn(result: str) -> str:
    """The turn that gives a call's result to the assistant."""
    return turn("tool", f"<tool_response>\n{result}\n</tool_response>")
