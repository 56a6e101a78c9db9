"""`medusa`: heads on the last hidden state and a tree of their guesses, against one token a step."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from hasten.lab.claims import drafting
from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.drafting import OFF
from hasten.lab.claims.medusa_runs import PYTHON, DrawnAnswers, accepted, by_size, by_tree, drawn, texts
from hasten.lab.claims.sides import Side, share

ONE_THREAD = ("executor.threads=1",)
"""Models of this size gain nothing from a second one, and lose much to it where the machine is shared."""
ON = Side("medusa", ("medusa",))
WIDE = Side("medusa, 32 nodes", ("medusa:nodes=32",))
SIZES = (1, 2, 4, 8, 16, 32)
HEAT = 0.7
SCORED = ("json", "calls", "sql", "arithmetic")
EXACT_DRAWN, TYPICAL = Side("exact", ("medusa",), ONE_THREAD), Side("typical", ("medusa", "typical-acceptance"), ONE_THREAD)


def run(setting: Setting) -> Outcome:
    rounds, count, scored = (3, 1, 4) if setting.quick else (9, 6, 120)
    engines = {side.name: drafting.built(side, ONE_THREAD) for side in (OFF, ON, WIDE)}
    samples: dict[str, list[float]] = {}
    notes: list[str] = []
    off, on = engines[OFF.name], engines[ON.name]
    depths: dict[str, list[float]] = {}
    shortfall: dict[str, str] = {}
    for place, (name, make) in enumerate({"python": texts, "json": drafting.questions}.items()):
        task = {"python": PYTHON, "json": "json"}[name]
        part = share(setting.progress, 0.2 * place, 0.2 * (place + 1))
        drafting.in_turns(engines, [make(task, 1, "first")], part)  # an engine's first steps are slower
        asked = [make(task, count, setting.seed + number) for number in range(rounds)]
        begin = len(on.engine.events)
        times = drafting.in_turns(engines, asked, part)
        samples[f"{name}-tokens"], samples[f"{name}-faster"] = times[ON.name].tokens, drafting.faster(times, ON.name)
        samples[f"{name}-wide"] = times[WIDE.name].tokens
        notes += [f"{task}, {side}: {found.in_words()}" for side, found in times.items()]
        depths[name] = accepted(on, begin)
        given, ratio = fmean(times[ON.name].tokens), fmean(samples[f"{name}-faster"])
        shortfall[f"{name}-tokens"] = (
            f"none of the guesses for the next token is right in {1 - depths[name][0]:.0%} of the steps"
        )
        shortfall[f"{name}-faster"] = f"a step that checks the tree takes {given / ratio:.2f} times one without"
    setting.progress("trees", 0.42)
    compared = {}
    for name in (ON.name, WIDE.name):
        compared[name] = by_tree(engines[name], texts(PYTHON, 1 if setting.quick else 12, f"{setting.seed}/trees"))
        notes.append(
            f"{name}, tokens a step on Python by tree: " + ", ".join(f"{k} {v:.2f}" for k, v in compared[name].items())
        )
    sized = by_size(off, on, SIZES, *((1, 24) if setting.quick else (5, 96)), setting.seed, share(setting.progress, 0.45, 0.7))
    samples |= {f"at-{size}": found for size, found in sized.items()}
    speeds = {size: median(found) for size, found in sized.items()}
    lost = [size for size in SIZES if speeds[size] < 1]
    stops = f"it stops paying at {lost[0]} at once" if lost else f"it still pays at {SIZES[-1]} at once"
    notes.append(f"{stops}: " + ", ".join(f"{size}: {speed:.2f}x" for size, speed in speeds.items()))
    for made in engines.values():
        made.engine.executor.close()
    answers = drawn((EXACT_DRAWN, TYPICAL), SCORED, scored, HEAT, setting.seed, share(setting.progress, 0.7, 0.9))
    samples |= _typical(answers)
    notes += [
        f"{side}, temperature {HEAT:g}, right: " + ", ".join(f"{task} {100 * fmean(s):.1f} %" for task, s in one.scores.items())
        for side, one in answers.items()
    ]
    setting.progress("equal tokens", 0.9)
    few = 2 if setting.quick else 5
    mixed = [*texts(PYTHON, few, setting.seed), *drafting.questions("json", few, setting.seed)]
    return Outcome(
        samples=samples,
        notes=notes,
        guards=[drafting.same_tokens(ON, mixed)],
        shortfall=shortfall,
        details={"accepted": depths, "trees": compared, "by size": {str(size): found for size, found in sized.items()}},
        pictures=_picture(depths, speeds),
    )


def _typical(answers: Mapping[str, DrawnAnswers]) -> dict[str, list[float]]:
    exact, typical = answers[EXACT_DRAWN.name], answers[TYPICAL.name]
    right = {name: fmean(fmean(scores) for scores in one.scores.values()) for name, one in answers.items()}
    return {
        "exact-tokens": [exact.tokens],
        "typical-tokens": [typical.tokens],
        "typical-lost": [100 * (right[EXACT_DRAWN.name] - right[TYPICAL.name])],
    }


def _picture(depths: Mapping[str, list[float]], speeds: Mapping[int, float]) -> dict[str, bytes]:
    from hasten.lab.claims.picture import axes, png

    figure, (left, right) = axes(2)
    for name, shares in depths.items():
        left.plot(range(1, len(shares) + 1), [100 * one for one in shares], marker="o", label=name)
    left.set(xlabel="tokens of a draft", ylabel="steps that accept so many, %", ylim=(0, 104))
    left.legend(frameon=False, fontsize="small")
    right.plot(list(speeds), list(speeds.values()), marker="o")
    right.axhline(1.0, color="grey", linewidth=0.8)
    right.set_xscale("log", base=2)
    right.set(xlabel="requests at once", ylabel="tokens a second, over no drafts", xticks=list(speeds))
    right.set_xticklabels([str(size) for size in speeds])
    return {"medusa": png(figure)}


def _requirement(name: str, what: str, unit: str = "", **bounds: Any) -> Requirement:
    return Requirement(name=name, what=what, unit=unit, **bounds)


CLAIM = Claim(
    name="medusa",
    title="Heads that guess ahead, and a tree of their guesses",
    paper="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads (Cai et al., 2024)",
    workload="the built-in model with its heads, on one thread: held-out Python source that it goes on with, and facts as "
    "JSON, greedy, times after the first token; for typical acceptance questions of the testbed at temperature 0.7",
    baseline="the plain engine",
    technique="medusa at its defaults; for typical acceptance with the same heads, epsilon 0.09, delta 0.3",
    requirements=(
        _requirement(
            "python-tokens",
            "tokens a step, Python source, batch 1",
            paper="2.2 to 2.8 times as fast at batch 1 on Vicuna 7B to 33B, on an A100, most where code is written",
            at_least=1.8,
        ),
        _requirement("python-faster", "time a token, off over on, Python source, batch 1", "x", at_least=1.3),
        _requirement("json-tokens", "tokens a step, facts as JSON, batch 1", at_least=1.8),
        _requirement("json-faster", "time a token, off over on, facts as JSON, batch 1", "x", at_least=1.3),
        _requirement("python-wide", "tokens a step with 32 nodes, Python source"),
        _requirement("json-wide", "tokens a step with 32 nodes, facts as JSON"),
        *(_requirement(f"at-{size}", f"time a token, off over on, Python source, {size} at once", "x") for size in SIZES),
        _requirement("exact-tokens", f"tokens a step, drawn at temperature {HEAT:g}, exact"),
        _requirement("typical-tokens", f"tokens a step, drawn at temperature {HEAT:g}, typical acceptance"),
        _requirement("typical-lost", "points of a hundred lost by typical acceptance, mean of four tasks"),
    ),
    run=run,
)
