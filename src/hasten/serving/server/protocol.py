"""What clients may send: the bodies of the OpenAI API, checked strictly, and their sampling parameters.

Types are strict (a bool is no integer, "0.7" no number). Unknown fields are ignored and logged once each. Fields of the
OpenAI API that we lack are refused when they would change the answer and ignored when they would not.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from hasten.engine.request import BadRequest, SamplingParams
from hasten.serving.server.errors import ApiError, invalid
from hasten.serving.server.marks import Content, DocumentsBody, Marks, read_parts
from hasten.serving.server.placement import PlacementBody
from hasten.serving.server.strict import Strict
from hasten.serving.server.structured import StructuredBody
from hasten.serving.server.tools import Call, ToolsBody

log = logging.getLogger("hasten.server")


def _strings(value: Any) -> tuple[str, ...]:
    """`stop`: a string or a list of at most 16 strings."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise PydanticCustomError("string_or_list", "should be a string or a list of strings")
    if len(found) > 16:
        raise PydanticCustomError("too_long", "should hold at most 16 strings")
    return tuple(found)


def _bias(value: Any) -> dict[int, float]:
    """`logit_bias`: JSON object from token id to bias."""
    if not isinstance(value, dict):
        raise PydanticCustomError("dict_type", "should be an object from token ids to numbers")
    bias = {}
    for key, number in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 11):
            raise PydanticCustomError("token_id", "has a key that is no token id")
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise PydanticCustomError("float_type", "should be an object from token ids to numbers")
        bias[int(key)] = float(number)
    return bias


def _speculate(value: Any) -> int | None:
    """`speculate`: false, true (as the server does by itself), or the most tokens drafted in a step."""
    if isinstance(value, bool):
        return None if value else 0
    if value is not None and (not isinstance(value, int) or value < 0):
        raise PydanticCustomError("speculate", "should be false, true or the most tokens to draft in a step")
    return value


def _prompt(value: Any) -> list[str | list[int]]:
    """`prompt` as a list of prompts, all text or all token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if all(type(item) is int for item in value):
            return [value]
        if all(isinstance(item, list) and item and all(type(t) is int for t in item) for item in value):
            return value
    raise PydanticCustomError(
        "prompt", "should be a string, a list of strings, a list of token ids or a list of such lists, none of them empty"
    )


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Message(Strict):
    """One message; other fields (name, tool_call_id) go to the chat template as they are."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | None, PlainValidator(read_parts)] = None
    tool_calls: list[Call] | None = None

    def for_template(self, marks: Marks) -> dict[str, Any]:
        extra = {key: value for key, value in (self.model_extra or {}).items() if value is not None}
        # Templates of open models know no developer: it is OpenAI's newer name of the system.
        role = "system" if self.role == "developer" else self.role
        if self.tool_calls:
            extra["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return {**extra, "role": role, "content": marks.content(self.content or "")}


class SamplingBody(StructuredBody, PlacementBody):
    """What both endpoints share."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: Annotated[tuple[str, ...] | None, PlainValidator(lambda v: None if v is None else _strings(v))] = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[int, float] | None, PlainValidator(lambda v: None if v is None else _bias(v))] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Beyond OpenAI, as in other open servers; the openai client sends them with `extra_body`.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    speculate: Annotated[int | None, PlainValidator(_speculate)] = None

    @property
    def usage_wanted(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Rules between fields."""
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options is for stream=true only", "stream_options")
        if self.min_tokens and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise invalid(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}", "min_tokens")

    def sampling(self, **given: Any) -> SamplingParams:
        """The engine's parameters; what the client left out (or sent as null) takes the engine's default."""
        for name in (
            "temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "top_k",
            "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "speculate",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None:
                given[name] = value
        if self.top_k == -1:  # how other servers spell "off"
            given["top_k"] = 0
        if self.stop_token_ids:
            given["stop_token_ids"] = tuple(self.stop_token_ids)
        return SamplingParams(**given)


class CompletionBody(SamplingBody):
    prompt: Annotated[list[str | list[int]], PlainValidator(_prompt)]
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = None

    def check(self) -> None:
        super().check()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise invalid("best_of other than n is not supported", "best_of", "unsupported_value")
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens must be at least 1, or 0 together with echo", "max_tokens")


class ChatBody(SamplingBody, ToolsBody, DocumentsBody):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables for the chat template, such as `enable_thinking`."""

    @property
    def marked(self) -> bool:
        """Some of it is marked for reuse."""
        return bool(self.documents) or any(isinstance(m.content, Content) and m.content.marked for m in self.messages)

    def check(self) -> None:
        super().check()
        self.check_tools()
        if not self.messages:
            raise invalid("messages should hold at least one message", "messages")
        for i, message in enumerate(self.messages):
            if message.content is None and message.role != "assistant":
                raise invalid(f"messages[{i}] has no content", f"messages[{i}].content")
        for name in self.chat_template_kwargs or ():
            if not name.isidentifier() or name in _TEMPLATE_OWN:
                raise invalid(f"chat_template_kwargs may not set {name:.80}", "chat_template_kwargs")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs needs logprobs=true", "top_logprobs")

    def sampling(self, **given: Any) -> SamplingParams:
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        try:
            return super().sampling(max_tokens=limit, logprobs=logprobs, **given)
        except BadRequest as error:
            # The engine calls these two otherwise than the client did.
            names = {"logprobs": "top_logprobs"}
            if self.max_completion_tokens is not None:
                names["max_tokens"] = "max_completion_tokens"
            if (wanted := names.get(error.param or "")) is None:
                raise
            raise BadRequest(error.message.replace(error.param or "", wanted, 1), wanted) from None


# Fields of the OpenAI API (and a few of other servers) that would change the answer -> values that would not. None never does.
_REFUSED_EVERYWHERE: dict[str, tuple[Any, ...]] = {
    "use_beam_search": (False,), "prompt_embeds": (), "guided_whitespace_pattern": (), "structural_tag": (),
}  # fmt: skip
_REFUSED: dict[type[SamplingBody], dict[str, tuple[Any, ...]]] = {
    CompletionBody: {"suffix": ("",), **_REFUSED_EVERYWHERE},
    ChatBody: {
        "functions": ([],), "function_call": ("none", "auto"), "audio": (), "modalities": (["text"],), "prediction": (),
        "web_search_options": (), "reasoning_effort": ("none",), "verbosity": ("medium",), "chat_template": (),
        "continue_final_message": (False,), "echo": (False,), "best_of": (1,),
        **_REFUSED_EVERYWHERE,
    },
}  # fmt: skip
_HARMLESS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
}  # fmt: skip
_TEMPLATE_OWN = {"self", "messages", "tools", "documents", "add_generation_prompt"}
_MOST_LOGGED = 1000
_logged: set[str] = set()

Body = TypeVar("Body", bound=SamplingBody)


def parse(kind: type[Body], raw: bytes) -> Body:
    """The checked body; ApiError 400 otherwise, naming the field."""
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise invalid("the body should be a JSON object", code="invalid_json")
    for name, harmless in _REFUSED[kind].items():
        value = data.pop(name, None)
        if value is not None and value not in harmless:
            raise invalid(f"{name} is not supported by this server", name, "unsupported_parameter")
    try:
        body = kind.model_validate(data)
    except ValidationError as error:
        raise _first(error, data) from None
    _log_unknown(body)
    body.check()
    return body


def _first(error: ValidationError, data: Any) -> ApiError:
    """The first of pydantic's complaints about `data` as an ApiError."""
    found = error.errors(include_url=False)[0]
    param = ""
    for at, part in enumerate(found["loc"]):
        missing = found["type"] == "missing" and at + 1 == len(found["loc"])
        if isinstance(part, str) and not (isinstance(data, dict) and (part in data or missing)):
            continue  # no field, but which member of a union complains
        data = data[part] if isinstance(part, int) else data.get(part)
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else part
    if found["type"] == "missing":
        return invalid(f"{param} is required", param, "missing_required_parameter")
    message = found["msg"][:1].lower() + found["msg"][1:]
    given = found["input"]
    shown = f", got {given!r}" if isinstance(given, int | float | str) and len(repr(given)) <= 60 else ""
    code = "invalid_type" if found["type"].endswith("_type") else "invalid_value"
    return invalid(f"{param}: {message}{shown}", param, code)


def _log_unknown(body: SamplingBody) -> None:
    for name in body.model_extra or ():
        if name not in _HARMLESS and name not in _logged and len(_logged) < _MOST_LOGGED:
            _logged.add(name)
            log.warning("the unknown request field %.80r is ignored (said once)", name)
