"""The project's own trace format: JSON Lines, one request a line, fields named as in `TimedRequest`.

    {"arrival_s": 0.0, "prompt_tokens": 812, "output_tokens": 120}
    {"arrival_s": 0.4, "text": "Why is the sky blue?", "output_tokens": 64, "slo_class": "chat"}
    {"id": "b", "parents": ["1"], "delay_s": 2.5, "prompt_tokens": 950, "output_tokens": 80, "blocks": [7, 8]}

Every line needs `output_tokens`, one of `prompt_tokens` and `text`, and one of `arrival_s` and `parents`; all else may be left
out. `id` is the number of the request, from 0, where it is left out. Lines may come in any order of arrival, but parents before
what follows them. A first line {"workload": {...}} may say `name`, `block_tokens` (512), `source` and `slos`, as in
{"workload": {"block_tokens": 64, "slos": {"chat": {"ttft_s": 0.5, "tpot_s": 0.05}}}}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from hasten.engine.request import SLO, BadRequest
from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError
from hasten.lab.workloads.mooncake import blocks
from hasten.lab.workloads.reading import LARGEST, json_lines, no_collection, seconds, whole

HEADER = "workload"
BLOCK_TOKENS = 512
CHARACTERS_PER_TOKEN = 4

_DEFAULTS = {f.name: f.default for f in fields(TimedRequest) if f.default is not MISSING}


def load(path: Path) -> Workload:
    """The requests of a file by time of arrival. Raises WorkloadError for broken lines, naming line and field."""
    header: dict[str, Any] = {}
    block_tokens = BLOCK_TOKENS
    requests: list[TimedRequest] = []
    with no_collection():
        for number, row in json_lines(path):
            if HEADER in row and not requests and not header:
                header = _header(row[HEADER], f"{path}: line {number}")
                block_tokens = header.get("block_tokens", BLOCK_TOKENS)
                continue
            requests.append(_request(row, len(requests), block_tokens, (path, number)))
        if not requests:
            raise WorkloadError(f"{path}: there are no requests in it")
        requests = in_order(requests)
    return Workload(
        name=header.get("name", path.stem),
        requests=requests,
        block_tokens=block_tokens,
        slos=header.get("slos", {}),
        source=header.get("source") or f"{path.name}: {len(requests):,} requests",
    )


def in_order(requests: list[TimedRequest]) -> list[TimedRequest]:
    """The requests by the earliest time they can arrive, parents before what follows them (if they were so before)."""
    if not any(request.parents for request in requests):
        return sorted(requests, key=lambda request: request.arrival_s)
    earliest: dict[str, float] = {}
    for request in requests:
        known = [earliest[parent] for parent in request.parents if parent in earliest]
        earliest[request.id] = max(known, default=request.arrival_s)
    return sorted(requests, key=lambda request: earliest[request.id])


def _header(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise WorkloadError(f"{place}: {HEADER} must be an object, got {row!r}")
    unknown = row.keys() - {"name", "block_tokens", "source", "slos"}
    if unknown:
        raise WorkloadError(f"{place}: {HEADER} has no field {min(unknown)!r}; known: name, block_tokens, source, slos")
    for name in ("name", "source"):
        if not isinstance(row.get(name, ""), str):
            raise WorkloadError(f"{place}: {name} must be text, got {row[name]!r}")
    if "block_tokens" in row:
        whole(row["block_tokens"], f"{place}: block_tokens")
    slos = row.get("slos", {})
    if not isinstance(slos, dict) or not all(isinstance(slo, dict) for slo in slos.values()):
        raise WorkloadError(f"{place}: slos must be an object of objects, as {{'chat': {{'ttft_s': 0.5}}}}")
    try:
        made = {name: SLO(**slo) for name, slo in slos.items()}
    except (TypeError, BadRequest) as error:
        raise WorkloadError(f"{place}: slos: {error}; known: {', '.join(f.name for f in fields(SLO))}") from error
    return {**row, "slos": made}


Where = tuple[Path, int]
"""File and line: made into text only for an error, as there may be millions."""


def _place(where: Where, name: str) -> str:
    return f"{where[0]}: line {where[1]}: {name}"


def _tokens(value: Any, where: Where, name: str) -> int:
    return value if type(value) is int and 0 < value <= LARGEST else whole(value, _place(where, name))


def _seconds(value: Any, where: Where, name: str) -> float:
    return value if type(value) is float and 0.0 <= value < math.inf else seconds(value, _place(where, name))


def _priority(value: Any, where: Where, name: str) -> int:
    return whole(value, _place(where, name), low=-(2**31))


def _text(value: Any, where: Where, name: str) -> str:
    if not isinstance(value, str):
        raise WorkloadError(f"{_place(where, name)} must be text, got {value!r}")
    return value


def _id(value: Any, where: Where, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise WorkloadError(f"{_place(where, name)} must be text that is not empty, got {value!r}")
    return value


def _ids(value: Any, where: Where, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise WorkloadError(f"{_place(where, name)} must be a list of ids, got {value!r}")
    return tuple(value)


def _flag(value: Any, where: Where, name: str) -> bool:
    if not isinstance(value, bool):
        raise WorkloadError(f"{_place(where, name)} must be true or false, got {value!r}")
    return value


def _as_it_is(value: Any, where: Where, name: str) -> Any:
    return value


_READ: dict[str, Callable[[Any, Where, str], Any]] = {
    "id": _id,
    "arrival_s": _seconds,
    "prompt_tokens": _tokens,
    "output_tokens": _tokens,
    "blocks": _as_it_is,  # checked against the prompt's length below
    "text": _text,
    "application": _text,
    "workflow": _text,
    "stage": _text,
    "parents": _ids,
    "delay_s": _seconds,
    "tool": _text,
    "slo_class": _text,
    "adapter": _text,
    "tenant": _text,
    "priority": _priority,
    "failed": _flag,
}


def _request(row: dict[str, Any], number: int, block_tokens: int, where: Where) -> TimedRequest:
    given: dict[str, Any] = {}
    for name, value in row.items():
        read = _READ.get(name)
        if read is None:
            raise WorkloadError(f"{_place(where, name)}: there is no such field; known: {', '.join(_READ)}")
        if value is not None:  # null: left out
            given[name] = read(value, where, name)
    if "output_tokens" not in given:
        raise WorkloadError(f"{_place(where, 'output_tokens')} is missing")
    if "prompt_tokens" not in given:
        if "text" not in given:
            raise WorkloadError(f"{_place(where, 'prompt_tokens')} is missing, and there is no text either")
        # For statistics only: the text's own tokens are sent.
        given["prompt_tokens"] = max(1, len(given["text"]) // CHARACTERS_PER_TOKEN)
    if given.get("parents"):
        given["arrival_s"] = 0.0
    elif "arrival_s" not in given:
        raise WorkloadError(f"{_place(where, 'arrival_s')} is missing, and there are no parents to wait for")
    if "blocks" in given:
        given["blocks"] = blocks(given["blocks"], given["prompt_tokens"], _place(where, "blocks"), block_tokens)
    given.setdefault("id", str(number))
    return TimedRequest(**given)


def write(workload: Workload, path: Path) -> None:
    """Write a workload so that `load` gives it back."""
    with path.open("wb") as file:
        file.writelines(_written(workload))


def _written(workload: Workload) -> Iterator[bytes]:
    import orjson

    slos = {name: {k: v for k, v in asdict(slo).items() if v is not None} for name, slo in workload.slos.items()}
    facts = dict(name=workload.name, block_tokens=workload.block_tokens, source=workload.source, slos=slos)
    yield orjson.dumps({HEADER: facts}) + b"\n"
    for request in workload:
        row = {name: value for name in _READ if (value := getattr(request, name)) != _DEFAULTS.get(name, MISSING)}
        yield orjson.dumps(row) + b"\n"
