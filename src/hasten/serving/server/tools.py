"""Tools in the chat API: what a client may send of them, and the constraint that this asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import Discriminator, Field, Tag

from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.decoding.constraints.tools import Tool, ToolFormat, ToolSpec
from hasten.serving.server.errors import invalid
from hasten.serving.server.strict import Strict
from hasten.serving.server.structured import WHITESPACE, json_text

_MOST_TOOLS = 128
"""As at OpenAI."""
_NAME = r"^[a-zA-Z0-9_.-]{1,64}$"
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
"""Of a function that names none."""


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


class Allowance(Strict):
    mode: Literal["auto", "required"]
    tools: list[Choice]


class Allowed(Strict):
    """Only some of the tools on offer; the model is told of all of them."""

    type: Literal["allowed_tools"]
    allowed_tools: Allowance


def _form(choice: Any) -> str | None:
    kind = choice.get("type") if isinstance(choice, Mapping) else getattr(choice, "type", None)
    return "=word" if isinstance(choice, str) else f"={kind}"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("=word")]
    | Annotated[Choice, Tag("=function")]
    | Annotated[Allowed, Tag("=allowed_tools")],
    Discriminator(
        _form,
        custom_error_type="tool_choice",
        custom_error_message="should be 'none', 'auto', 'required', or an object of type 'function' or 'allowed_tools'",
    ),
]


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
    tool_choice: ToolChoice | None = None
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
        for param, name in self._chosen():
            if name not in names:
                raise invalid(f"{param} names no tool on offer: {name!r:.80}", param)
        if isinstance(self.tool_choice, Allowed) and not self.tool_choice.allowed_tools.tools:
            raise invalid("tool_choice.allowed_tools.tools names no tool", "tool_choice.allowed_tools.tools")
        if self.tool_choice == "required" and not offers:
            raise invalid("tool_choice is required, and tools offers none", "tool_choice")

    def _chosen(self) -> list[tuple[str, str]]:
        """(parameter, name) of each tool that `tool_choice` names."""
        match self.tool_choice:
            case Choice(function=function):
                return [("tool_choice", function.name)]
            case Allowed(allowed_tools=allowed):
                where = "tool_choice.allowed_tools.tools"
                return [(f"{where}[{i}].function.name", choice.function.name) for i, choice in enumerate(allowed.tools)]
        return []

    @property
    def offered(self) -> list[Offer]:
        """The tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    def for_template(self) -> list[dict[str, Any]] | None:
        """The tools on offer as templates take them. ApiError 400 where they are nested too deep to be shown."""
        try:
            offers = [offer.model_dump(exclude_none=True) for offer in self.offered]
            orjson.dumps(offers)  # no more than 254 levels, which the template's own writer bears wherever it is called
            return offers or None
        except (RecursionError, TypeError, ValueError):
            raise invalid("tools: a schema is nested too deep", "tools", "invalid_json_schema") from None

    def tool_spec(self, form: ToolFormat, answer: ConstraintSpec | None) -> ToolSpec:
        names = {name for _, name in self._chosen()}
        one = isinstance(self.tool_choice, Choice)
        mode = self.tool_choice.allowed_tools.mode if isinstance(self.tool_choice, Allowed) else self.tool_choice
        return ToolSpec(
            tuple(_tool(offer.function) for offer in self.offered if not names or offer.function.name in names),
            form,
            required=one or mode == "required",
            parallel=not one and self.parallel_tool_calls is not False,
            answer=answer,
            whitespace=WHITESPACE,
        )

    def params(self) -> dict[str, str]:
        """Where a `ToolSpec` may be at fault -> the parameter of the body."""
        names = (offer.function.name for offer in self.tools or [])
        return {f"tool {name}": f"tools[{i}].function.parameters" for i, name in enumerate(names)}


def _tool(function: Function) -> Tool:
    given = _NO_PARAMETERS if function.parameters is None else {"type": "object", **function.parameters}
    return Tool(function.name, json_text(given, "tools"), bool(function.strict))
