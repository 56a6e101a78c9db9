"""Tools in the chat API: what a client may send of them, and the calls of an answer in the shape it expects."""

from __future__ import annotations

import json
import uuid
from typing import Any, Literal

import orjson
from pydantic import Field

from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.decoding.constraints.tools import CallReader, Tool, ToolFormat, ToolSpec
from hasten.serving.server.errors import invalid
from hasten.serving.server.strict import Strict
from hasten.serving.server.structured import WHITESPACE

_MOST_TOOLS = 128
"""As at OpenAI."""
_NAME = r"^[a-zA-Z0-9_.-]{1,64}$"


class Function(Strict):
    name: str = Field(pattern=_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Offer(Strict):
    type: Literal["function"]
    function: Function


class Chosen(Strict):
    name: str


class Choice(Strict):
    type: Literal["function"]
    function: Chosen


class Called(Strict):
    """A call in a message of the assistant. `arguments`: JSON text, or what it means."""

    name: str
    arguments: str | dict[str, Any] = ""


class Call(Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: Called

    def for_template(self) -> dict[str, Any]:
        """With the arguments as an object, which is what templates expect; as text where they are none."""
        arguments = self.function.arguments
        if isinstance(arguments, str):
            try:
                read = orjson.loads(arguments or "{}")
            except orjson.JSONDecodeError:
                read = None
            arguments = read if isinstance(read, dict) else arguments
        return {"id": self.id, "type": self.type, "function": {"name": self.function.name, "arguments": arguments}}


class ToolsBody(Strict):
    """The fields of a chat body that concern tools."""

    tools: list[Offer] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None

    def check_tools(self) -> None:
        offers = self.tools or []
        if len(offers) > _MOST_TOOLS:
            raise invalid(f"tools holds {len(offers)} tools, at most {_MOST_TOOLS} are taken", "tools")
        names = [offer.function.name for offer in offers]
        for i, offer in enumerate(offers):
            param = f"tools[{i}].function"
            if offer.function.name in names[:i]:
                raise invalid(f"two tools are called {offer.function.name!r}", f"{param}.name")
            if (offer.function.parameters or {}).get("type", "object") != "object":
                raise invalid(f"{param}.parameters should describe an object", f"{param}.parameters", "invalid_json_schema")
        if isinstance(self.tool_choice, Choice) and self.tool_choice.function.name not in names:
            raise invalid(f"tool_choice names no tool on offer: {self.tool_choice.function.name!r:.80}", "tool_choice")
        if self.tool_choice == "required" and not offers:
            raise invalid("tool_choice is required, and tools offers none", "tool_choice")

    @property
    def offered(self) -> list[Offer]:
        """The tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    def tool_spec(self, form: ToolFormat, answer: ConstraintSpec | None) -> ToolSpec:
        named = self.tool_choice.function.name if isinstance(self.tool_choice, Choice) else None
        return ToolSpec(
            tuple(_tool(offer.function) for offer in self.offered if named in (None, offer.function.name)),
            form,
            required=named is not None or self.tool_choice == "required",
            parallel=named is None and self.parallel_tool_calls is not False,
            answer=answer,
            whitespace=WHITESPACE,
        )


def _tool(function: Function) -> Tool:
    parameters = {"type": "object", **(function.parameters or {})}
    return Tool(function.name, json.dumps(parameters), bool(function.strict))


class CallDeltas:
    """The answer of one choice as OpenAI's message deltas, piece by piece."""

    def __init__(self, form: ToolFormat) -> None:
        self._reader = CallReader(form)
        self._begun = 0

    def add(self, text: str, finish: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """What `text` adds, and the reason to finish."""
        found = self._reader.feed(text)
        if finish is not None:
            found += self._reader.end()
            if finish == "stop" and self._reader.calls:
                finish = "tool_calls"
        deltas: list[dict[str, Any]] = []
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


def add_to_message(message: dict[str, Any], deltas: list[dict[str, Any]]) -> None:
    """Put deltas into the whole message of an answer that is not streamed."""
    for delta in deltas:
        message["content"] = (message["content"] or "") + delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if call["index"] == len(calls):
                calls.append({"id": call["id"], "type": "function", "function": call["function"]})
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    if "tool_calls" in message and not message["content"]:
        message["content"] = None
