"""What `hasten cache warm --documents` does: every document goes once to a running server, which keeps its KV as a chunk."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.engine.technique import ConfigError

TIMEOUT_S = 600.0
COUNTERS = ("hasten_chunks_computed_total", "hasten_chunks_linked_total", "hasten_chunks_evicted_total")


@dataclass
class Sent:
    """`documents` that the server took; of their chunks `computed` by it now and `found` as kept before; `evicted` meanwhile.
    `refused`: files with the reason."""

    documents: int = 0
    computed: int = 0
    found: int = 0
    evicted: int = 0
    refused: list[tuple[Path, str]] = field(default_factory=list)


def send(server: str, folder: Path, system: str | None, tell: Callable[[int, int], None], key: str | None = None) -> Sent:
    """Have a server that reuses chunks read every text file in `folder` and below. `system`: of the conversations to come; a
    server that computes chunks in their context then finds the same in front of them. `key`: the server's API key. Raises
    ConfigError."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path, folder)]
    if not files:
        raise ConfigError(f"{folder} holds no files")
    server = server.rstrip("/").removesuffix("/v1")
    before = _counts(server, key)
    (model, *_) = [one["id"] for one in _call(f"{server}/v1/models", key)["data"]]
    sent = Sent()
    opening = [{"role": "system", "content": system}] if system else []
    for done, path in enumerate(files):
        tell(done, len(files))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as fault:
            sent.refused.append((path, getattr(fault, "strerror", None) or "is no text in UTF-8"))
            continue
        if not text.strip():
            sent.refused.append((path, "is empty"))
            continue
        body = {
            "model": model,
            "messages": [*opening, {"role": "user", "content": "."}],
            "documents": [text],
            "max_tokens": 1,
        }
        try:
            _call(f"{server}/v1/chat/completions", key, body)
        except Refused as fault:
            sent.refused.append((path, str(fault)))
        else:
            sent.documents += 1
    after = _counts(server, key)
    sent.computed, sent.found, sent.evicted = (int(after[name] - before[name]) for name in COUNTERS)
    return sent


class Refused(Exception):
    """The server will not take this request; the message says why."""


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _counts(server: str, key: str | None) -> dict[str, float]:
    """Raises ConfigError for a server that does not reuse chunks."""
    found = dict(_values(_open(f"{server}/metrics", key).decode()))
    if missing := [name for name in COUNTERS if name not in found]:
        raise ConfigError(f"{server} reuses no chunks (its metrics have no {missing[0]}): start it with --with mpic, say")
    return found


def _values(metrics: str) -> Iterator[tuple[str, float]]:
    for name, value in re.findall(r"^(\w+) (\S+)$", metrics, re.MULTILINE):
        yield name, float(value)


def _call(url: str, key: str | None, body: dict[str, Any] | None = None) -> Any:
    return json.loads(_open(url, key, None if body is None else json.dumps(body).encode()))


def _open(url: str, key: str | None, body: bytes | None = None) -> bytes:
    """Raises Refused for an answer that says that this request is wrong, ConfigError where there is no answer."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            found: bytes = answer.read()
            return found
    except urllib.error.HTTPError as fault:
        words = _message(fault.read()) or fault.reason
        if body is not None and fault.code in (400, 413, 422):
            raise Refused(words) from None
        raise ConfigError(f"{url}: {fault.code}: {words}") from None
    except (OSError, ValueError) as fault:
        raise ConfigError(f"{url}: {getattr(fault, 'reason', None) or fault}") from None


def _message(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
