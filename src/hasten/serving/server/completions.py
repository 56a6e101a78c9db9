"""POST /v1/completions."""

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
from hasten.serving.server.logprobs import CompletionLogprobs
from hasten.serving.server.protocol import CompletionBody, parse
from hasten.serving.server.service import Service

DEFAULT_MAX_TOKENS = 16
"""What OpenAI takes when a completion names no limit."""


async def prepare(service: Service, raw: bytes, headers: Mapping[str, str]) -> Job:
    body = parse(CompletionBody, raw)
    service.check_model(body.model)
    placement = body.placement(headers)
    if len(body.prompt) > service.settings.most_prompts:
        raise invalid(f"prompt holds {len(body.prompt)} prompts, at most {service.settings.most_prompts} go at once", "prompt")
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    wanted = body.wanted()
    constraint = None if wanted is None else await service.grammars.compile(wanted.spec, wanted.param, wanted.after)
    # The engine always draws one token; for max_tokens=0 (to score a prompt) the writer leaves it out.
    sampling = body.sampling(
        max_tokens=1 if max_tokens == 0 else max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
        constraint=constraint,
    )
    id = f"cmpl-{uuid.uuid4().hex}"
    requests: list[Request] = []
    for i, prompt in enumerate(body.prompt):
        if isinstance(prompt, str):
            tokens = await service.encode(prompt, "prompt", special=True)
        else:
            tokens = prompt
            service.check_length(tokens, "prompt")
        requests.append(
            Request(
                id=f"{id}-{i}",
                prompt=tokens,  # type: ignore[arg-type]
                sampling=sampling,
                **placement,
            )
        )
    kind = _Stream if body.stream else _Whole
    writer = kind(service, body, id, requests, silent=max_tokens == 0)
    return Job(id, requests, writer, wanted.param if wanted is not None else None)


class _Choice:
    """One choice while it grows: the columns of its log-probabilities and whether its prompt was echoed."""

    def __init__(self, service: Service, top: int | None) -> None:
        self.fresh = True
        self.logprobs = None if top is None else CompletionLogprobs(service.pieces, top)


class _Base:
    def __init__(self, service: Service, body: CompletionBody, id: str, requests: list[Request], *, silent: bool) -> None:
        self._silent = silent
        self._service = service
        self._requests = requests
        self._echo = self._texts(body.prompt) if body.echo else None
        self._n = requests[0].sampling.n
        self._usage_wanted = body.usage_wanted
        self._choices = [_Choice(service, body.logprobs) for _ in range(self._n * len(requests))]
        self._prompt_logprobs: dict[int, Any] = {}
        self._head = {
            "id": id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": f"hasten-{__version__}",
        }

    def _texts(self, prompts: list[str | list[int]]) -> list[str]:
        decode = self._service.engine.tokenizer.decode
        return [prompt if isinstance(prompt, str) else decode(prompt) for prompt in prompts]

    def _advance(self, index: int, delta: Delta) -> tuple[str, dict[str, list[Any]] | None]:
        """(text, log-probabilities) that `delta` adds to choice `index`, with the prompt before its first if echoed."""
        choice, prompt = self._choices[index], index // self._n
        text, tokens, found = ("", [], []) if self._silent else (delta.text, delta.tokens, delta.logprobs)
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs[prompt] = delta.prompt_logprobs
        if choice.fresh and self._echo is not None:
            text = self._echo[prompt] + text
            tokens = [*self._requests[prompt].prompt.tolist(), *tokens]
            found = [*self._prompt_logprobs.get(prompt, ()), *found]
        choice.fresh = False
        return text, choice.logprobs.add(tokens, found) if choice.logprobs is not None else None

    def _count(self, usage: dict[str, Any]) -> dict[str, Any]:
        if self._silent:
            usage["completion_tokens"], usage["total_tokens"] = 0, usage["prompt_tokens"]
        return usage


class _Stream(_Base, Writer):
    media_type = "text/event-stream; charset=utf-8"

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        null = {"usage": None} if self._usage_wanted else {}
        self._before = b"data: " + orjson.dumps({**self._head, **null})[:-1] + b',"choices":['

    def begin(self) -> bytes:
        return b""

    def add(self, choice: int, delta: Delta) -> bytes:
        text, logprobs = self._advance(choice, delta)
        if not text and delta.finish is None and not (logprobs and logprobs["tokens"]):
            return b""
        piece = {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": delta.finish}
        return self._before + orjson.dumps(piece) + b"]}\n\n"

    def end(self, usage: dict[str, Any]) -> bytes:
        last = b""
        if self._usage_wanted:
            last = b"data: " + orjson.dumps({**self._head, "choices": [], "usage": self._count(usage)}) + b"\n\n"
        return last + b"data: [DONE]\n\n"


class _Whole(_Base, Writer):
    media_type = "application/json"

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._answers: dict[int, dict[str, Any]] = {}

    def begin(self) -> bytes:
        return b""

    def add(self, choice: int, delta: Delta) -> bytes:
        text, logprobs = self._advance(choice, delta)
        answer = self._answers.setdefault(choice, {"index": choice, "text": "", "logprobs": None, "finish_reason": None})
        answer["text"] += text
        answer["finish_reason"] = delta.finish
        if logprobs is not None:
            if answer["logprobs"] is None:
                answer["logprobs"] = logprobs
            else:
                for name, column in answer["logprobs"].items():
                    column.extend(logprobs[name])
        return b""

    def end(self, usage: dict[str, Any]) -> bytes:
        choices = [self._answers[index] for index in sorted(self._answers)]
        return orjson.dumps({**self._head, "choices": choices, "usage": self._count(usage)})
