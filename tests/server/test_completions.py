"""/v1/completions, as the official client sees it."""

from __future__ import annotations

import pytest
from openai import OpenAI
from tests.server.conftest import Running


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_answer(client: OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="tell")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("abcdefghijklmnop", "length")
    assert answer.object == "text_completion"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 16)


@pytest.mark.parametrize("prompt", ["hey", ["hey"], [71, 68, 88], [[71, 68, 88]]])
def test_kinds_of_prompt(client: OpenAI, server: Running, prompt) -> None:
    answer = client.completions.create(model="fake", prompt=prompt, max_tokens=2, echo=True)
    assert answer.choices[0].text == "heyab"
    assert server.engine.seen[-1].prompt.tolist() == [71, 68, 88]


def test_many_prompts_and_choices(client: OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt=["one", "EURO"], max_tokens=4, n=2)
    assert [(c.index, c.text) for c in answer.choices] == [(0, "abcd"), (1, "bcde"), (2, "€u"), (3, "\ufffd\ufffdur")]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 16)
    texts = ["", "", "", ""]
    finishes = {}
    for chunk in client.completions.create(model="fake", prompt=["one", "EURO"], max_tokens=4, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
        finishes[chunk.choices[0].index] = chunk.choices[0].finish_reason
    assert texts == [c.text for c in answer.choices]
    assert finishes == dict.fromkeys(range(4), "length")


def test_stream_with_usage(client: OpenAI) -> None:
    chunks = list(
        client.completions.create(model="fake", prompt="x", max_tokens=3, stream=True, stream_options={"include_usage": True})
    )
    assert [c.choices[0].text for c in chunks[:-1]] == ["a", "b", "c"]
    assert chunks[-1].usage.total_tokens == 4


def test_logprobs(client: OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="hi", max_tokens=3, logprobs=1)
    found = answer.choices[0].logprobs
    assert (found.tokens, found.text_offset) == (["a", "b", "c"], [0, 1, 2])
    assert found.token_logprobs == [-0.25] * 3 and found.top_logprobs[0] == {"a": -0.25}


def test_logprobs_hold_the_drawn_token(client: OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="hi", max_tokens=1, logprobs=0)
    assert answer.choices[0].logprobs.token_logprobs == [-0.25]
    assert answer.choices[0].logprobs.top_logprobs == [None]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_scores_the_prompt(client: OpenAI, stream: bool) -> None:
    given = dict(model="fake", prompt="hey", max_tokens=2, echo=True, logprobs=1)
    if stream:
        text, columns = "", {"tokens": [], "token_logprobs": [], "text_offset": []}
        for chunk in client.completions.create(**given, stream=True):
            text += chunk.choices[0].text
            for name, column in columns.items():
                column += getattr(chunk.choices[0].logprobs, name)
    else:
        choice = client.completions.create(**given).choices[0]
        text, columns = choice.text, {n: getattr(choice.logprobs, n) for n in ("tokens", "token_logprobs", "text_offset")}
    assert text == "heyab"
    assert columns == {
        "tokens": list("heyab"),
        "token_logprobs": [None, *[-0.25] * 4],
        "text_offset": [0, 1, 2, 3, 4],
    }


def test_nothing_but_the_prompt(client: OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="hey", max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == "hey" and answer.choices[0].logprobs.tokens == list("hey")
    assert answer.usage.completion_tokens == 0 and answer.usage.total_tokens == 3


def test_stop_and_best_of(client: OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="x", stop=["c"], best_of=1, suffix=None)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("ab", "stop")


def test_ends_where_the_context_ends(client: OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="x" * 510, max_tokens=1000)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("ab", "length")


@pytest.mark.parametrize(("asked", "most"), [(None, None), (True, None), (False, 0), (0, 0), (5, 5)])
def test_a_request_says_how_much_is_drafted(server: Running, client: OpenAI, asked: object, most: int | None) -> None:
    client.completions.create(model="fake", prompt="x", max_tokens=1, extra_body={"speculate": asked})
    assert server.engine.seen[-1].sampling.speculate == most


def test_usage_says_what_was_drafted(client: OpenAI) -> None:
    asked = {"model": "fake", "prompt": "GUESS", "max_tokens": 5, "n": 2}
    details = client.completions.create(**asked).usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (4, 16)
    assert client.completions.create(**asked, extra_body={"speculate": False}).usage.completion_tokens_details is None
