"""What the claims `kv-int8` and `kv-int4` share: the tasks, and decode steps over long contexts timed in turns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hasten.lab.claims.base import Outcome, Requirement, Setting
from hasten.lab.claims.quality import PLAIN, Rounds, rounds_of
from hasten.lab.claims.quantized import perplexities
from hasten.lab.claims.sides import Side, share
from hasten.lab.planning.known_models import KNOWN

if TYPE_CHECKING:
    from hasten.engine.build import Built
    from hasten.engine.config import EngineConfig
    from hasten.engine.kv.base import Found, Ints, ReuseKey
    from hasten.engine.kv.pool import BlockPool
    from hasten.engine.kv.view import View

SHAPE = KNOWN["qwen3-0.6b"]
"""28 layers, 8 KV heads of 128."""
TASKS = {"recall:pairs=16,length=2048": 12, "needle:length=4096": 6, "tracing": 12, "arithmetic": 12, "json": 6}
"""How many questions of each a round asks."""
COMMON = ("model.max_length=8192",)
BATCH, CONTEXT = 4, 8192
WORKLOAD = (
    f"quality: the built-in model on {', '.join(TASKS)} and held-out texts; speed: random weights of Qwen3-0.6B's shape, "
    f"decode steps of {BATCH} sequences with {CONTEXT} tokens each"
)
TURNS = 4
"""How often the engines take turns within a round, two steps at a time."""
NOTE = (
    "speed: the contexts were not computed but found by a stand-in for prefix caching, in a pool of random keys and values, "
    "which take as long to read as any; the engines step in turns"
)

SHORTFALL = (
    "a core that reads fewer bytes does more with each: softmax and digits take as long as before, and while they are computed "
    "little can be fetched"
)
SPEED_SETTINGS = ("model.load_format=dummy", "model.dtype=bfloat16")
ROOM = 256
"""Slots beside a context, for what is decoded."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Times:
    """Of every round the median step of each side and the attention in it, in seconds. `step_bytes`: weights and KV that a
    step reads; `kv_bytes`: KV of a token."""

    steps: dict[str, list[float]]
    attention: dict[str, list[float]]
    step_bytes: dict[str, float]
    kv_bytes: dict[str, float]

    def in_words(self, side: Side) -> str:
        """The prediction made of bytes alone, and what came of it."""
        kv = self.kv_bytes[PLAIN.name] / self.kv_bytes[side.name]
        all_bytes = self.step_bytes[PLAIN.name] / self.step_bytes[side.name]
        said = [f"predicted from the bytes read: attention {kv:.2f}x, a step {all_bytes:.2f}x"]
        for what, of in (("attention", self.attention), ("a step", self.steps)):
            dense, mine = (1e3 * median(of[name]) for name in (PLAIN.name, side.name))
            said.append(f"{what} {dense:.1f} ms dense and {mine:.1f} ms with the technique")
        return "; ".join(said)


class Primed:
    """A `Reuse` that finds the whole of every prompt in fresh blocks, whatever they hold."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool

    def match(self, key: ReuseKey, tokens: Ints, limit: int) -> list[Found]:
        import numpy as np

        from hasten.engine.kv.base import Found, Readiness

        size = self._pool.block_size
        count = min(limit, len(tokens) - 1) // size
        runs = np.zeros((count, 4), dtype=np.int32)
        runs[:, 0], runs[:, 2], runs[:, 3] = self._pool.take(count), size, np.arange(count) * size
        return [Found(0, count * size, Readiness.READY, runs)]

    def insert(self, key: ReuseKey, tokens: Ints, view: View) -> None: ...
    def evict(self, count: int) -> int:
        return 0


def decode_times(sides: Sequence[Side], *, batch: int, context: int, rounds: int, progress: Progress) -> Times:
    """Decode steps of `sides`, dense bfloat16 among them, on random weights of the SHAPE."""
    from hasten.engine.build import build
    from hasten.engine.config import EngineConfig

    engines: dict[str, Built] = {}
    with TemporaryDirectory(prefix="hasten-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
        for number, side in enumerate(sides):
            progress(f"random weights of Qwen3-0.6B's shape, {side.name}", 0.4 * number / len(sides))
            config = EngineConfig.build(folder, with_=side.with_, set_=[*SPEED_SETTINGS, *side.set_])
            config.set("kv.memory_bytes", _pool_bytes(config, batch * (context + ROOM)))
            engines[side.name] = build(config)
    steps = 3 + rounds * TURNS * 2
    for number, built in enumerate(engines.values()):
        progress("contexts", 0.4 + 0.2 * number / len(engines))
        _begin(built, batch, context, steps)
    taken: dict[str, list[float]] = {name: [] for name in engines}
    attention: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds):
        progress(f"round {turn + 1} of {rounds}", 0.6 + 0.4 * turn / rounds)
        for name, (step, part) in _round(engines, batch).items():
            taken[name].append(step)
            attention[name].append(part)
    kv = {name: built.parts.memory.block_bytes / built.parts.memory.block_size for name, built in engines.items()}
    read = {name: built.parts.model.active_weight_bytes + kv[name] * batch * context for name, built in engines.items()}
    for built in engines.values():
        built.engine.run()
        built.parts.memory.close()
    return Times(taken, attention, read, kv)


def _pool_bytes(config: EngineConfig, tokens: int) -> int:
    """Of a pool for so many tokens."""
    import torch

    heads, dim, size = SHAPE["num_key_value_heads"], SHAPE["head_dim"], config.kv.block_size
    planes = config.form().planes(heads, dim, size, torch.bfloat16)
    return int(SHAPE["num_hidden_layers"]) * sum(plane.nbytes for plane in planes) * -(-tokens // size)


def _begin(built: Built, batch: int, context: int, steps: int) -> None:
    """Fill the pool, and take `batch` sequences through their first three steps, which are slower."""
    import numpy as np
    import torch

    from hasten.engine.attention.coded import CodedForm
    from hasten.engine.request import Request, SamplingParams
    from hasten.kernels.coded import encode

    size = built.parts.memory.block_size
    for site in built.parts.model.sites:
        x = torch.randn(2, size, site.kv_heads, site.head_dim)
        form = site.form
        held = [part for rows in x for part in encode(rows, form.bits)] if isinstance(form, CodedForm) else x.to(site.k.dtype)
        form.write(site.planes, torch.arange(size), size, tuple(held))
        for plane in site.planes:
            plane[1:] = plane[0]
    built.parts.books.reuse = Primed(built.parts.books.pool)
    rng = np.random.default_rng(batch)
    sampling = SamplingParams(max_tokens=steps + 2, temperature=0.0, ignore_eos=True)
    for number in range(batch):
        prompt = rng.integers(16, built.parts.model.vocabulary, context).astype(np.int32)
        built.engine.add(Request(id=f"{batch}-{number}", prompt=prompt, sampling=sampling))
    while _step(built)[1] < batch:
        pass
    for _ in range(3):
        _step(built)


def _round(engines: Mapping[str, Built], batch: int) -> dict[str, tuple[float, float]]:
    """The median step of each engine, and that of its attention."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for turn in range(TURNS):
        for name in list(engines)[:: 1 if turn % 2 == 0 else -1]:
            for _ in range(2):
                seconds, tokens, attention = _step(engines[name])
                if tokens != batch:
                    raise RuntimeError(f"{name}: a step gave {tokens} tokens, {batch} were expected")
                took[name].append((seconds, attention))
    return {name: (median(s for s, _ in found), median(a for _, a in found)) for name, found in took.items()}


def _step(built: Built) -> tuple[float, int, float]:
    """Its seconds, its tokens, and the seconds of attention."""
    executor = built.parts.executor
    executor.profile = True  # type: ignore[union-attr]
    began = time.perf_counter()
    deltas = built.engine.step()
    seconds = time.perf_counter() - began
    if failed := [delta.error for delta in deltas if delta.error is not None]:
        raise RuntimeError(f"a request failed: {failed[0]}")
    return seconds, sum(len(delta.tokens) for delta in deltas), built.engine.last_seconds.get("attention", 0.0)


# The experiment


def measure(setting: Setting, side: Side, control: Side) -> Outcome:
    """What a form of KV loses, beside a control that takes as many bytes, and what it gains."""
    rounds, batch, context = (2, 2, CONTEXT // 2) if setting.quick else (5, BATCH, CONTEXT)
    tasks = {task: max(2, n // 4) if setting.quick else n for task, n in TASKS.items()}
    found = rounds_of(
        (side, control), tasks, rounds=rounds, seed=setting.seed, common=COMMON, progress=share(setting.progress, 0.0, 0.4)
    )
    texts = perplexities(
        (side,), rounds=rounds, n=3 if setting.quick else 8, seed=setting.seed, progress=share(setting.progress, 0.4, 0.5)
    )
    times = decode_times(
        (PLAIN, side),
        batch=batch,
        context=context,
        rounds=3 if setting.quick else 9,
        progress=share(setting.progress, 0.5, 1.0),
    )
    dense, mine = PLAIN.name, side.name
    return Outcome(
        samples={
            **{f"lost-{_short(task)}": found.lost(side, task) for task in TASKS},
            **{f"control-{_short(task)}": found.lost(control, task) for task in list(TASKS)[:2]},
            "perplexity": texts.risen(side),
            "bytes": [times.kv_bytes[mine] / times.kv_bytes[dense]],
            "attention": [a / b for a, b in zip(times.attention[dense], times.attention[mine], strict=True)],
            "step": [a / b for a, b in zip(times.steps[dense], times.steps[mine], strict=True)],
        },
        shortfall=dict.fromkeys(("attention", "step"), SHORTFALL),
        notes=[NOTE, f"{batch} sequences, {context} tokens each: {times.in_words(side)}"],
        details={"scores": _scores(found), "perplexity": texts.values, "steps": times.steps, "attention": times.attention},
    )


def requirements(
    *, points: float, perplexity: float, bytes_: float, attention: float, step: float, control: str
) -> tuple[Requirement, ...]:
    """The figures of either claim and how good they must be; `control` in words."""
    first, second = list(TASKS)[:2]
    return (
        *(
            Requirement(name=f"lost-{_short(task)}", what=f"points lost on {task}", unit="points", at_most=points)
            for task in TASKS
        ),
        *(
            Requirement(name=f"control-{_short(task)}", what=f"the same of {control}, on {task}", unit="points", at_least=25)
            for task in (first, second)
        ),
        Requirement(name="perplexity", what="perplexity of held-out text, over bfloat16's", unit="%", at_most=perplexity),
        Requirement(name="bytes", what="bytes of a token's KV, over bfloat16's, Qwen3-0.6B", unit="x", at_most=bytes_),
        Requirement(
            name="attention", what="attention in a decode step, dense over the technique", unit="x", at_least=attention
        ),
        Requirement(name="step", what="the whole decode step, dense over the technique", unit="x", at_least=step),
    )


def _short(task: str) -> str:
    return task.partition(":")[0]


def _scores(found: Rounds) -> dict[str, dict[str, list[float]]]:
    return found.scores
