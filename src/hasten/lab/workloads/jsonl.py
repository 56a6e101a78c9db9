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

from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from hasten.engine.request import SLO, BadRequest
from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError
from hasten.lab.workloads.mooncake import blocks
from hasten.lab.workloads.reading import json_lines, no_collection, seconds, whole

HEADER = "workload"
BLOCK_TOKENS = 512
CHARACTERS_PER_TOKEN = 4

_DEFAULTS = {f.name: f.default for f in fields(TimedRequest) if f.default is not MISSING}
_KNOWN = tuple(f.name for f in fields(TimedRequest))
_STRINGS = ("text", "application", "workflow", "stage", "slo_class", "adapter", "tenant")


def load(path: Path) -> Workload:
    """The requests of a file by time of arrival. Raises WorkloadError for broken lines, naming line and field."""
    header: dict[str, Any] = {}
    requests: list[TimedRequest] = []
    with no_collection():
        for number, row in json_lines(path):
            place = f"{path}: line {number}"
            if HEADER in row and not requests and not header:
                header = _header(row[HEADER], place)
                continue
            requests.append(_request(row, len(requests), header.get("block_tokens", BLOCK_TOKENS), place))
        if not requests:
            raise WorkloadError(f"{path}: there are no requests in it")
        requests = in_order(requests)
    return Workload(
        name=header.get("name", path.stem),
        requests=requests,
        block_tokens=header.get("block_tokens", BLOCK_TOKENS),
        slos=header.get("slos", {}),
        source=header.get("source") or f"{path.name}: {len(requests):,} requests",
    )


def in_order(requests: list[TimedRequest]) -> list[TimedRequest]:
    """The requests by the earliest time they can arrive, parents before what follows them (if they were so before)."""
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


def _request(row: dict[str, Any], number: int, block_tokens: int, place: str) -> TimedRequest:
    for name in row:
        if name not in _KNOWN:
            raise WorkloadError(f"{place}: there is no field {name!r}; known: {', '.join(_KNOWN)}")
    given = dict(row)
    for name in _STRINGS:
        value = given.get(name)
        if value is not None and not isinstance(value, str):
            raise WorkloadError(f"{place}: {name} must be text, got {value!r}")
        if value is None and name in given:
            given[name] = _DEFAULTS[name]
    identity = given.get("id", str(number))
    if not isinstance(identity, str) or not identity:
        raise WorkloadError(f"{place}: id must be text, got {identity!r}")
    parents = given.get("parents", [])
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise WorkloadError(f"{place}: parents must be a list of ids, got {parents!r}")
    if not parents and "arrival_s" not in given:
        raise WorkloadError(f"{place}: arrival_s is missing, and there are no parents to wait for")
    if "output_tokens" not in given:
        raise WorkloadError(f"{place}: output_tokens is missing")
    text = given.get("text")
    if text is None and "prompt_tokens" not in given:
        raise WorkloadError(f"{place}: neither prompt_tokens nor text is there")
    if text is not None and "prompt_tokens" not in given:
        given["prompt_tokens"] = max(1, len(text) // CHARACTERS_PER_TOKEN)  # for statistics; its own tokens are sent
    given["prompt_tokens"] = whole(given["prompt_tokens"], f"{place}: prompt_tokens")
    if not isinstance(given.get("failed", False), bool):
        raise WorkloadError(f"{place}: failed must be true or false, got {given['failed']!r}")
    return TimedRequest(
        **{
            **given,
            "id": identity,
            "arrival_s": seconds(given.get("arrival_s", 0.0), f"{place}: arrival_s") if not parents else 0.0,
            "delay_s": seconds(given.get("delay_s", 0.0), f"{place}: delay_s"),
            "output_tokens": whole(given["output_tokens"], f"{place}: output_tokens"),
            "priority": whole(given.get("priority", 0), f"{place}: priority", low=-(2**31)),
            "blocks": blocks(given.get("blocks", []), given["prompt_tokens"], place, block_tokens),
            "parents": tuple(parents),
        }
    )


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
        row = {name: value for name in _KNOWN if (value := getattr(request, name)) != _DEFAULTS.get(name, MISSING)}
        yield orjson.dumps(row) + b"\n"
