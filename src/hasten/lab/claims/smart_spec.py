"""`smart-spec`: the length of drafts chosen before every step, against fixed lengths and none, from idle to too much."""

from __future__ import annotations

from math import inf
from statistics import fmean

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.draft_model_pairs import CODE, OUTPUT, Pair
from hasten.lab.claims.sides import share
from hasten.lab.claims.smart_spec_runs import LONGEST, MIXED, Answer, Real, Virtual, answers, load_of

FIXED = (0, 1, 3, 5)
LOADS = (0.02, 0.25, 0.5, 0.75, 0.9, 1.1)
"""Of what the engine sustains without drafts."""
REAL_LOADS = (0.2, 0.7)
GOVERNED = "smart-spec"
Figures = dict[str, list[list[float]]]
"""By side, for each load the latency of every round, seconds."""


def run(setting: Setting) -> Outcome:
    count, rounds, texts = (60, 2, 8) if setting.quick else (240, 5, 40)
    tell = share(setting.progress, 0.0, 0.15)
    tell("recording answers", 0.0)
    pair = Pair(f"draft-model:length={LONGEST}")
    code = answers(pair, CODE, texts, setting.seed)
    mixed = [one for task in MIXED for one in answers(pair, task, max(2, texts // len(MIXED)), setting.seed)]
    pair.close()
    loads = LOADS[::2] if setting.quick else LOADS
    drafted, capacity = _drafted(code, loads, count, rounds, setting, share(setting.progress, 0.15, 0.6))
    auto, auto_rate = _auto(mixed, loads, count, rounds, setting, share(setting.progress, 0.6, 0.75))
    real, plain_rate = _real(mixed, 24 if setting.quick else 60, 2 if setting.quick else 7, setting)
    samples = {
        "best": [
            min(min(drafted[f"{k}"][at][number] for k in FIXED) / drafted[GOVERNED][at][number] for at in range(len(loads)))
            for number in range(rounds)
        ],
        "idle": [off / on for off, on in zip(drafted["0"][0], drafted[GOVERNED][0], strict=True)],
        "saturated": [off / on for off, on in zip(drafted["0"][-1], drafted[GOVERNED][-1], strict=True)],
        "saturated-rate": capacity["saturated-rate"],
        "five": [
            min(drafted[GOVERNED][at][number] / drafted["5"][at][number] for at in range(len(loads))) ** -1
            for number in range(rounds)
        ],
        "auto": [
            min(auto["off"][at][number] / auto["auto"][at][number] for at in range(len(loads))) for number in range(rounds)
        ],
        "auto-idle": [off / on for off, on in zip(auto["off"][0], auto["auto"][0], strict=True)],
        "auto-rate": auto_rate,
        **{f"real {load:g}": ratios for load, ratios in real.items()},
    }
    return Outcome(
        samples=samples,
        notes=[
            f"recorded: {len(code)} continuations of held-out Python, {100 * fmean(float(a.right.mean()) for a in code):.0f} % "
            "of tokens guessed by the built-in draft, whose passes are charged and whose prompts are not; without drafts the "
            f"simulated engine sustains {fmean(capacity['plain']):.1f} requests a second",
            "mean latency at each load, seconds: "
            + "; ".join(
                f"{load:g}: " + ", ".join(f"{name} {fmean(drafted[name][at]):.2f}" for name in [*map(str, FIXED), GOVERNED])
                for at, load in enumerate(loads)
            ),
            f"for real: {plain_rate:.1f} requests a second are sustained without drafts",
        ],
        details={"loads": list(loads), "drafted": drafted, "auto": auto, "real": {str(k): v for k, v in real.items()}},
        pictures=_picture(loads, drafted, auto),
    )


def _drafted(
    code: list[Answer], loads: tuple[float, ...], count: int, rounds: int, setting: Setting, progress: object
) -> tuple[Figures, dict[str, list[float]]]:
    assert callable(progress)
    virtual = Virtual()
    sides = {**{str(k): ((), k) for k in FIXED}, GOVERNED: ((GOVERNED,), LONGEST)}
    found: Figures = {name: [[] for _ in loads] for name in sides}
    rates: dict[str, list[float]] = {"plain": [], "saturated-rate": []}
    for number in range(rounds):
        progress(f"virtual, round {number + 1} of {rounds}", number / rounds)
        seed = 100 * setting.seed + number
        crowd = load_of(code, 2 * count, inf, seed)
        plain, governed = (virtual.serve(crowd, *sides[name]).rate for name in ("0", GOVERNED))
        rates["plain"].append(plain)
        rates["saturated-rate"].append(governed / plain)
        for at, load in enumerate(loads):
            work = load_of(code, count, load * plain, seed)
            for name, (with_, length) in sides.items():
                found[name][at].append(virtual.serve(work, with_, length).latency_s)
    return found, rates


def _auto(
    mixed: list[Answer], loads: tuple[float, ...], count: int, rounds: int, setting: Setting, progress: object
) -> tuple[Figures, list[float]]:
    assert callable(progress)
    virtual = Virtual()
    sides = {"off": (), "auto": (GOVERNED, "prompt-lookup")}
    found: Figures = {name: [[] for _ in loads] for name in sides}
    rates = []
    for number in range(rounds):
        progress(f"auto, round {number + 1} of {rounds}", number / rounds)
        seed = 100 * setting.seed + number
        crowd = load_of(mixed, 2 * count, inf, seed)
        plain, auto = (virtual.serve(crowd, with_, 0).rate for with_ in sides.values())
        rates.append(auto / plain)
        for at, load in enumerate(loads):
            work = load_of(mixed, count, load * plain, seed)
            for name, with_ in sides.items():
                found[name][at].append(virtual.serve(work, with_, 0).latency_s)
    return found, rates


def _real(mixed: list[Answer], count: int, rounds: int, setting: Setting) -> tuple[dict[float, list[float]], float]:
    tell = share(setting.progress, 0.75, 1.0)
    engines = Real()
    try:
        rate = max(engines.round(load_of(mixed, count, inf, 7), number)["off"].rate for number in range(2))
        found: dict[float, list[float]] = {load: [] for load in REAL_LOADS}
        for number in range(rounds):
            for load, ratios in found.items():
                tell(f"for real at {load:.0%}, round {number + 1} of {rounds}", number / rounds)
                served = engines.round(load_of(mixed, count, load * rate, 100 * setting.seed + number), number)
                ratios.append(served["off"].latency_s / served["auto"].latency_s)
    finally:
        engines.close()
    return found, rate


def _picture(loads: tuple[float, ...], drafted: Figures, auto: Figures) -> dict[str, bytes]:
    from hasten.lab.claims.picture import axes, png

    figure, (fixed, chosen) = axes(2)
    for name, label in (*((str(k), f"always {k}") for k in FIXED[1:]), (GOVERNED, GOVERNED)):
        faster = [fmean(a / b for a, b in zip(drafted["0"][at], drafted[name][at], strict=True)) for at in range(len(loads))]
        fixed.plot([100 * load for load in loads], faster, marker="o", label=label, linewidth=2.5 if name == GOVERNED else 1.2)
    fixed.set(xlabel="load, % of what is sustained without drafts", ylabel="latency, none over drafts", title="draft model")
    faster = [fmean(a / b for a, b in zip(auto["off"][at], auto["auto"][at], strict=True)) for at in range(len(loads))]
    chosen.plot([100 * load for load in loads], faster, marker="o")
    chosen.set(xlabel="load, % of what is sustained without drafts", ylabel="latency, off over auto", title="auto")
    for plot in (fixed, chosen):
        plot.axhline(1.0, color="grey", linewidth=0.8)
        plot.set_ylim(bottom=0)
    fixed.legend(frameon=False)
    return {"smart-spec": png(figure)}


CLAIM = Claim(
    name="smart-spec",
    title="The length of drafts chosen before every step",
    paper="Optimizing Speculative Decoding for Serving Large Language Models Using Goodput (SmartSpec, Liu et al., 2024)",
    workload=f"greedy continuations of held-out Python, {OUTPUT} tokens, by the built-in model, and which of their tokens the "
    f"built-in draft guesses, replayed by Llama-3.1 8B with Llama-3.2 1B as its draft on a simulated H100, Poisson arrivals at "
    f"{', '.join(f'{load:.0%}' for load in LOADS)} of what is sustained without drafts; auto: continuations, JSON, copies, "
    "dialogues and calls; for real the built-in model on one thread",
    baseline=f"the same draft at fixed lengths {', '.join(map(str, FIXED))} (0: none) on the same arrivals",
    technique=f"smart-spec over up to {LONGEST} drafted tokens; auto: smart-spec over prompt lookup",
    requirements=(
        Requirement(
            name="best",
            what="mean latency, best fixed length over smart-spec, worst load",
            paper="as good as the best length at every rate",
            unit="x",
            at_least=0.95,
        ),
        Requirement(
            name="idle",
            what="mean latency when idle, none over smart-spec",
            paper="up to 3.2x",
            unit="x",
            at_least=1.3,
        ),
        Requirement(
            name="saturated", what=f"mean latency at {LOADS[-1]:.0%} load, none over smart-spec", unit="x", at_least=0.95
        ),
        Requirement(
            name="saturated-rate", what="requests a second when all come at once, smart-spec over none", unit="x", at_least=0.95
        ),
        Requirement(name="five", what="mean latency, always 5 over smart-spec, worst load for 5", unit="x"),
        Requirement(name="auto", what="mean latency, off over auto, worst load", unit="x", at_least=0.97),
        Requirement(name="auto-idle", what="the same when idle", unit="x"),
        Requirement(name="auto-rate", what="requests a second when all come at once, auto over off", unit="x", at_least=0.97),
        *(
            Requirement(
                name=f"real {load:g}",
                what=f"for real at {load:.0%} of what off sustains: mean latency, off over auto",
                unit="x",
                at_least=0.97,
            )
            for load in REAL_LOADS
        ),
    ),
    run=run,
    simulated=True,
)
