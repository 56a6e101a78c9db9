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
from hasten.engine.text import ChatTemplate
from hasten.serving.server.answer import Job, Writer
from hasten.serving.server.errors import invalid
from hasten.serving.server.logprobs import Pieces, chat_logprobs
from hasten.serving.server.marks import Marks, tokenised
from hasten.serving.server.message import THOUGHT_BEGINS, THOUGHT_ENDS, MessageDeltas, add_to_message
from hasten.serving.server.protocol import ChatBody, parse
from hasten.serving.server.service import Service
from hasten.serving.server.structured import Wanted


async def prepare(service: Service, raw: bytes, headers: Mapping[str, str]) -> Job:
    body = parse(ChatBody, raw)
    service.check_model(body.model)
    placement = body.placement(headers)
    template = service.engine.chat_template
    if template is None:
        raise invalid("this model has no chat template; use /v1/completions", "messages", "no_chat_template")
    tools = body.for_template()
    pieces = _render(template, body, tools, Marks()) if body.marked else None
    if pieces is None:
        pieces = _render(template, body, tools, Marks("")) or []
    # A template that opens a thought leaves it to the model to close it; what is asked for comes after.
    thinking = bool(pieces) and pieces[-1][0].rstrip().endswith(THOUGHT_BEGINS)
    wanted = body.wanted()
    sampling = body.sampling(constraint=await _constraint(service, body, wanted, thinking))
    # The template has already written what the model wants before a text.
    tokens, chunks = await tokenised(pieces, service.encode_piece)
    service.check_length(tokens, "messages", chunks)
    id = f"chatcmpl-{uuid.uuid4().hex}"
    request = Request(
        id=id,
        prompt=tokens,  # type: ignore[arg-type]
        sampling=sampling,
        chunks=chunks,
        **placement,
    )
    head = {
        "id": id,
        "object": "chat.completion.chunk" if body.stream else "chat.completion",
        "created": int(time.time()),
        "model": service.name,
        "system_fingerprint": f"hasten-{__version__}",
    }
    logprobs = service.pieces if body.logprobs else None
    choices = [MessageDeltas(service.tool_format if tools else None, thinking) for _ in range(sampling.n)]
    writer = _Stream(head, logprobs, choices, body.usage_wanted) if body.stream else _Whole(head, logprobs, choices)
    return Job(id, [request], writer, "tools" if tools else wanted.param if wanted is not None else None)


def _render(template: ChatTemplate, body: ChatBody, tools: Any, marks: Marks) -> list[tuple[str, bool]] | None:
    """The conversation as text, in pieces (`Marks.split`)."""
    messages = [message.for_template(marks) for message in body.messages]
    variables = dict(body.chat_template_kwargs or {})
    if body.documents:
        known = any("documents" in source for source in template.sources.values())
        variables["documents"] = marks.place(messages, body.documents, known)
    return marks.split(template.render(messages, add_generation_prompt=True, tools=tools, **variables))


async def _constraint(service: Service, body: ChatBody, wanted: Wanted | None, thinking: bool) -> Any:
    """What `SamplingParams.constraint` shall be."""
    after = THOUGHT_ENDS if thinking else None
    if wanted is not None and wanted.after is not None:
        after = wanted.after
    if not body.offered:
        return None if wanted is None else await service.grammars.compile(wanted.spec, wanted.param, after)
    if wanted is not None and not service.tool_format.marker:
        raise invalid(f"{wanted.param} and tools cannot go together: this model marks no calls of tools", wanted.param)
    spec = body.tool_spec(service.tool_format, wanted.spec if wanted is not None else None)
    params = body.params() | ({"the answer": wanted.param} if wanted is not None else {})
    return await service.grammars.compile(spec, "tools", after, params)


class _Stream(Writer):
    media_type = "text/event-stream; charset=utf-8"

    def __init__(self, head: dict[str, Any], pieces: Pieces | None, choices: list[MessageDeltas], usage_wanted: bool) -> None:
        self._head = head
        self._pieces = pieces
        self._choices = choices
        self._usage_wanted = usage_wanted
        # Only the choice differs from event to event, so the rest is encoded once.
        null = {"usage": None} if usage_wanted else {}
        self._before = b"data: " + orjson.dumps({**head, **null})[:-1] + b',"choices":['

    def _event(self, index: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._before + orjson.dumps(choice) + b"]}\n\n"

    def begin(self) -> bytes:
        role = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._event(index, role) for index in range(len(self._choices)))

    def add(self, choice: int, delta: Delta) -> bytes:
        logprobs = None
        if self._pieces is not None and delta.tokens:
            logprobs = chat_logprobs(self._pieces, delta.tokens, delta.logprobs)
        elif not delta.text and delta.finish is None:
            return b""  # in the middle of a character or of what may be a stop string
        deltas, finish = self._choices[choice].add(delta.text, delta.finish)
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

    def __init__(self, head: dict[str, Any], pieces: Pieces | None, choices: list[MessageDeltas]) -> None:
        self._head = head
        self._pieces = pieces
        self._choices = choices
        self._answers: dict[int, dict[str, Any]] = {}

    def begin(self) -> bytes:
        return b""

    def add(self, choice: int, delta: Delta) -> bytes:
        answer = self._answers.get(choice)
        if answer is None:
            message = {"role": "assistant", "content": "", "refusal": None}
            answer = {"index": choice, "message": message, "logprobs": None, "finish_reason": None}
            self._answers[choice] = answer
        deltas, answer["finish_reason"] = self._choices[choice].add(delta.text, delta.finish)
        add_to_message(answer["message"], deltas)
        if self._pieces is not None:
            logprobs = chat_logprobs(self._pieces, delta.tokens, delta.logprobs)
            if answer["logprobs"] is None:
                answer["logprobs"] = logprobs
            else:
                answer["logprobs"]["content"] += logprobs["content"]
        return b""

    def end(self, usage: dict[str, Any]) -> bytes:
        choices = [self._answers[index] for index in sorted(self._answers)]
        return orjson.dumps({**self._head, "choices": choices, "usage": usage})
