"""/v1/chat/completions, as the official client sees it."""

from __future__ import annotations

import pytest
from openai import OpenAI
from tests.server.conftest import Running

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HI, max_completion_tokens=5)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "abcde", "length")
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "fake"
    prompt = len("<user>hi|<assistant>")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 5)
    assert answer.usage.total_tokens == prompt + 5
    assert answer.usage.prompt_tokens_details.cached_tokens == prompt // 2


def test_parts_roles_and_template_variables(client: OpenAI, server: Running) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
    ]
    client.chat.completions.create(
        model="fake", messages=messages, max_tokens=1, extra_body={"chat_template_kwargs": {"shout": True}}
    )
    prompt = server.engine.tokenizer.decode(server.engine.seen[-1].prompt.tolist())
    assert prompt == "<system>be brief!|<user>one two!|<assistant>"


def test_stream(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="fake", messages=HI, max_tokens=5, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.content for c in chunks[1:]] == list("abcde")
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 5 + ["length"]
    assert len({c.id for c in chunks}) == 1 and all(c.object == "chat.completion.chunk" for c in chunks)


def test_stream_with_usage(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=HI, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 5


def test_several_choices_interleave(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HI, max_tokens=3, n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [(0, "abc"), (1, "bcd"), (2, "cde")]
    texts = {0: "", 1: "", 2: ""}
    order = []
    for chunk in client.chat.completions.create(model="fake", messages=HI, max_tokens=3, n=3, stream=True):
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        order.append(choice.index)
    assert texts == {0: "abc", 1: "bcd", 2: "cde"}
    assert order == [0, 1, 2] * 4


def test_stop(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HI, stop=["x", "ef"], max_tokens=20)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("abcd", "stop")
    stream = client.chat.completions.create(model="fake", messages=HI, stop="ef", max_tokens=20, stream=True)
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "abcd"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=HI, max_tokens=2, logprobs=True, top_logprobs=2, temperature=0
    )
    first, second = answer.choices[0].logprobs.content
    assert (first.token, first.bytes, first.logprob, second.token) == ("a", [97], -0.25, "b")
    assert [top.token for top in first.top_logprobs] == ["a", client_text(0)]
    streamed = []
    for chunk in client.chat.completions.create(model="fake", messages=HI, max_tokens=2, logprobs=True, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content
    assert [entry.token for entry in streamed] == ["a", "b"]
    assert streamed[0].top_logprobs == []


def client_text(token: int) -> str:
    from hasten.engine.text import Tokenizer

    return Tokenizer.of_bytes().token_bytes(token).decode()


def test_characters_of_several_tokens(client: OpenAI) -> None:
    ask = [{"role": "user", "content": "EURO"}]
    chunks = list(client.chat.completions.create(model="fake", messages=ask, max_tokens=8, stream=True))
    assert [c.choices[0].delta.content for c in chunks[1:]][:2] == ["€", "u"]
    answer = client.chat.completions.create(model="fake", messages=ask, max_tokens=3, logprobs=True)
    assert answer.choices[0].message.content == "€"
    assert [entry.token for entry in answer.choices[0].logprobs.content] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]


def test_sampling_reaches_the_engine(client: OpenAI, server: Running) -> None:
    client.chat.completions.create(
        model="fake", messages=HI, max_tokens=1, temperature=1, top_p=0.9, seed=7, presence_penalty=0.5,
        frequency_penalty=-0.5, logit_bias={"65": 2},
        extra_body={
            "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 1, "ignore_eos": True,
            "stop_token_ids": [3], "priority": -2, "cache_salt": "me",
        },
    )  # fmt: skip
    request = server.engine.seen[-1]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.top_k) == (1.0, 0.9, 7, 5)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias) == (0.5, -0.5, {65: 2.0})
    assert (sampling.min_p, sampling.repetition_penalty, sampling.min_tokens, sampling.ignore_eos) == (0.1, 1.1, 1, True)
    assert (sampling.stop_token_ids, request.priority, request.cache_salt) == ((3,), -2, "me")


def test_null_means_default(client: OpenAI, server: Running) -> None:
    nulls = dict.fromkeys(("temperature", "top_p", "n", "stop", "seed", "logit_bias", "tools", "response_format", "user"))
    client.chat.completions.create(model="fake", messages=HI, max_tokens=1, extra_body=nulls)
    assert server.engine.seen[-1].sampling.temperature == 1.0


def test_without_a_template(make_server) -> None:
    import httpx

    found = make_server(template=False)
    answer = httpx.post(f"{found.url}/v1/chat/completions", json={"messages": HI})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "no_chat_template"
