"""`mirror-sd`: drafting beside verification, against the same draft model before it."""

from __future__ import annotations

from dataclasses import asdict

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.draft_model_pairs import CODE, OUTPUT, TEXT, Pair, equal_answers
from hasten.lab.claims.mirror_sd_parts import CORES, MOST, Landed, Large, Sides, Told, landed, large
from hasten.lab.claims.sides import share

LENGTH = 6
BRANCHES = 2
EXITS = (0, 1, 2, 3, 4, 5)
"""Of the built-in model's six blocks."""
HALF, NONE, SHORT = "exit at half depth", "no exit", "no exit, 2 tokens afresh"
BUILTIN_EXITS = {HALF: 3, NONE: 0}
SERIAL = f"draft-model:length={LENGTH}"
MIRROR = f"mirror-sd:length={LENGTH}:branches={BRANCHES}"
MIRRORS = {HALF: MIRROR, NONE: f"{MIRROR}:exit=0", SHORT: f"{MIRROR}:exit=0:afresh=2"}
CORE = "executor.threads=1"
BOTH = f"executor.threads={CORES}"
WORKS = {TEXT: (TEXT, 0.0), CODE: (CODE, 0.0), f"{TEXT}, temperature 1": (TEXT, 1.0)}


def run(setting: Setting) -> Outcome:
    rounds, n, of_large = (2, 1, 2) if setting.quick else (7, 4, 7)
    tell = share(setting.progress, 0.0, 0.6)
    tell("equal answers", 0.0)
    pair = Pair(SERIAL)
    guard = equal_answers(pair, MIRROR, 1 if setting.quick else 4, setting.seed, (BOTH,))
    prompts = {task: pair.prompts(task, 2 * n, setting.seed) for task in (TEXT, CODE)}
    asked = {
        name: [pair.prompts(task, n, setting.seed + number) for number in range(rounds)] for name, (task, _) in WORKS.items()
    }
    pair.close()
    tell("landings", 0.2)
    exits = tuple(BUILTIN_EXITS.values()) if setting.quick else EXITS
    found = {task: landed(f"mirror-sd:length={LENGTH}", exits, prompts[task], BRANCHES) for task in (TEXT, CODE)}
    steps = {task: {name: found[task][layer].steps for name, layer in BUILTIN_EXITS.items()} for task in found}
    for task, each in steps.items():
        short = landed(f"mirror-sd:length={LENGTH}:afresh=2", (0,), prompts[task], BRANCHES, BRANCHES)
        each[SHORT] = short[0].steps
    sides = Sides({"serial 1": (SERIAL, CORE), "serial 2": (SERIAL, BOTH), "mirror": (MIRRORS[SHORT], BOTH)})
    sides.round(asked[TEXT][0], 0, 0.0, Told())  # an engine's first steps are slower
    told = {name: Told() for name in WORKS}
    for at, (name, (_, heat)) in enumerate(WORKS.items()):
        for number in range(rounds):
            tell(f"{name}, round {number + 1} of {rounds}", 0.4 + 0.6 * (at + number / rounds) / len(WORKS))
            sides.round(asked[name][number], number, heat, told[name])
    sides.close()
    shapes = large(
        MIRRORS,
        SERIAL,
        {task: steps[task] for task in (TEXT, CODE)},
        rounds=of_large,
        turns=1 if setting.quick else 2,
        progress=share(setting.progress, 0.6, 1.0),
    )
    samples: dict[str, list[float]] = {}
    for task, shape in shapes.items():
        for name in MIRRORS:
            samples[f"real {task}, {name}"] = shape.faster(name, "serial 1")
            samples[f"both {task}, {name}"] = shape.faster(name, "serial 2")
            samples[f"costed {task}, {name}"] = [shape.costed(name, "serial 1")]
        for name, layer in BUILTIN_EXITS.items():
            samples[f"hit {task}, {name}"] = [found[task][layer].rate(BRANCHES, own=True)]
    for name, one in told.items():
        samples[f"pair {name}"] = [a / b for a, b in zip(one.seconds["serial 1"], one.seconds["mirror"], strict=True)]
    return Outcome(
        samples=samples,
        guards=[guard],
        shortfall={
            f"{kind} {task}, {name}": _why(shapes[task], name)
            for task in shapes
            for name in MIRRORS
            for kind in ("real", "costed")
        },
        notes=[
            *(f"{task}: {_hits(each)}" for task, each in found.items()),
            *(f"1B shape, {task}, {name}: {_parts(shape, name)}" for task, shape in shapes.items() for name in MIRRORS),
            "the costed figure is computed, not measured: the served model's pass as on one core, the exit, and of the draft, "
            "as fast as a core here, what the blocks after the exit do not hide; drafts afresh where a landing was missed",
            f"the 1B shape's draft has {shapes[TEXT].draft_weights / 1e6:.0f} million weights and runs; what it says is noise, "
            "so what is accepted, and whether the landing was rolled out, is replayed from the built-in pair, step by step",
            *(
                f"built-in pair, {name}: {one.hits} of {one.hits + one.misses} landings hit; {one.rolled_s:.2f} s rolled out "
                f"aside, {one.waited_s:.2f} s of them waited for"
                for name, one in told.items()
            ),
        ],
        details={
            "landed": {
                task: {layer: {str(key): count for key, count in one.counted.items()} for layer, one in each.items()}
                for task, each in found.items()
            },
            "large": {task: asdict(shape) for task, shape in shapes.items()},
            "pair": {name: one.seconds for name, one in told.items()},
        },
        pictures=_picture(found),
    )


def _hits(each: dict[int, Landed]) -> str:
    """Hit rates by exit and number of branches, in words."""
    by_exit = (
        f"after {layer} of 6 blocks " + ", ".join(f"{one.rate(k, own=True):.0f} %" for k in (1, 2, 4, MOST))
        for layer, one in each.items()
    )
    own = next(iter(each.values())).rate(0, own=True)
    return f"landings hit with 1, 2, 4, {MOST} branches and the draft's own: {'; '.join(by_exit)}; its own alone {own:.0f} %"


def _parts(shape: Large, side: str) -> str:
    m = shape.mirrored[side]
    passes, drafts = ({cores: 1e3 * each[f"serial {cores}"] for cores in (1, 2)} for each in (shape.passes, shape.drafts))
    return (
        f"a pass takes {passes[1]:.0f} ms on one core and {passes[2]:.0f} ms on two, drafting {drafts[1]:.0f} and "
        f"{drafts[2]:.0f} ms; mirrored, a step takes {1e3 * m.step:.0f} ms, of which the exit {1e3 * m.exit:.0f} ms; a whole "
        f"rollout takes {1e3 * m.rollout:.0f} ms beside a pass, of which a step waits for {1e3 * m.waited:.0f} ms; drafting "
        f"afresh, at a miss, {1e3 * m.afresh:.0f} ms; {100 * m.hit:.0f} % of the landings are hit"
    )


def _why(shape: Large, side: str) -> str:
    m, drafts = shape.mirrored[side], shape.drafts["serial 1"]
    return (
        f"drafting takes {100 * drafts / (drafts + shape.passes['serial 1']):.0f} % of the baseline's step; "
        f"{100 * (1 - m.hit):.0f} % of the landings are missed, whose drafts are made afresh, and a step waits for "
        f"{100 * m.waited / m.afresh if m.afresh else 0.0:.0f} % of what that takes"
    )


def _picture(found: dict[str, dict[int, Landed]]) -> dict[str, bytes]:
    from hasten.lab.claims.picture import axes, png

    figure, plots = axes(len(found))
    for plot, (task, each) in zip(plots, found.items(), strict=True):
        for layer, one in each.items():
            plot.plot(
                range(MOST + 1), [one.rate(k, own=True) for k in range(MOST + 1)], marker="o", label=f"{layer} of 6 blocks"
            )
        plot.set(title=task, xlabel="branches beside the draft's own", ylabel="landings hit, %", ylim=(0, 104))
        plot.legend(frameon=False, fontsize="small")
    return {"mirror-sd": png(figure)}


CLAIM = Claim(
    name="mirror-sd",
    title="Drafting beside verification against drafting before it",
    paper="Mirror Speculative Decoding: Breaking the Serial Barrier in LLM Inference (2025)",
    workload=f"held-out texts of the testbed, one at a time, {OUTPUT} tokens each, greedy unless a temperature is named; the "
    "shape of Llama-3.2-1B and a draft of 100 million weights, both random, in bfloat16, at batch 1",
    baseline=f"{SERIAL}, the same draft, on one core; and on two",
    technique=f"{MIRROR}, with an exit after half the blocks; with none (exit=0); and with afresh=2 too; on two cores",
    requirements=(
        *(
            Requirement(
                name=f"real {task}, {name}",
                what=f"1B shape, tokens a second over drafting before it on one core, landing as on {task}; {name}",
                paper="2.8x to 5.8x over no drafts, 30 % over EAGLE-3, at 14B to 66B on eight accelerators and more",
                unit="x",
                at_least=1.2,
            )
            for task in (TEXT, CODE)
            for name in MIRRORS
        ),
        *(
            Requirement(name=f"both {task}, {name}", what=f"the same, over it on two cores, {task}; {name}", unit="x")
            for task in (TEXT, CODE)
            for name in MIRRORS
        ),
        *(
            Requirement(
                name=f"costed {task}, {name}",
                what=f"the same as computed from its parts with the draft on an assumed second device, {task}; {name}",
                unit="x",
                at_least=1.5,
            )
            for task in (TEXT, CODE)
            for name in MIRRORS
        ),
        *(
            Requirement(
                name=f"hit {task}, {name}",
                what=f"built-in pair, landings hit by {BRANCHES} branches and the draft's own, {task}; {name}",
                unit="%",
            )
            for task in (TEXT, CODE)
            for name in BUILTIN_EXITS
        ),
        *(
            Requirement(
                name=f"pair {name}", what=f"built-in pair, tokens a second over drafting before it, {name}; {SHORT}", unit="x"
            )
            for name in WORKS
        ),
    ),
    run=run,
)
