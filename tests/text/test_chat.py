"""Chat templates: as transformers renders them, and what happens with broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.text.worlds import byte_level, save

from hasten.engine.models.config import ModelError
from hasten.engine.request import BadRequest
from hasten.engine.text import ChatTemplate

CHAT = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "Hi 👍"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOOLS = (
    "{{ bos_token }}{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}"
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}[{{ ns.n }}] {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content | trim }}{% endif %}{% endfor %}{{ strftime_now('%Y') }}"
    "{% if thinking is defined %}think{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "f", "description": "<é> & 'quotes'"}}


@pytest.mark.parametrize("template", [CHATML, TOOLS])
@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True}, {"tools": [TOOL], "thinking": True}])
def test_equals_transformers(template: str, options: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>")
    theirs.chat_template = template
    ours = ChatTemplate({"default": template}, {"bos_token": "<s>", "eos_token": "</s>"})
    expected = theirs.apply_chat_template(CHAT, tokenize=False, **options)
    assert ours.render(CHAT, **{"add_generation_prompt": False, **options}) == expected


def test_where_templates_are_found(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    assert ChatTemplate.load(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": CHATML}))
    plain = ChatTemplate.load(tmp_path)
    assert plain is not None and plain.render(CHAT).endswith("Bye<|im_end|>\n\n<|im_start|>assistant\n")
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    config.write_text(json.dumps({"chat_template": named}))
    several = ChatTemplate.load(tmp_path)
    assert several is not None
    assert (several.render(CHAT), several.render(CHAT, tools=[TOOL])) == ("plain", "tools")
    (tmp_path / "chat_template.jinja").write_text("of the file")
    own = ChatTemplate.load(tmp_path)
    assert own is not None and own.render(CHAT) == "of the file"


@pytest.mark.parametrize("given", [3, ["one"], [{"name": "default"}], [{"name": "default", "template": None}]])
def test_a_template_of_another_kind_is_refused(given: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
    with pytest.raises(ModelError, match="chat_template must be a string or a list"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{% for m in messages %}", "refuses these messages: Unexpected end of template"),
        ("{{ messages[0].nothing.at_all }}", "refuses these messages: .* has no attribute 'nothing'"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "refuses these messages: access to attribute 'append'"),
        ("{{ 1 // 0 }}", "fails on these messages: ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", "fails on these messages: TypeError"),
    ],
)
def test_a_failing_template_is_a_bad_request(template: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        ChatTemplate({"default": template}).render(CHAT)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("messages", [[], ["hello"], [{"content": "no role"}], [{"role": 3, "content": ""}]])
def test_messages_without_roles_are_a_bad_request(messages: Any) -> None:
    with pytest.raises(BadRequest, match="at least one object with a role"):
        ChatTemplate({"default": CHATML}).render(messages)


def test_no_default_among_several_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="templates for rag, tool_use, none of them is the default"):
        ChatTemplate({"rag": "r", "tool_use": "t"}).render(CHAT)
    assert ChatTemplate({"rag": "r"}).render(CHAT) == "r"
