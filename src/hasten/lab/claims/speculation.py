"""That drafts change nothing: every proposer on every task of the testbed, with all that could confuse it switched on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims import drafting
from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.sides import Side

if TYPE_CHECKING:
    from hasten.engine.build import Built
    from hasten.engine.request import Request

OFF = Side("off")
SIDES = (
    Side("prompt-lookup", ("prompt-lookup",)),
    Side("suffix-tree", ("suffix-tree",)),
    Side("draft-model", ("draft-model:length=4",)),
    Side("mirror-sd", ("mirror-sd:length=4",), ("executor.threads=2",)),
    Side("medusa", ("medusa",)),
    Side("auto over three", ("smart-spec", "prompt-lookup", "suffix-tree", "draft-model:length=4")),
)
SETTINGS = (*drafting.EXACT, "executor.threads=1", "scheduling.max_tokens=256", "kv.block_size=8")
"""Blocks of 8 tokens: an answer takes several, so that those who run come to want blocks that others hold."""
POOL_TOKENS = 900
"""Some six questions fit at a time: the others wait, and some of those that run lose their KV."""
SHORTER = {"needle": "needle:length=256", "tracing": "tracing:length=320"}
"""Long prompts would take most of the time, and are no other thing to drafts."""
LONGEST = 32
"""Tokens of an answer."""
SEEDS = 2048
"""Draws of each place that are compared as distributions."""
PLACES = 4


@dataclass(slots=True)
class Found:
    """Of one side. `unlike`: answers that differ, by task; `drafted`, `accepted`: by depth."""

    answers: int = 0
    unlike: Counter[str] = field(default_factory=Counter)
    preempted: int = 0
    reused: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


def run(setting: Setting) -> Outcome:
    from hasten.lab.testbed.tasks.registry import all_tasks

    count = 6 if setting.quick else 200
    tasks = [SHORTER.get(name, name) for name in all_tasks()]
    setting.progress("questions", 0)
    questions = {task: _mixed(drafting.questions(task, count, setting.seed)) for task in tasks}
    engines = {side.name: _engine(side, POOL_TOKENS) for side in (OFF, *SIDES)}
    found = {side.name: Found() for side in SIDES}
    for at, (task, asked) in enumerate(questions.items()):
        plain: dict[Any, list[int]] = {}
        for turn, (name, made) in enumerate(engines.items()):
            setting.progress(f"{task}, {name}", 0.9 * (at + turn / len(engines)) / len(tasks))
            said = _answers(made, asked)
            if name == OFF.name:
                plain = said
                continue
            found[name].answers += len(said)
            found[name].unlike[task] += sum(said[key] != plain[key] for key in plain)
    for name, one in found.items():
        _sum_up(engines[name], one)
    values = {}
    for turn, side in enumerate(SIDES):
        setting.progress(f"draws, {side.name}", 0.9 + 0.1 * turn / len(SIDES))
        values[side.name] = _alike(engines[OFF.name], engines[side.name], 256 if setting.quick else SEEDS)
    for made in engines.values():
        made.engine.ledger.audit()
        made.engine.executor.close()
    return Outcome(
        samples={
            "unlike": [float(sum(one.unlike.total() for one in found.values()))],
            **{f"draws {name}": found_values for name, found_values in values.items()},
        },
        guards=[
            Guard(
                "drafts, prefix hits and preemption took part",
                all(sum(one.drafted) and one.preempted and one.reused for one in found.values()),
                "; ".join(
                    f"{name}: {one.answers} answers, {sum(one.drafted)} tokens drafted, {sum(one.accepted)} accepted, "
                    f"{one.preempted} preemptions, {one.reused} prompt tokens found"
                    for name, one in found.items()
                ),
            )
        ],
        notes=[
            f"{count} questions of each of {len(tasks)} tasks ({', '.join(tasks)}), all at once, answers of up to {LONGEST} "
            "tokens: a third plain, a third with three penalties and a bias, a third under a grammar, one in four of all drawn "
            "at temperature 0.8, two samples each; float32, deterministic kernels",
        ],
        details={
            name: {"unlike": dict(one.unlike), "drafted": one.drafted, "accepted": one.accepted} for name, one in found.items()
        },
        pictures=_picture(found),
    )


def _engine(side: Side, pool: int) -> Built:
    """`pool`: tokens that its KV pool holds."""
    probe = drafting.built(OFF, (*drafting.EXACT, "kv.memory_bytes=1000000"))
    token = probe.parts.memory.block_bytes // probe.parts.memory.block_size
    probe.engine.executor.close()
    return drafting.built(side, (*SETTINGS, f"kv.memory_bytes={pool * token}"))


def _mixed(asked: Sequence[Request]) -> list[Request]:
    """The questions with what could confuse drafts: see the claim's notes."""
    from hasten.engine.decoding.constraints.spec import ConstraintSpec

    grammar = ConstraintSpec("regex", r"[A-Za-z0-9 ,.:;=+*{}\"'_\[\]\n-]*")
    out = []
    for number, request in enumerate(asked):
        changes: dict[str, Any] = {"max_tokens": min(LONGEST, request.sampling.max_tokens or LONGEST)}
        if number % 3 == 1:
            changes |= {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1, "logit_bias": {7: 1.5}}
        if number % 3 == 2:
            changes["constraint"] = grammar
        if number % 4 == 3:
            changes |= {"temperature": 0.8, "n": 2, "seed": number}
        out.append(replace(request, sampling=replace(request.sampling, **changes)))
    return out


def _answers(made: Built, asked: Sequence[Request]) -> dict[Any, list[int]]:
    out: dict[Any, list[int]] = {}
    for request in asked:
        made.engine.add(request)
    for delta in made.engine.run():
        if delta.error is not None:
            raise RuntimeError(f"{delta.request_id} failed: {delta.error}")
        out.setdefault((delta.request_id, delta.index), []).extend(delta.tokens)
    return out


def _sum_up(made: Built, found: Found) -> None:
    stats = made.engine.stats()
    found.preempted, found.reused = int(stats["preempted_total"]), int(stats["prefix_hit_tokens"])
    found.drafted, found.accepted = stats["drafted_by_depth"], stats["accepted_by_depth"]


def _alike(plain: Built, drafts: Built, seeds: int) -> list[float]:
    """Chi-square p-values that the tokens at the first places come from one distribution, drawn with drafts and, with other
    seeds, without. Under equal distributions they lie anywhere in 0..1; those of sides that change no draw are equal."""
    from scipy.stats import chi2_contingency

    from hasten.engine.request import SamplingParams

    (question,) = drafting.questions("language", 1, "draws")
    counted: list[list[Counter[int]]] = []
    for base, made in ((1, plain), (2, drafts)):
        places = [Counter[int]() for _ in range(PLACES)]
        for first in range(0, seeds, 64):
            seed = base * 1_000_000 + first
            sampling = SamplingParams(max_tokens=PLACES + 4, temperature=1.0, n=64, seed=seed, ignore_eos=True)
            for tokens in _answers(made, [replace(question, id=f"draws-{seed}", sampling=sampling)]).values():
                for place, token in zip(places, tokens, strict=False):
                    place[token] += 1
        counted.append(places)
    found = []
    for without, with_ in zip(*counted, strict=True):
        often = [token for token in without | with_ if without[token] + with_[token] >= 10]
        rows = [[of[token] for token in often] for of in (without, with_)]
        table = np.array([[*row, seeds - sum(row)] for row in rows])
        found.append(float(chi2_contingency(table[:, table.sum(0) > 0]).pvalue))
    return found


def _picture(found: dict[str, Found]) -> dict[str, bytes]:
    from hasten.lab.claims.picture import axes, png

    figure, (depths,) = axes(1)
    for turn, (name, one) in enumerate(found.items()):
        rates = [100 * a / d for a, d in zip(one.accepted, one.drafted, strict=True) if d >= 20]
        style = "--" if turn % 2 else "-"  # a draft model guesses the same with and without a core of its own
        depths.plot(range(1, len(rates) + 1), rates, style, marker="o", markersize=3, label=name)
    depths.set(xlabel="depth (the last: and all deeper ones)", ylabel="drafted tokens that were accepted, %", ylim=(0, 100))
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return {"speculation": png(figure)}


CLAIM = Claim(
    name="speculation",
    title="Drafts change no token",
    paper="own",
    workload="200 held-out questions of every testbed task, the built-in model, all at once with a small pool: prompts in "
    "chunks, prefix hits, preemption, grammars, penalties, several samples",
    baseline="the plain engine",
    technique="; ".join(str(side) for side in SIDES),
    requirements=(
        Requirement(name="unlike", what="answers that differ, all tasks and proposers", at_most=0),
        *(
            Requirement(
                name=f"draws {side.name}",
                what=f"chi-square p of the first {PLACES} tokens drawn at temperature 1, {side.name} against none, other seeds",
                at_least=0.001,
            )
            for side in SIDES
        ),
    ),
    run=run,
)
