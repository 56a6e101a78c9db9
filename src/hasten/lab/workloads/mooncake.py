"""Loader of the Mooncake traces (Qin et al., Mooncake, FAST 2025; kvcache-ai/Mooncake, FAST25-release/traces).

JSON Lines with `timestamp` (ms), `input_length`, `output_length` and `hash_ids`: one number for each 512 tokens of the prompt,
equal where the prefix up to and including that block is equal. The numbers become `TimedRequest.blocks` as they are, so prefix
caches meet the reuse of the real service. Times come in steps of 3 s, so that some ten requests arrive at once.
"""

from __future__ import annotations

from pathlib import Path

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError
from hasten.lab.workloads.reading import field, json_lines, no_collection, seconds, whole

BLOCK_TOKENS = 512


def load(path: Path) -> Workload:
    """The requests of a trace file by time of arrival, the first at 0 s. Raises WorkloadError for broken lines."""
    rows: list[tuple[float, int, int, tuple[int, ...]]] = []
    with no_collection():
        for number, row in json_lines(path):
            place = f"{path}: line {number}"
            time_ms = seconds(field(row, "timestamp", place), f"{place}: timestamp")
            prompt = whole(field(row, "input_length", place), f"{place}: input_length")
            output = whole(field(row, "output_length", place), f"{place}: output_length")
            rows.append((time_ms / 1e3, prompt, output, blocks(field(row, "hash_ids", place), prompt, place)))
        if not rows:
            raise WorkloadError(f"{path}: there are no requests in it")
        rows.sort(key=lambda row: row[0])
        start_s = rows[0][0]
        requests = [
            TimedRequest(id=str(number), arrival_s=at_s - start_s, prompt_tokens=prompt, output_tokens=output, blocks=ids)
            for number, (at_s, prompt, output, ids) in enumerate(rows)
        ]
    source = f"{path.name}: {len(requests):,} requests"
    return Workload(name=path.stem, requests=requests, block_tokens=BLOCK_TOKENS, source=source)


def blocks(value: object, prompt_tokens: int, place: str, block_tokens: int = BLOCK_TOKENS) -> tuple[int, ...]:
    """Block numbers of a prompt, checked: a list of whole numbers from 0 on, no more than the prompt has room for."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**63 for item in value):
        raise WorkloadError(f"{place}: the block numbers must be a list of whole numbers from 0 to 2**63")
    room = -(-prompt_tokens // block_tokens)
    if len(value) > room:
        raise WorkloadError(
            f"{place}: {len(value)} blocks of {block_tokens} tokens are more than a prompt of {prompt_tokens} tokens has"
        )
    return tuple(value)
