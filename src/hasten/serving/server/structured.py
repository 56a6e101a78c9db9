"""What clients send to constrain an answer: OpenAI's `response_format`, and the `guided_*` and `structured_outputs` of other
open servers (in `extra_body`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.serving.server.errors import ApiError, invalid
from hasten.serving.server.strict import Strict

Schema = dict[str, Any] | bool | str
"""A JSON Schema, or its text."""
WHITESPACE = 16
"""Blanks that JSON may have in one place, if the client says nothing: enough for indentation, and an end to the loops of blanks
that models fall into where any number is legal."""


class JsonSchema(Strict):
    name: str = ""
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Strict):
    """One of the first five; the others say how, also of what other fields ask for. `after`: the text after which the
    constraint begins."""

    json_: Schema | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    whitespace: Literal["any", "compact", "spaced"] | int | None = None
    order: Literal["any", "schema"] | None = None
    lenient: bool | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A constraint, the field that asked for it, and the text after which it begins."""

    spec: ConstraintSpec
    param: str
    after: str | None = None


class StructuredBody(Strict):
    """The fields that both endpoints have."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    def wanted(self) -> Wanted | None:
        """The constraint asked for. ApiError 400 for two, and for what is none."""
        found = [*self._guided(), *self._structured(), *self._response()]
        if len(found) > 1:
            raise invalid(f"{found[0][0]} and {found[1][0]} cannot go together: one constraint at a time", found[1][0])
        if not found:
            if self.structured_outputs is not None:
                raise invalid(
                    "structured_outputs: there is no json, json_object, regex, choice or grammar", "structured_outputs"
                )
            return None
        [(param, kind, text, options)] = found
        how, after = self._how()
        if kind in ("json_schema", "json_object"):
            options = {"whitespace": WHITESPACE, **options, **how}
        elif how:
            name = f"structured_outputs.{next(iter(how))}"
            raise invalid(f"{name} is for JSON, and {param} asks for none", name)
        try:
            return Wanted(ConstraintSpec(kind, text, **options), param, after)
        except GrammarError as error:
            raise bad_grammar(error, param) from None

    def _how(self) -> tuple[dict[str, Any], str | None]:
        """(options of JSON, text after which it begins). ApiError 400 for what other servers know and we do not: it would
        change the answer."""
        asked = self.structured_outputs
        if asked is None:
            return {}, None
        for name, value in (asked.model_extra or {}).items():
            if value is not None and value is not False:
                param = f"structured_outputs.{name:.80}"
                raise invalid(f"{param} is not supported by this server", param, "unsupported_parameter")
        options = {"whitespace": asked.whitespace, "order": asked.order, "lenient": asked.lenient}
        return {name: value for name, value in options.items() if value is not None}, asked.after

    def _guided(self) -> list[tuple[str, Any, Any, dict[str, Any]]]:
        given = {
            "guided_json": self.guided_json, "guided_regex": self.guided_regex, "guided_choice": self.guided_choice,
            "guided_grammar": self.guided_grammar,
        }  # fmt: skip
        found = ((name, value) for name, value in given.items() if value is not None)
        return [(name, *_read(name.removeprefix("guided_"), value, name), {}) for name, value in found]

    def _structured(self) -> list[tuple[str, Any, Any, dict[str, Any]]]:
        asked = self.structured_outputs
        if asked is None:
            return []
        given = {
            "json": asked.json_, "json_object": asked.json_object or None, "regex": asked.regex, "choice": asked.choice,
            "grammar": asked.grammar,
        }  # fmt: skip
        found = ((f"structured_outputs.{name}", name, value) for name, value in given.items() if value is not None)
        return [(param, *_read(name, value, param), {}) for param, name, value in found]

    def _response(self) -> list[tuple[str, Any, Any, dict[str, Any]]]:
        asked = self.response_format
        if asked is None or asked.type == "text":
            return []
        if asked.type == "json_object":
            return [("response_format", "json_object", "", {})]
        given = asked.json_schema
        if given is None or given.schema_ is None:
            param = "response_format.json_schema" + (".schema" if given is not None else "")
            raise invalid(f"{param} is required", param, "missing_required_parameter")
        # What `strict` promises is to be kept; without it the client asks for what can be done.
        return [("response_format", "json_schema", json_text(given.schema_, "response_format"), {"lenient": not given.strict})]


def _read(name: str, value: Any, param: str) -> tuple[str, Any]:
    """(kind, text) of a `ConstraintSpec`."""
    if name == "json":
        return "json_schema", value if isinstance(value, str) else json_text(value, param)
    if name == "json_object":
        return "json_object", ""
    if name == "choice":
        return "choice", tuple(value)
    if name == "regex":
        return "regex", value
    return "gbnf" if "::=" in value else "ebnf", value


def json_text(schema: Any, param: str) -> str:
    """ApiError 400 where it cannot be written for its depth."""
    try:
        return json.dumps(schema)
    except RecursionError:
        raise invalid(f"{param}: a schema is nested too deep", param, "invalid_json_schema") from None


def bad_grammar(error: Exception, param: str) -> ApiError:
    about_json = "json" in param or param == "response_format" or param.startswith("tools")
    return invalid(f"{param}: {error}", param, "invalid_json_schema" if about_json else "invalid_grammar")
