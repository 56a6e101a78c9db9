"""What an OpenAI-compatible server accepts, found by asking: token ids or text, and how to have an exact number of tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from hasten.engine.technique import ConfigError

if TYPE_CHECKING:
    import httpx

_WORDS = """
the of and to in is that it was for on are as with his they at be this from have or by one had not but what all were when we
there can an your which their said if do will each about how up out them then she many some so these would other into has more
her two like him see time could no make than first been its who now people my made over did down only way find use may water
long little very after words called just where most know
""".split()  # noqa: SIM905 a list of 110 strings is harder to read
"""Common words: nearly every tokenizer has each as one token."""
_PROBE_TOKENS = 4
_PROBE_WORDS = 200


@dataclass(frozen=True, slots=True)
class Form:
    """`ids`: prompts go as token ids, else as words, `words_per_token` of them a token. `exact`: the field that keeps the
    server from ending early: ignore_eos, min_tokens, generation_config (transformers), or none. `usage`: it can be asked to
    count. `context`: the tokens that prompt and output may have together, where it says so."""

    model: str
    ids: bool = True
    exact: str = "ignore_eos"
    usage: bool = True
    words_per_token: float = 1.0
    context: int | None = None

    def body(self, prompt: Any, output: int, temperature: float, seed: int) -> bytes:
        """A streamed completion of `output` tokens. `prompt`: text, or int32 [n] token ids; as words, equal ids become equal
        words, so that what prompts have in common stays in common."""
        fields: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt if self.ids or isinstance(prompt, str) else self.words(prompt),
            "max_tokens": output,
            "temperature": temperature,
            "seed": seed,
            "stream": True,
        }
        if self.exact == "ignore_eos":
            fields["ignore_eos"] = True
        elif self.exact == "min_tokens":
            fields["min_tokens"] = output
        elif self.exact == "generation_config":
            sampling = {"do_sample": temperature > 0, "min_new_tokens": output}
            fields["generation_config"] = json.dumps(sampling)
        if self.usage:
            fields["stream_options"] = {"include_usage": True}
        return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)

    def words(self, tokens: Any) -> str:
        count = max(1, round(len(tokens) * self.words_per_token))
        chosen = np.resize(np.asarray(tokens), count) % len(_WORDS)
        return " ".join([_WORDS[i] for i in chosen.tolist()])

    @property
    def described(self) -> dict[str, Any]:
        return {"prompts": "token ids" if self.ids else "words", "exact lengths by": self.exact or "nothing"}


def negotiate(url: str, key: str | None = None, *, ids: bool = True, timeout_s: float = 300.0) -> Form:
    """The first form that the server at `url` (with or without /v1) answers, richest first. `ids` False: words in any case, as
    when it is compared with a server that takes no ids. Raises ConfigError when it is not there or answers none."""
    import httpx  # the client's process needs the forms only, and not the time this takes

    base = url.rstrip("/").removesuffix("/v1")
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    refused = ""
    try:
        with httpx.Client(base_url=base, timeout=timeout_s, headers=headers) as client:
            model, context = _model(client)
            for with_ids, exact, usage in product(
                (True, False) if ids else (False,), ("ignore_eos", "min_tokens", "generation_config", ""), (True, False)
            ):
                form = Form(model, with_ids, exact, usage, context=context)
                body = form.body(np.arange(300, 308), _PROBE_TOKENS, 0.0, 0)
                answer = client.post("/v1/completions", content=body)
                if answer.status_code != 200 or "choices" not in answer.text:
                    refused = f"{answer.status_code}: {answer.text[:200]}"
                elif not exact or _heeds(client, body, exact):
                    return form if with_ids else _calibrated(client, form)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url!r} is no address of a server: {error}; write http://host:port") from None
    except httpx.HTTPError as error:
        raise ConfigError(f"no answer from {url}: {error or type(error).__name__}") from None
    raise ConfigError(f"{url} answers no streamed completion of any form we know; the last refusal: {refused}")


def _model(client: httpx.Client) -> tuple[str, int | None]:
    """Its first model, and how many tokens that takes in all where it says so."""
    answer = client.get("/v1/models")
    try:
        card = answer.json()["data"][0]
        return str(card["id"]), next((int(card[name]) for name in ("max_model_len", "max_length") if card.get(name)), None)
    except (ValueError, KeyError, IndexError, TypeError):
        raise ConfigError(
            f"{client.base_url} is no OpenAI-compatible server: /v1/models said {answer.status_code}, {answer.text[:200]!r}"
        ) from None


def _heeds(client: httpx.Client, body: bytes, field: str) -> bool:
    """Whether it reads the field at all: a server that does refuses nonsense there, others take any field they do not know."""
    return client.post("/v1/completions", content=orjson.dumps(orjson.loads(body) | {field: "nonsense"})).status_code != 200


def _calibrated(client: httpx.Client, form: Form) -> Form:
    """With as many words a token as this server's tokenizer makes of them, where it counts the tokens."""
    answer = client.post("/v1/completions", content=form.body(np.arange(_PROBE_WORDS), 1, 0.0, 0))
    for line in answer.text.splitlines():
        if line.startswith("data: {") and (usage := orjson.loads(line[6:]).get("usage")):
            return replace(form, words_per_token=_PROBE_WORDS / usage["prompt_tokens"])
    return form
