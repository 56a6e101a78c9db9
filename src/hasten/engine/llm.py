"""`LLM`: the engine in this process, for scripts and offline batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from itertools import count
from typing import Any, cast

import numpy as np

from hasten.engine.build import Built, build
from hasten.engine.config import EngineConfig
from hasten.engine.frontend import Frontend
from hasten.engine.outputs import Choice, Completion, Delta
from hasten.engine.request import BadRequest, Request, SamplingParams, Segment
from hasten.engine.sequence import Finish
from hasten.engine.text import ChatTemplate, Tokenizer, load_text

Prompt = str | Seq[int] | Seq[Segment]
Messages = Seq[Mapping[str, Any]]


class LLM:
    """A model ready to generate.

    >>> llm = LLM()                                     # the built-in model
    >>> llm.generate("def fibonacci(n):", SamplingParams(max_tokens=40, temperature=0))[0].text

    `with_`, `set_` and `speculate` as in `EngineConfig.build`. Raises ConfigError or ModelError. Not for several threads at
    once; a server uses `AsyncEngine`.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        with_: Iterable[str] = (),
        set_: Iterable[str] | Mapping[str, Any] = (),
        config: EngineConfig | None = None,
        speculate: str | None = None,
        progress: bool = False,
    ) -> None:
        self.config = EngineConfig.build(model, with_=with_, set_=set_, base=config, speculate=speculate)
        self.tokenizer: Tokenizer
        self.chat_template: ChatTemplate | None
        self.tokenizer, self.chat_template = load_text(self.config.model)
        with _bar("loading", progress) as advance:
            self._built: Built = build(self.config, eos=self.tokenizer.eos_ids, progress=advance, tokenizer=self.tokenizer)
        self.engine = self._built.engine
        self.info = self._built.info
        self._frontend = Frontend(self.tokenizer)
        self._ids = count()

    @property
    def parts(self) -> Any:
        """What the engine was built from (`build.Parts`), for those who look inside."""
        return self._built.parts

    def generate(
        self,
        prompts: Prompt | Seq[Prompt],
        sampling: SamplingParams | Seq[SamplingParams] | None = None,
        *,
        progress: bool | Callable[[int, int], None] = False,
    ) -> list[Completion]:
        """Complete one or many prompts (text, token ids or segments), all at once; the answers in the order given. `progress`:
        True for a bar on stderr, or what to call with (requests finished, requests in all).

        Raises BadRequest before anything runs if any of them cannot be served."""
        many = self._many(prompts)
        params = [sampling or SamplingParams()] * len(many) if not isinstance(sampling, Seq) else list(sampling)
        if len(params) != len(many):
            raise BadRequest(f"{len(many)} prompts and {len(params)} sampling parameters", "sampling")
        requests = [self.request(prompt, p) for prompt, p in zip(many, params, strict=True)]
        done = {request.id: self._blank(request) for request in requests}
        times: dict[str, list[float]] = {request.id: [] for request in requests}
        began = self.engine.clock.now()
        with self._running(requests), _bar("generating", progress) as advance:
            finished = 0
            for delta in self._deltas({request.id for request in requests}):
                now = self.engine.clock.now()
                _collect(done[delta.request_id], delta, times[delta.request_id], now)
                if self._frontend.finished(delta.request_id):
                    finished += 1
                    advance(finished, len(requests))
        for request in requests:
            _time(done[request.id], times[request.id], began)
        return [done[request.id] for request in requests]

    def chat(
        self,
        messages: Messages | Seq[Messages],
        sampling: SamplingParams | Seq[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[Completion]:
        """Answer one conversation (a list of {"role", "content"}) or many."""
        many = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        return self.generate([self.render(list(m)) for m in many], sampling, progress=progress)

    def render(self, messages: list[Any]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn."""
        if self.chat_template is None:
            raise BadRequest("this model has no chat template", "messages")
        return self.tokenizer.encode(self.chat_template.render(messages), add_special_tokens=False)

    def stream(self, prompt: Prompt, sampling: SamplingParams | None = None) -> Iterator[Delta]:
        """Yield the answer to one prompt as it comes. Leaving the loop early cancels the request."""
        request = self.request(prompt, sampling or SamplingParams())
        with self._running([request]):
            yield from self._deltas({request.id})

    def request(self, prompt: Prompt, sampling: SamplingParams) -> Request:
        chunks: tuple[tuple[int, int], ...] = ()
        if isinstance(prompt, str):
            tokens: Seq[int] = self.tokenizer.encode(prompt)
        elif len(prompt) and isinstance(prompt[0], Segment):
            tokens, chunks = self._joined(cast("Seq[Segment]", prompt))
        else:
            tokens = cast("Seq[int]", prompt)
        return Request(id=f"llm-{next(self._ids)}", prompt=np.asarray(tokens), sampling=sampling, chunks=chunks)

    def _joined(self, segments: Seq[Segment]) -> tuple[list[int], tuple[tuple[int, int], ...]]:
        """Tokens of all segments, each tokenised by itself, and which of them are chunks."""
        tokens: list[int] = []
        chunks = []
        for i, segment in enumerate(segments):
            start, content = len(tokens), segment.content
            tokens += self.tokenizer.encode(content, add_special_tokens=i == 0) if isinstance(content, str) else content
            if segment.cache:
                chunks.append((start, len(tokens)))
        return tokens, tuple(chunks)

    def _many(self, prompts: Prompt | Seq[Prompt]) -> list[Prompt]:
        if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], int | np.integer | Segment)):
            return [cast(Prompt, prompts)]
        return list(cast("Seq[Prompt]", prompts))

    @contextmanager
    def _running(self, requests: list[Request]) -> Iterator[None]:
        """The requests are in the engine inside, and gone from it afterwards, however that ends."""
        if self.engine.unfinished:
            raise RuntimeError("this LLM is still answering: finish or close the stream first, or use AsyncEngine")
        try:
            for request in requests:
                self.engine.add(request)
                self._frontend.open(request)
            yield
        finally:
            for request in requests:
                self._frontend.close(request.id)
                self.engine.cancel(request.id)
            self.engine.run()

    def _blank(self, request: Request) -> Completion:
        choices = [Choice(i) for i in range(request.sampling.n)]
        return Completion(request.id, request.prompt.tolist(), choices)

    def _deltas(self, ids: set[str]) -> Iterator[Delta]:
        while not all(self._frontend.finished(id) for id in ids):
            for token_delta in self.engine.step():
                delta, cancel = self._frontend.feed(token_delta)
                if cancel:
                    self.engine.cancel(token_delta.request_id, token_delta.index, Finish.STOP)
                if delta is not None:
                    yield delta


def _collect(completion: Completion, delta: Delta, times: list[float], now: float) -> None:
    while len(completion.choices) <= delta.index:
        completion.choices.append(Choice(len(completion.choices)))
    choice = completion.choices[delta.index]
    choice.text += delta.text
    choice.tokens += delta.tokens
    choice.logprobs += delta.logprobs
    choice.finish = delta.finish or choice.finish
    completion.reused = max(completion.reused, delta.reused)
    completion.drafted += delta.drafted
    completion.accepted += delta.accepted
    if delta.prompt_logprobs is not None:
        completion.prompt_logprobs = delta.prompt_logprobs
    if delta.tokens:
        times.append(now)
    choice.error = delta.error or choice.error


def _time(completion: Completion, times: list[float], began: float) -> None:
    if times:
        completion.ttft_s = times[0] - began
        more = max(len(choice.tokens) for choice in completion.choices) - 1
        completion.tpot_s = (times[-1] - times[0]) / more if more > 0 else None


@contextmanager
def _bar(label: str, show: bool | Callable[[int, int], None]) -> Iterator[Any]:
    """A progress bar on stderr, or what stands for one; yields `advance(done, total)`."""
    if callable(show):
        yield show
        return
    if not show:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
