"""Function calls: choose one of the tools on offer and fill in its arguments from a request.

Functions and parameters carry one of several names, drawn anew each time, so a call cannot be written from memory: its
names have to be read in the list of tools.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hasten.lab.testbed import json_check
from hasten.lab.testbed.document import END_OF_TURN, tool_call, tools_turn, turn
from hasten.lab.testbed.functions import FUNCTIONS, Function
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import ANSWERING, Example, Lesson, Piece, Split, Task, Wordings

MOST_TOOLS = 4
REQUESTS_A_LESSON = 4
POLITENESS = Wordings(
    train=("{}", "{}", "{}", "Please help. {}", "Hello! {}", "{} Thanks!", "{} Thank you.", "Now this: {}"),
    held_out=("{}", "Hi. {}", "{} Thanks."),
)
_CALL = re.compile(r"<tool_call>(.*)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Calls(Task):
    """tools: how many functions are on offer (1 to 4)."""

    name: ClassVar[str] = "calls"
    about: ClassVar[str] = "call the right function of a drawn tool list with the right arguments"
    metrics: ClassVar[tuple[str, ...]] = ("exact", "valid")
    tools: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.tools <= MOST_TOOLS:
            raise ValueError(f"calls: tools is {self.tools}; it must be from 1 to {MOST_TOOLS}")

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        offers = _offers(rng, self.tools)
        request, called, arguments = rng.choice(offers).request(rng, split)
        messages = ({"role": "user", "content": request},)
        tools = tuple({"type": "function", "function": offer.schema} for offer in offers)
        prompt = tools_turn(tools) + turn("user", request) + ANSWERING
        expected = {"name": called, "arguments": arguments}
        return Example(prompt, tool_call(called, arguments), expected, messages, tools, max_tokens=96)

    def score(self, example: Example, output: str) -> dict[str, float]:
        found = _CALL.fullmatch(output.rpartition("</think>")[2].strip())
        try:
            call = json_check.parse(found[1]) if found else None
        except ValueError:
            call = None
        functions = {tool["function"]["name"]: tool["function"]["parameters"] for tool in example.tools}
        return {"exact": float(json_check.same(call, example.expected)), "valid": float(_is_valid(call, functions))}

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        offers = _offers(rng, self.tools)
        pieces: list[Piece] = []
        opening = tools_turn([offer.schema for offer in offers])
        for _ in range(REQUESTS_A_LESSON):
            request, called, arguments = rng.choice(offers).request(rng, "train")
            pieces.append(Piece(opening + turn("user", request) + ANSWERING, False))
            pieces.append(Piece(tool_call(called, arguments) + END_OF_TURN, True))
            opening = "\n"
        return tuple(pieces)

    def easier(self, rng: random.Random, tokens: int) -> Calls:
        # A tool takes about 60 tokens, and so does a request with its call.
        return replace(self, tools=rng.randint(1, max(1, min(self.tools, tokens // 128))))


@dataclass(frozen=True)
class _Offer:
    """A function under the names drawn for it. names: by the parameters' words in the requests."""

    function: Function
    schema: Mapping[str, Any]
    names: Mapping[str, str]

    def request(self, rng: random.Random, split: Split) -> tuple[str, str, dict[str, Any]]:
        """What is asked, the function's name and the arguments."""
        values = {word: parameter.draw(rng) for word, parameter in self.function.parameters.items()}
        asked = POLITENESS.pick(rng, split).format(self.function.requests.pick(rng, split).format(**values))
        return asked, self.schema["name"], {self.names[word]: value for word, value in values.items()}


def _offers(rng: random.Random, count: int) -> list[_Offer]:
    offers: list[_Offer] = []
    for function in rng.sample(FUNCTIONS, count):
        names = {word: rng.choice(parameter.names) for word, parameter in function.parameters.items()}
        schema = {
            "name": rng.choice(function.names),
            "description": function.about,
            "parameters": {
                "type": "object",
                "properties": {names[word]: parameter.schema for word, parameter in function.parameters.items()},
                "required": list(names.values()),
            },
        }
        offers.append(_Offer(function, schema, names))
    return offers


def _is_valid(call: Any, functions: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether it is a call of a function on offer, with arguments of the right types and no others."""
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        return False
    parameters = functions.get(call["name"]) if isinstance(call["name"], str) else None
    if parameters is None or not json_check.conforms(call["arguments"], parameters):
        return False
    return bool(call["arguments"].keys() <= parameters["properties"].keys())


TASK = Calls
