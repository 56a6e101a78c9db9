"""What the claim `fastswitch` runs: its sides, on the virtual clock and for real, and the guards."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hasten.lab.claims.base import Guard, Setting
from hasten.lab.claims.sides import Side, equal_tokens, share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hasten.engine.kv.host import Traffic
    from hasten.lab.bench.run import Run
    from hasten.lab.claims.virtual import Point
    from hasten.lab.workloads.base import Workload

LOAD = 0.7
POOL_SHARE = 0.4
CONVERSATIONS, QUICK = 600, 120
VLLM = ("kv.block_size=16", "kv.reuse=none")
HOST_BYTES = 64_000_000_000
REAL_LENGTH = 1200
GUARD_BYTES = 3_000_000
"""About 1,000 tokens of the built-in model in float32: little enough that sequences must switch."""
TRACE = "priority-trace"
SYNC = "follow-order:transfers=sync"
BY_BLOCK = ("kv.copies=blocks",)

ROOM, BASELINE, FAST = "all the memory", "block by block", "fastswitch"
SIDES = (
    Side(BASELINE, (TRACE, SYNC), BY_BLOCK),
    Side("+ groups", (TRACE, SYNC, "block-groups")),
    Side("+ overlap", (TRACE, "follow-order"), BY_BLOCK),
    Side("+ kept copies", (TRACE, SYNC), (*BY_BLOCK, "kv.keep_copies=true")),
    Side("no groups", (TRACE, "follow-order"), (*BY_BLOCK, "kv.keep_copies=true")),
    Side("no overlap", (TRACE, "fastswitch", SYNC)),
    Side("no kept copies", (TRACE, "follow-order", "block-groups")),
    Side(FAST, (TRACE, "fastswitch")),
)
PLAIN = Side("plain", (TRACE,))
"""The default residency: memory by arrival, swaps beside steps, a copy a run of blocks. It does not follow the priorities."""
ENDS = (SIDES[0], SIDES[-1])
STEMS = ("calls", "bytes", "ttft", "tbt")


def workload(conversations: int, rate: float, seed: int) -> Workload:
    """Turns as long as those of LMSYS-Chat-1M, three to a conversation, the next 2 s after an answer; `rate` conversations a
    second."""
    from hasten.lab.workloads.conversations import conversations as made

    return made(rate=rate, conversations=conversations, turns=3, think_s=2, longest=8192, seed=seed)


def short_workload(conversations: int, rate: float, seed: int) -> Workload:
    """The same for the small model, with contexts of up to `REAL_LENGTH` tokens."""
    from hasten.lab.workloads.conversations import conversations as made

    return made(
        rate=rate,
        conversations=conversations,
        turns=3,
        message=150,
        answer=200,
        think_s=0.5,
        longest=REAL_LENGTH,
        system=64,
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class Demand:
    """`rate`: requests per second at `LOAD` of what an engine with all the memory sustains; `blocks`: the most that it then
    holds of KV blocks, those only cached not counted."""

    rate: float
    blocks: float


def demand(replay: Callable[[Workload], Run], work: Workload) -> Demand:
    """`replay`: of an engine with all the memory. It sustains what it does when all turns come at once, each by itself: turns
    that wait for each other would leave it idle."""
    from hasten.lab.bench.metrics import summary
    from hasten.lab.workloads.transform import scale_load

    apart = replace(work, requests=[replace(one, parents=(), arrival_s=0.0, delay_s=0.0) for one in work])
    rate = LOAD * summary(replay(apart))["requests_per_s"]
    run = replay(scale_load(work, rate))
    assert run.total_blocks is not None
    return Demand(rate, summary(run)["kv_peak"] * run.total_blocks)


def ratios(of: dict[str, dict[str, float]], traffic: dict[str, Traffic], name: str) -> dict[str, float]:
    """How much better side `name` is than the baseline, by requirement's stem."""
    base, one = of[BASELINE], of[name]
    b, o = traffic[BASELINE], traffic[name]
    return {
        "calls": (b.calls_out + b.calls_in) / (o.calls_out + o.calls_in),
        "bytes": 100 * (1 - o.blocks_out / b.blocks_out),
        "ttft": base["ttft_p99_s"] / one["ttft_p99_s"],
        "tbt": base["gap_p999_s"] / one["gap_p999_s"],
    }


@dataclass(slots=True)
class Simulated:
    """Rounds on the virtual clock: figures by side and what was copied, one dict a round; the first round's runs."""

    need: Demand
    pool_bytes: int
    block_size: int
    figures: list[dict[str, dict[str, float]]] = field(default_factory=list)
    traffic: list[dict[str, Traffic]] = field(default_factory=list)
    first: dict[str, Run] = field(default_factory=dict)

    def ratios(self, name: str) -> list[dict[str, float]]:
        return [ratios(of, traffic, name) for of, traffic in zip(self.figures, self.traffic, strict=True)]


def simulate(
    sides: Sequence[Side],
    common: tuple[str, ...],
    conversations: int,
    rounds: int,
    seed: int,
    tell: Callable[[str, float], None],
) -> Simulated:
    from hasten.lab.bench.metrics import summary
    from hasten.lab.claims.virtual import Virtual, h100
    from hasten.lab.workloads.transform import scale_load

    device = h100()
    tell("demand", 0.0)
    roomy = Virtual([Side(ROOM)], device=device, common=common)
    need = demand(lambda work: roomy.replay(ROOM, work), workload(conversations, 1.0, seed))
    block_size = roomy.configs[ROOM].kv.block_size
    out = Simulated(need, int(POOL_SHARE * need.blocks * block_size * device.kv_token_bytes), block_size)
    counted: dict[str, Traffic] = {}

    def attend(name: str, engine: Any) -> None:
        counted[name] = engine.executor.traffic  # counts on while the engine runs

    memory = (f"kv.memory_bytes={out.pool_bytes}", f"kv.host_bytes={HOST_BYTES}")
    virtual = Virtual(sides, device=device, common=(*common, *memory), attend=attend)

    def arriving(number: int) -> Workload:
        return scale_load(workload(conversations, 1.0, seed + number), need.rate)

    for runs in virtual.rounds(arriving, rounds, share(tell, 0.15, 1.0)):
        out.first = out.first or runs
        out.figures.append({name: summary(run) for name, run in runs.items()})
        out.traffic.append(dict(counted))
    return out


def guard(setting: Setting) -> list[Guard]:
    """Equal tokens on all sides, and KV that came back as it left."""
    from hasten.lab.bench.kv_checks import KVChecks
    from hasten.lab.workloads.conversations import conversations

    checks: dict[str, KVChecks] = {}

    def attend(name: str, engine: Any) -> None:
        checks[name] = KVChecks(engine)

    setting.progress("equal tokens", 0.0)
    sides = [Side(ROOM, (), ("kv.memory_bytes=50000000",)), *(ENDS if setting.quick else SIDES)]
    work = conversations(
        rate=50.0, conversations=8, turns=2, message=60, answer=60, think_s=0.1, longest=900, system=64, seed=setting.seed
    )
    memory = (f"kv.memory_bytes={GUARD_BYTES}", "kv.host_bytes=100000000")
    common = ("executor.threads=1", "model.max_length=1024", *VLLM, *memory)
    tokens = equal_tokens(sides, work, common=common, attend=attend)
    compared = {name: one.compared for name, one in checks.items() if name != ROOM}
    wrong = sum(len(one.wrong) for one in checks.values())
    each = ", ".join(f"{name}: {count}" for name, count in compared.items())
    detail = f"{wrong} differ of {sum(compared.values())} sequences that came back ({each})"
    return [tokens, Guard("KV as it left", wrong == 0 and min(compared.values()) > 0, detail)]


def real(setting: Setting, tell: Callable[[str, float], None]) -> tuple[Point, dict[str, Traffic], str]:
    """The built-in model on this machine: two sides measured and predicted."""
    from hasten.lab.claims.sides import Sides
    from hasten.lab.claims.virtual import REAL, real_point

    conversations, rounds = (10, 1) if setting.quick else (30, 3)
    work = short_workload(conversations, 1.0, setting.seed)
    room = Side(ROOM, (), ("kv.memory_bytes=400000000",))
    common = (*REAL, *VLLM, "kv.host_bytes=400000000")
    memories: list[Any] = []
    engines = Sides([room], common=common, attend=lambda name, engine: memories.append(engine.executor.memory))
    tell("for real: demand", 0.0)
    engines.replay(ROOM, short_workload(2, 1.0, setting.seed))  # warms up
    need = demand(lambda w: engines.replay(ROOM, w)[0], work)
    engines.close()
    # The longest request must fit, or nobody can run it.
    blocks = max(POOL_SHARE * need.blocks, REAL_LENGTH / memories[0].block_size + 1)
    pool = int(blocks * memories[0].nbytes / memories[0].blocks)
    traffic: dict[str, Traffic] = {}

    def attend(name: str, engine: Any) -> None:
        traffic.setdefault(name, engine.executor.traffic)  # the real engine's: the simulated one comes after it

    sides = [room, *(Side(s.name, s.with_, (*s.set_, f"kv.memory_bytes={pool}")) for s in ENDS)]
    point = real_point(
        sides,
        lambda number: short_workload(conversations, 1.0, setting.seed + number),
        ["ttft_p99_s", "gap_p999_s", "e2e_mean_s"],
        tell,
        rate=need.rate,
        rounds=rounds,
        common=common,
        calibration_s=3.0 if setting.quick else 6.0,
        attend=attend,
    )
    note = (
        f"for real: the built-in model, {need.rate:.1f} requests/s, {pool / 1e6:.1f} MB of KV, "
        f"{blocks / need.blocks:.0%} of the demand; errors are medians of relative errors of the prediction"
    )
    return point, traffic, note
