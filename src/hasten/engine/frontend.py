"""From committed tokens to text: detokenises every sequence of every open request and watches for stop strings.

The loop knows tokens only. Whoever talks to people (the synchronous `LLM`, the asynchronous client) runs one `Frontend` beside
it, so text never costs a step its time.
"""

from __future__ import annotations

from dataclasses import dataclass

from hasten.engine.outputs import Delta, TokenDelta
from hasten.engine.request import Request
from hasten.engine.text import Detokenizer, Tokenizer


@dataclass(slots=True)
class _Stream:
    detokenizer: Detokenizer
    tokens: int = 0
    done: bool = False


class Frontend:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._requests: dict[str, Request] = {}
        self._streams: dict[tuple[str, int], _Stream] = {}

    def open(self, request: Request) -> None:
        self._requests[request.id] = request

    def close(self, request_id: str) -> None:
        """Forget a request; later deltas of it are ignored."""
        if self._requests.pop(request_id, None) is not None:
            for key in [key for key in self._streams if key[0] == request_id]:
                del self._streams[key]

    def finished(self, request_id: str) -> bool:
        return request_id not in self._requests

    def feed(self, delta: TokenDelta) -> tuple[Delta | None, bool]:
        """The delta with its text, None if it belongs to nothing open; and whether a stop string ended a sequence that the
        engine still runs, which must then be cancelled there (by request and index)."""
        request = self._requests.get(delta.request_id)
        if request is None:
            return None, False
        out = self._spell(request, delta)
        if delta.last:
            self.close(request.id)
        return out

    def _spell(self, request: Request, delta: TokenDelta) -> tuple[Delta | None, bool]:
        stream = self._streams.get((delta.request_id, delta.index))
        if stream is None:
            stream = self._streams[(delta.request_id, delta.index)] = _Stream(
                Detokenizer(self._tokenizer, request.sampling.stop, continues=True)
            )
        if stream.done:
            return None, False
        tokens, finish = delta.tokens, delta.finish
        text = stream.detokenizer.push(self._spoken(request, tokens, finish))
        if stream.detokenizer.stopped is not None:
            tokens = tokens[: stream.detokenizer.tokens_used - stream.tokens]
            stopped_early, finish = finish is None, "stop"
        else:
            stopped_early = False
            if finish is not None:
                text += stream.detokenizer.flush()
        stream.tokens += len(tokens)
        out = Delta(
            delta.request_id,
            delta.index,
            text,
            tokens,
            delta.logprobs[: len(tokens)],
            finish,
            delta.error,
            delta.reused,
            delta.prompt_logprobs,
            delta.drafted,
            min(delta.accepted, len(tokens)),
        )
        stream.done = finish is not None
        return out, stopped_early

    def _spoken(self, request: Request, tokens: list[int], finish: str | None) -> list[int]:
        """The tokens that become text: the one that ended the sequence does not."""
        if finish == "stop" and tokens:
            ended_by = tokens[-1]
            if ended_by in request.sampling.stop_token_ids or ended_by in self._tokenizer.eos_ids:
                return tokens[:-1]
        return tokens
