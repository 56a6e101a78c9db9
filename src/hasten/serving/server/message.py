"""The text of an answer as the deltas of a chat message: its thought, its content, its calls of tools."""

from __future__ import annotations

import uuid
from typing import Any

from hasten.engine.decoding.constraints.tools import CallReader, ToolFormat

THOUGHT_BEGINS, THOUGHT_ENDS = "<think>", "</think>"
"""As the open models that think write it."""


class MessageDeltas:
    """One choice, piece by piece. `form`: how the model writes calls, None where it may write none. `thinking`: the prompt has
    opened a thought, which goes to `reasoning_content`, as at other open servers, so that the content is the answer alone."""

    def __init__(self, form: ToolFormat | None, thinking: bool) -> None:
        self._calls = CallReader(form) if form is not None else None
        self._begun = 0
        self._thinking = thinking
        self._held = ""
        """The end of a thought's text that may be the beginning of THOUGHT_ENDS."""

    def add(self, text: str, finish: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """What `text` adds, and the reason to finish."""
        deltas: list[dict[str, Any]] = []
        if self._thinking:
            thought, text = self._think(text, finish is not None)
            deltas += [{"reasoning_content": thought}] if thought else []
        if self._calls is None:
            deltas += [{"content": text}] if text else []
            return deltas, finish
        found = self._calls.feed(text)
        if finish is not None:
            found += self._calls.end()
            # A stop string may have cut the arguments: nobody should run such a call.
            if finish == "stop" and self._calls.calls and not self._calls.midway:
                finish = "tool_calls"
        for kind, piece in found:
            if kind == "text":
                deltas.append({"content": piece})
            elif kind == "call":
                function = {"name": piece, "arguments": ""}
                call = {"index": self._begun, "id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
                deltas.append({"tool_calls": [call]})
                self._begun += 1
            else:
                deltas.append({"tool_calls": [{"index": self._begun - 1, "function": {"arguments": piece}}]})
        return deltas, finish

    def _think(self, text: str, over: bool) -> tuple[str, str]:
        """(what belongs to the thought, what comes after it)."""
        thought, ended, rest = (self._held + text).partition(THOUGHT_ENDS)
        self._thinking, self._held = not ended, ""
        if not ended and not over:
            held = next((n for n in range(len(THOUGHT_ENDS) - 1, 0, -1) if thought.endswith(THOUGHT_ENDS[:n])), 0)
            thought, self._held = thought[: len(thought) - held], thought[len(thought) - held :]
        return thought, rest


def add_to_message(message: dict[str, Any], deltas: list[dict[str, Any]]) -> None:
    """Put deltas into the whole message of an answer that is not streamed."""
    for delta in deltas:
        for name in ("reasoning_content", "content"):
            if name in delta:
                message[name] = (message.get(name) or "") + delta[name]
        for call in delta.get("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if call["index"] == len(calls):
                calls.append({"id": call["id"], "type": "function", "function": call["function"]})
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    if "tool_calls" in message and not message["content"]:
        message["content"] = None
