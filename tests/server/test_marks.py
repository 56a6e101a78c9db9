"""Pieces of a conversation that are marked for reuse, from the request to the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from tests.server.conftest import Running

from hasten.engine.text import ChatTemplate
from hasten.serving.server.marks import Content, Marks


def part(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def ask(server: Running, messages: list[dict[str, Any]], **body: Any) -> tuple[str, list[str]]:
    """What the engine got: the prompt, and the texts of its chunks."""
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    client.chat.completions.create(model="fake", messages=messages, max_tokens=1, extra_body=body)  # type: ignore[arg-type]
    request = server.engine.seen[-1]
    decode = server.engine.tokenizer.decode
    tokens = request.prompt.tolist()
    return decode(tokens), [decode(tokens[start:stop]) for start, stop in request.chunks]


def test_marked_parts_become_chunks(server: Running) -> None:
    messages = [
        {"role": "system", "content": [part("rules", cache=True)]},
        {"role": "user", "content": [part("page one", cache=True), part(" and "), part("page two", cache=True), part("?")]},
        {"role": "tool", "content": [part("42", cache=False), part("", cache=True)]},
    ]
    prompt, chunks = ask(server, messages)
    assert prompt == "<system>rules|<user>page one and page two?|<tool>42|<assistant>"
    assert chunks == ["rules", "page one", "page two"]
    plain = [{**m, "content": "".join(p["text"] for p in m["content"])} for m in messages]
    assert ask(server, plain) == (prompt, [])


def test_documents_go_before_what_the_user_says(server: Running) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "user", "content": "r"}]
    prompt, chunks = ask(server, messages, documents=["one", {"title": "Two", "text": "zwei"}])
    assert prompt == "<system>s|<user>one\n\nTwo\nzwei\n\nq|<user>r|<assistant>"
    assert chunks == ["one", "zwei"]


def test_a_template_that_knows_documents_gets_them(make_server: Callable[..., Running]) -> None:
    server = make_server()
    source = "{% for d in documents %}[{{ d.title }}: {{ d.text }}]{% endfor %}"
    source += "{% for m in messages %}{{ m.content }}{% endfor %}|"
    server.engine.chat_template = ChatTemplate({"default": source})
    found = ask(server, [{"role": "user", "content": "q"}], documents=[{"title": "T", "text": "t"}, "u"])
    assert found == ("[T: t][: u]q|", ["t", "u"])


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content | reverse }}{% endfor %}|",
        "{% for m in messages %}{{ m.content | tojson(ensure_ascii=True) }}{% endfor %}|",
        "{% for m in messages %}{{ m.content[:9] }}{% endfor %}|",
    ],
)
def test_a_template_that_changes_marked_text_gets_it_unmarked(make_server: Callable[..., Running], source: str) -> None:
    server = make_server()
    server.engine.chat_template = ChatTemplate({"default": source})
    marked = [{"role": "user", "content": [part("a long piece of text", cache=True), part(" and more")]}]
    plain = [{"role": "user", "content": "a long piece of text and more"}]
    assert ask(server, marked) == ask(server, plain)


def test_documents_beside_each_other_may_be_longer_than_the_context(make_server: Callable[..., Running]) -> None:
    server, pages, question = make_server(), ["x" * 300, "y" * 200, "z" * 200], [{"role": "user", "content": "q"}]
    with pytest.raises(BadRequestError, match="context"):
        ask(server, question, documents=pages)
    server.engine.info["contexts_beside"] = True
    assert ask(server, question, documents=pages)[1] == pages
    with pytest.raises(BadRequestError, match="context"):
        ask(server, question, documents=[*pages, "z" * 500])


def test_the_last_token_is_in_no_chunk(make_server: Callable[..., Running]) -> None:
    server = make_server()
    server.engine.chat_template = ChatTemplate({"default": "{% for m in messages %}{{ m.content }}{% endfor %}"})
    assert ask(server, [{"role": "user", "content": [part("abc", cache=True)]}]) == ("abc", ["ab"])
    assert ask(server, [{"role": "user", "content": [part("a", cache=True)]}]) == ("a", [])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": "text"}, "documents"),
        ({"documents": [{"title": "no text"}]}, "documents"),
        ({"documents": [""]}, "documents"),
        ({"documents": [{"text": "t", "title": 3}]}, "documents"),
        ({"messages": [{"role": "user", "content": [part("x", cache="yes")]}]}, "messages[0].content"),
    ],
)
def test_what_is_no_mark_is_refused(server: Running, body: dict[str, Any], param: str) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    whole = {"messages": [{"role": "user", "content": "q"}], **body}
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model="fake", messages=whole.pop("messages"), extra_body=whole)
    assert refused.value.param == param


def test_marks_are_found_again() -> None:
    marks = Marks()
    content = marks.content(Content.of([("a", True), ("b", False), ("", True)]))
    assert marks.split(f"x{content}y") == [("x", False), ("a", True), ("by", False)]
    assert marks.split(content + content) is None, "a piece stands there twice"
    assert marks.split(content[:-3]) is None and marks.split(content[3:]) is None
    assert marks.split(content[1:]) is None, "half a mark"
    assert Marks().content("a") == "a" and Marks("").around("a") == "a"
