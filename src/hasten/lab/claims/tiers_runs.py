"""What the claim `tiered` runs: the Mooncake trace on a pool that holds a quarter of what it uses, with and without tiers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.lab.claims.base import Guard
from hasten.lab.claims.sides import Side, equal_tokens

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.claims.virtual import Point
    from hasten.lab.planning.devices import Device
    from hasten.lab.workloads.base import Workload

TRACE = "mooncake-conversation"
CONTEXT = 8192
POOL_SHARE = 0.25
"""Of the working set, that the pool holds."""
LOAD = 0.7
DISK_RATE = 12e9
"""Bytes per second of the simulated disk: a PCIe 5 drive reads 14e9 at best (assumed: 85 % of that)."""
REAL_FACTOR, REAL_LONGEST = 1 / 8, 1900
"""For real lengths are scaled by the factor, and requests that are longer then are left out: scaled until the longest fits,
most would be shorter than a chunk."""
ROOM, DROP, HOST, DISK, COST = "all the memory", "dropping", "host", "host and disk", "cost-aware"


def trace(parts: int, part: int, *, real: bool = False) -> Workload:
    """Every `parts`-th conversation of the trace, from number `part` on: a conversation is what has the same second block (the
    first is everybody's), so the sample reuses what the whole does. All lengths are scaled by the one factor with which the
    trace's longest request fits `CONTEXT`, or as said of `REAL_FACTOR`."""
    from hasten.lab.workloads import load
    from hasten.lab.workloads.transform import fit_context, scale_lengths

    whole = scale_lengths(load(TRACE), REAL_FACTOR) if real else fit_context(load(TRACE), CONTEXT)
    kept = [request for request in whole if request.blocks[:2][-1] % parts == part]
    if real:
        kept = [request for request in kept if request.prompt_tokens + request.output_tokens <= REAL_LONGEST]
    first_s = kept[0].arrival_s
    source = f"{whole.source}; conversations {part} of {parts}"
    return replace(whole, requests=[replace(r, arrival_s=r.arrival_s - first_s) for r in kept], source=source)


def made(work: Workload) -> int:
    """Tokens of all the different KV that a workload makes: equal blocks of prompts once, every output."""
    blocks = {block for request in work for block in request.blocks}
    return len(blocks) * work.block_tokens + sum(request.output_tokens for request in work)


def working_set(work: Workload) -> int:
    """Tokens of prompts' KV that is between its first and its last use, when that is most: what a cache would have to hold that
    finds everything there is to find and knows what will come."""
    last = {block: number for number, request in enumerate(work) for block in request.blocks}
    alive: set[int] = set()
    most = 0
    for number, request in enumerate(work):
        alive.update(request.blocks)
        most = max(most, len(alive))
        alive.difference_update(block for block in request.blocks if last[block] == number)
    return most * work.block_tokens


def sides(pool_bytes: int, whole_bytes: int, disk: str, chunk: int) -> list[Side]:
    """Pools of `pool_bytes`; tiers that hold `whole_bytes`, all of it in host memory or as much as the pool there and all on
    disk."""
    pool = (f"kv.memory_bytes={pool_bytes}",)
    small = f"tiered:chunk={chunk}:host_bytes={pool_bytes}:disk={disk}:disk_bytes={whole_bytes}:disk_rate={DISK_RATE:g}"
    return [
        Side(ROOM, (), (f"kv.memory_bytes={whole_bytes}",)),
        Side(DROP, (), pool),
        Side(HOST, (f"tiered:chunk={chunk}:host_bytes={whole_bytes}",), pool),
        Side(DISK, (small,), pool),
        Side(COST, (f"{small}:keep=cost-aware",), pool),
    ]


@dataclass(slots=True)
class Simulated:
    """Rounds on the virtual clock: figures by side, one dict a round. `rate`: requests per second; `sets`, `made`: bytes of
    each round's working set and of all its KV; `at`: mean TTFT by side and share of the rate that dropping sustains, of one
    round."""

    rate: float = 0.0
    sets: list[float] = field(default_factory=list)
    made: list[float] = field(default_factory=list)
    figures: list[dict[str, dict[str, float]]] = field(default_factory=list)
    at: dict[str, dict[float, float]] = field(default_factory=dict)
    first: dict[str, Run] = field(default_factory=dict)


def roomy(device: Device) -> Device:
    """The device with as much memory for KV as asked for: what all the memory would be worth."""
    return replace(device, kv_limit_bytes=None)


def simulate(parts: int, rounds: int, loads: Sequence[float], tell: Callable[[str, float], None]) -> Simulated:
    """`rounds` of `parts` of the trace at `LOAD` of what dropping sustains, then the first of them at other `loads`."""
    from hasten.lab.bench.metrics import summary
    from hasten.lab.claims.virtual import Virtual, h100
    from hasten.lab.workloads.transform import scale_load

    device = roomy(h100())
    found = Simulated()
    total = rounds + len(loads)
    for number in range(rounds):
        work = trace(parts, number)
        size, whole = working_set(work) * device.kv_token_bytes, made(work) * device.kv_token_bytes
        found.sets.append(size)
        found.made.append(whole)
        virtual = Virtual(sides(int(POOL_SHARE * size), int(whole), "simulated", 128), device=device)
        tell(f"round {number + 1} of {rounds}", number / total)
        rate = LOAD * virtual.saturation(DROP, work)
        arriving = scale_load(work, rate)
        runs = {name: virtual.replay(name, arriving, number) for name in virtual.configs}
        found.figures.append({name: summary(run) for name, run in runs.items()})
        if number:
            continue
        found.rate, found.first = rate, runs
        for turn, load in enumerate(loads):
            tell(f"load {load:.0%}", (1 + turn) / total)
            for name in (DROP, HOST, DISK):
                run = virtual.replay(name, scale_load(work, rate * load / LOAD), number)
                found.at.setdefault(name, {})[load] = summary(run)["ttft_mean_s"]
    return found


def guards(seed: int, count: int) -> list[Guard]:
    """Equal tokens whatever tier KV comes from, and after a restart."""
    from hasten.lab.workloads.conversations import conversations

    work = conversations(
        rate=20.0,
        conversations=count,
        turns=3,
        message=60,
        answer=40,
        think_s=0.2,
        longest=600,
        system=96,
        seed=seed,
    )
    common = ("executor.threads=1", "model.max_length=1024", "kv.block_size=16")
    tight = ("kv.memory_bytes=2000000",)
    with tempfile.TemporaryDirectory() as folder:
        tiers = f"tiered:chunk=64:margin=1e9:host_bytes=1600000:disk={folder}"
        tried = [
            Side(ROOM, (), ("kv.memory_bytes=100000000",)),
            Side(DROP, (), tight),
            Side("tiers", (tiers,), tight),
        ]
        counts: dict[str, Any] = {}

        def attend(name: str, engine: Any) -> None:
            counts[name] = engine

        tokens = equal_tokens(tried, work, common=common, attend=attend)
        first = counts["tiers"].stats()
        files = len(list(Path(folder).glob("*.kv")))
        again = equal_tokens([tried[0], Side("restarted", (tiers,), tight)], work, common=common, attend=attend)
        second = counts["restarted"].stats()
    moved = f"{first.get('chunks_found', 0):.0f} chunks came back, {first.get('chunks_from_stores', 0):.0f} of them from disk"
    return [
        Guard(
            "equal tokens from host memory and disk",
            tokens.held and first.get("chunks_found", 0) > 0,
            f"{tokens.detail}; {moved}",
        ),
        Guard(
            "equal tokens after a restart",
            again.held and second.get("chunks_from_stores", 0) > 0,
            f"{again.detail}; {files} chunks were on disk, {second.get('chunks_from_stores', 0):.0f} were used",
        ),
    ]


def real(parts: int, rounds: int, quick: bool, tell: Callable[[str, float], None]) -> tuple[Point, str]:
    """The built-in model on this machine with real copies and a real disk: dropping against both kinds of tiers, measured and
    predicted."""
    from hasten.lab.claims.virtual import REAL, real_point

    works = [trace(parts, number, real=True) for number in range(rounds)]
    size_tokens = max(working_set(work) for work in works)
    token_bytes = _token_bytes(REAL)
    # The longest request must fit, or nobody can run it.
    longest = max(request.prompt_tokens + request.output_tokens for work in works for request in work) + 100
    pool = int(max(POOL_SHARE * size_tokens, longest) * token_bytes)
    whole = int(max(map(made, works)) * token_bytes)
    with tempfile.TemporaryDirectory() as folder:
        tried = [side for side in sides(pool, whole, folder, 64) if side.name in (DROP, HOST, DISK)]
        point = real_point(
            tried,
            lambda number: works[number % rounds],
            ["ttft_mean_s", "e2e_mean_s"],
            tell,
            load=LOAD,
            rounds=rounds,
            common=REAL,
            calibration_s=3.0 if quick else 6.0,
        )
    note = (
        f"for real: the built-in model, {len(works[0])} requests a round at {point.rate:.1f} a second, lengths x "
        f"{REAL_FACTOR:g} and none beyond {REAL_LONGEST} tokens; {pool / 1e6:.0f} MB of KV of a working set of "
        f"{size_tokens * token_bytes / 1e6:.0f} MB"
    )
    return point, note


def _token_bytes(common: Sequence[str]) -> float:
    """Of KV of the built-in model."""
    from hasten.engine.build import build
    from hasten.engine.config import EngineConfig

    built = build(EngineConfig.build(set_=[*common, "kv.memory_bytes=10000000"]))
    try:
        return built.parts.memory.block_bytes / built.parts.memory.block_size
    finally:
        built.engine.executor.close()
