"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

import orjson

from hasten import __version__
from hasten.engine.outputs import Delta
from hasten.engine.request import Request
from hasten.serving.server.answer import Job, Writer
from hasten.serving.server.errors import invalid
from hasten.serving.server.logprobs import Pieces, chat_logprobs
from hasten.serving.server.protocol import ChatBody, parse
from hasten.serving.server.service import Service
from hasten.serving.server.tools import CallDeltas, add_to_message

THOUGHT_BEGINS, THOUGHT_ENDS = "<think>", "</think>"
"""As the open models that think write it."""


async def prepare(service: Service, raw: bytes, headers: Mapping[str, str]) -> Job:
    body = parse(ChatBody, raw)
    service.check_model(body.model)
    placement = body.placement(headers)
    template = service.engine.chat_template
    if template is None:
        raise invalid("this model has no chat template; use /v1/completions", "messages", "no_chat_template")
    messages = [message.for_template() for message in body.messages]
    tools = [offer.model_dump(exclude_none=True) for offer in body.offered]
    text = template.render(messages, add_generation_prompt=True, tools=tools or None, **body.chat_template_kwargs or {})
    sampling = body.sampling(constraint=await _constraint(service, body, text))
    # The template has already written what the model wants before a text.
    tokens = await service.encode(text, "messages", special=False)
    id = f"chatcmpl-{uuid.uuid4().hex}"
    request = Request(
        id=id,
        prompt=tokens,  # type: ignore[arg-type]
        sampling=sampling,
        **placement,
    )
    head = {
        "id": id,
        "object": "chat.completion.chunk" if body.stream else "chat.completion",
        "created": int(time.time()),
        "model": service.name,
        "system_fingerprint": f"hasten-{__version__}",
    }
    pieces = service.pieces if body.logprobs else None
    calls = [CallDeltas(service.tool_format) for _ in range(sampling.n)] if tools else None
    if body.stream:
        return Job(id, [request], _Stream(head, pieces, calls, sampling.n, body.usage_wanted))
    return Job(id, [request], _Whole(head, pieces, calls))


async def _constraint(service: Service, body: ChatBody, prompt: str) -> Any:
    """What `SamplingParams.constraint` shall be for this body, whose messages became `prompt`."""
    wanted = body.wanted()
    # A template that opens a thought leaves it to the model to close it; what is asked for comes after.
    after = THOUGHT_ENDS if prompt.rstrip().endswith(THOUGHT_BEGINS) else None
    if wanted is not None and wanted.after is not None:
        after = wanted.after
    if not body.offered:
        return None if wanted is None else await service.grammars.compile(wanted.spec, wanted.param, after)
    if wanted is not None and not service.tool_format.marker:
        raise invalid(f"{wanted.param} and tools cannot go together: this model marks no calls of tools", wanted.param)
    spec = body.tool_spec(service.tool_format, wanted.spec if wanted is not None else None)
    free = not spec.required and spec.answer is None  # the text before the calls may hold the thought
    return await service.grammars.compile(spec, "tools", None if free else after)


class _Stream(Writer):
    media_type = "text/event-stream; charset=utf-8"

    def __init__(
        self, head: dict[str, Any], pieces: Pieces | None, calls: list[CallDeltas] | None, n: int, usage_wanted: bool
    ) -> None:
        self._head = head
        self._pieces = pieces
        self._calls = calls
        self._n = n
        self._usage_wanted = usage_wanted
        # Only the choice differs from event to event, so the rest is encoded once.
        null = {"usage": None} if usage_wanted else {}
        self._before = b"data: " + orjson.dumps({**head, **null})[:-1] + b',"choices":['

    def _event(self, index: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._before + orjson.dumps(choice) + b"]}\n\n"

    def begin(self) -> bytes:
        role = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._event(index, role) for index in range(self._n))

    def add(self, choice: int, delta: Delta) -> bytes:
        logprobs = None
        if self._pieces is not None and delta.tokens:
            logprobs = chat_logprobs(self._pieces, delta.tokens, delta.logprobs)
        elif not delta.text and delta.finish is None:
            return b""  # in the middle of a character or of what may be a stop string
        deltas, finish = [{"content": delta.text}] if delta.text else [], delta.finish
        if self._calls is not None:
            deltas, finish = self._calls[choice].add(delta.text, finish)
            if not deltas and finish is None and logprobs is None:
                return b""
        *before, last = deltas or [{}]
        return b"".join(self._event(choice, one) for one in before) + self._event(choice, last, logprobs, finish)

    def end(self, usage: dict[str, Any]) -> bytes:
        last = b""
        if self._usage_wanted:
            last = b"data: " + orjson.dumps({**self._head, "choices": [], "usage": usage}) + b"\n\n"
        return last + b"data: [DONE]\n\n"


class _Whole(Writer):
    media_type = "application/json"

    def __init__(self, head: dict[str, Any], pieces: Pieces | None, calls: list[CallDeltas] | None) -> None:
        self._head = head
        self._pieces = pieces
        self._calls = calls
        self._choices: dict[int, dict[str, Any]] = {}

    def begin(self) -> bytes:
        return b""

    def add(self, choice: int, delta: Delta) -> bytes:
        answer = self._choices.get(choice)
        if answer is None:
            message = {"role": "assistant", "content": "", "refusal": None}
            answer = {"index": choice, "message": message, "logprobs": None, "finish_reason": None}
            self._choices[choice] = answer
        if self._calls is None:
            answer["message"]["content"] += delta.text
            answer["finish_reason"] = delta.finish
        else:
            deltas, answer["finish_reason"] = self._calls[choice].add(delta.text, delta.finish)
            add_to_message(answer["message"], deltas)
        if self._pieces is not None:
            logprobs = chat_logprobs(self._pieces, delta.tokens, delta.logprobs)
            if answer["logprobs"] is None:
                answer["logprobs"] = logprobs
            else:
                answer["logprobs"]["content"] += logprobs["content"]
        return b""

    def end(self, usage: dict[str, Any]) -> bytes:
        choices = [self._choices[index] for index in sorted(self._choices)]
        return orjson.dumps({**self._head, "choices": choices, "usage": usage})
