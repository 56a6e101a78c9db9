"""Chat templates: the Jinja programs that come with a model and write a conversation the way it was trained to read it.

They come from strangers, so they run in Jinja's sandbox. The environment is the one that transformers gives them:
`raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, loop controls, and a `generation` block, which
marks the assistant's words for training and means nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.engine.models.checkpoint import read_json
from hasten.engine.models.config import ModelError
from hasten.engine.request import BadRequest

if TYPE_CHECKING:
    from jinja2 import Template

_DEFAULT, _TOOLS = "default", "tool_use"


class ChatTemplate:
    """The templates of one model by name (most have just `default`) and the special tokens they may write. Compiled
    when first used."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str] | None = None) -> None:
        self.sources = dict(sources)
        self.special_tokens = dict(special_tokens or {})
        self._compiled: dict[str, Template] = {}

    @classmethod
    def load(cls, folder: Path, special_tokens: Mapping[str, str] | None = None) -> ChatTemplate | None:
        """From chat_template.jinja, or `chat_template` in tokenizer_config.json (one, or a list of named ones); None
        when the model has neither. Raises ModelError for a file that cannot be read."""
        file = folder / "chat_template.jinja"
        if file.is_file():
            try:
                return cls({_DEFAULT: file.read_text(encoding="utf-8")}, special_tokens)
            except (OSError, ValueError) as error:
                raise ModelError(f"{file} cannot be read: {error}") from None
        for name in ("chat_template.json", "tokenizer_config.json"):
            given = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
            if given:
                return cls(_by_name(given, folder / name), special_tokens)
        return None

    def render(
        self,
        messages: Seq[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Seq[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The conversation as text, up to where the assistant begins to speak if `add_generation_prompt`. It holds its
        own special tokens: encode it without adding any. `tools`: JSON schemas of functions; `kwargs` go to the
        template (such as `enable_thinking`). Raises BadRequest when the template refuses the messages or fails."""
        if not messages or not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages):
            raise BadRequest("messages must be a list of at least one object with a role", "messages")
        from jinja2 import TemplateError

        try:
            return self._template(tools).render(
                **self.special_tokens,
                **{"messages": [dict(m) for m in messages], "tools": tools, "documents": None, **kwargs},
                add_generation_prompt=add_generation_prompt,
            )
        except BadRequest:
            raise
        except TemplateError as error:
            raise BadRequest(f"the chat template refuses these messages: {error}", "messages") from None
        except Exception as error:  # whatever a stranger's program may do
            what = f"{type(error).__name__}: {error}"
            raise BadRequest(f"the chat template fails on these messages: {what}", "messages") from None

    def _template(self, tools: Any) -> Template:
        name = _TOOLS if tools and _TOOLS in self.sources else _DEFAULT
        if name not in self.sources:
            if len(self.sources) != 1:
                names = ", ".join(sorted(self.sources))
                raise BadRequest(f"this model has chat templates for {names}, none of them is the default", "messages")
            name = next(iter(self.sources))
        if name not in self._compiled:
            self._compiled[name] = _compile(self.sources[name])
        return self._compiled[name]


def _by_name(given: Any, file: Path) -> dict[str, str]:
    if isinstance(given, str):
        return {_DEFAULT: given}
    if isinstance(given, list):
        items = [item for item in given if isinstance(item, Mapping)]
        named = {str(item.get("name")): text for item in items if isinstance(text := item.get("template"), str)}
        if len(named) == len(given):
            return named
    raise ModelError(f"{file}: chat_template must be a string or a list of objects with name and template")


def _compile(source: str) -> Template:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(source)
