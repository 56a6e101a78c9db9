"""What the claim `tiered` computes of a workload, and that its sides are what they say."""

from __future__ import annotations

from hasten.engine.config import EngineConfig
from hasten.lab.claims.tiers_runs import COST, DISK, DROP, HOST, ROOM, made, roomy, sides, working_set
from hasten.lab.claims.virtual import Virtual, h100
from hasten.lab.workloads.base import TimedRequest, Workload


def workload(*blocks: tuple[int, ...], size: int = 32) -> Workload:
    requests = [
        TimedRequest(id=str(i), arrival_s=0.5 * i, prompt_tokens=size * len(b), output_tokens=4, blocks=b)
        for i, b in enumerate(blocks)
    ]
    return Workload(name="made", requests=requests, block_tokens=size)


def test_the_working_set_is_what_will_be_used_again() -> None:
    assert working_set(workload((0, 1, 2), (3,), (0, 1, 4))) == 3 * 32
    assert working_set(workload((0, 1), (2, 3), (4, 5), (0, 1), (2, 3))) == 6 * 32
    assert working_set(workload((0,), (1,), (2,))) == 32
    assert made(workload((0, 1, 2), (3,), (0, 1, 4))) == 5 * 32 + 3 * 4


def test_sides_share_a_pool_and_differ_in_what_is_behind_it() -> None:
    configs = {s.name: EngineConfig.build(with_=s.with_, set_=s.set_) for s in sides(4_000_000_000, 90_000_000_000, "d", 128)}
    assert {name: c.kv.memory_bytes for name, c in configs.items() if name != ROOM} == dict.fromkeys(
        (DROP, HOST, DISK, COST), 4_000_000_000
    )
    assert [name for name, c in configs.items() if c.kv.reuse == "prefix-tree"] == [ROOM, DROP]
    assert configs[COST].techniques["tiered"]["keep"] == "cost-aware"


def test_tiers_find_what_dropping_lost() -> None:
    """Forty conversations that take turns: the pool holds a few of them."""
    from hasten.lab.bench.metrics import summary

    first = [tuple(range(100 * i, 100 * i + 30)) for i in range(40)]
    work = workload(*((*b, 10_000 + 10_000 * turn + b[0]) for turn in range(3) for b in first))
    device = roomy(h100())
    pool = int(0.25 * working_set(work) * device.kv_token_bytes)
    virtual = Virtual([s for s in sides(pool, 4 * pool, "d", 128) if s.name in (DROP, HOST, DISK)], device=device)
    found = {name: summary(virtual.replay(name, work)) for name in virtual.configs}
    assert found[DROP]["prefix_hit_rate"] < 0.05
    for name in (HOST, DISK):
        assert found[name]["prefix_hit_rate"] > 0.55
        assert found[name]["ttft_mean_s"] < found[DROP]["ttft_mean_s"]
