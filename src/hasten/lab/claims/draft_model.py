"""`draft-model`: a small model's guesses, checked together, against one token a step."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.draft_model_pairs import CODE, OUTPUT, TASKS, TEXT, Pair, Said, draws, equal_answers, large
from hasten.lab.claims.sides import share

LENGTH = 4
TECHNIQUE = "draft-model"
SAMPLED = f"{TEXT}, temperature 1"
HEATS = (1.0, 0.5)


def run(setting: Setting) -> Outcome:
    rounds, n, of_large = (2, 1, 2) if setting.quick else (7, 6, 9)
    tell = share(setting.progress, 0.0, 0.6)
    tell("equal answers", 0.0)
    technique = f"{TECHNIQUE}:length={LENGTH}"
    pair = Pair(technique)
    guard = equal_answers(pair, technique, 1 if setting.quick else 4, setting.seed)
    pair.round(pair.prompts(TEXT, 1, setting.seed), 0, 0.0, Said(), Said())  # an engine's first steps are slower
    plain: dict[str, Said] = {}
    drafting: dict[str, Said] = {}
    works = [*((task, task, 0.0) for task in TASKS), *((f"{TEXT}, temperature {heat:g}", TEXT, heat) for heat in HEATS)]
    for at, (name, task, heat) in enumerate(works):
        plain[name], drafting[name] = Said(), Said()
        for number in range(rounds):
            tell(f"{name}, round {number + 1} of {rounds}", 0.3 + 0.7 * (at + number / rounds) / len(works))
            prompts = pair.prompts(task, n, setting.seed + number)
            pair.round(prompts, number, heat, plain[name], drafting[name])
    agreement = {}
    for heat in HEATS:
        drawn = plain[f"{TEXT}, temperature {heat:g}"].tokens
        asked = [prompt for number in range(rounds) for prompt in pair.prompts(TEXT, n, setting.seed + number)]
        agreement[heat] = draws(pair, list(zip(asked, drawn, strict=True)), heat, setting.seed)
    pair.close()
    traces = {
        name: [accepted for drafted, accepted in drafting[name].drafts if drafted == LENGTH] for name in (TEXT, CODE, SAMPLED)
    }
    shape = large(
        technique, traces, rounds=of_large, turns=1 if setting.quick else 6, progress=share(setting.progress, 0.6, 1.0)
    )
    samples: dict[str, list[float]] = {}
    for name, said in drafting.items():
        samples[f"tokens {name}"] = [fmean(said.steps)]
        samples[f"pair {name}"] = [a / b for a, b in zip(plain[name].seconds, said.seconds, strict=True)]
    for name in traces:
        samples[f"large {name}"] = shape.faster(name)
    for heat, found in agreement.items():
        samples[f"draws {heat:g}"] = [100 * found.same / found.most]
    given = fmean(drafting[TEXT].steps)
    reason = (
        f"the built-in draft's {LENGTH} tokens give {given:.1f} tokens a step there, and such a step takes "
        f"{given / fmean(samples[f'large {TEXT}']):.2f} times what a step of one token takes"
    )
    by_depth = {name: said.by_depth() for name, said in drafting.items()}
    return Outcome(
        samples=samples,
        guards=[guard],
        shortfall={f"large {TEXT}": reason},
        notes=[
            "share of the tokens drafted at depth 1, 2, ... that was accepted: "
            + "; ".join(f"{name} {', '.join(f'{100 * rate:.0f} %' for rate in rates)}" for name, rates in by_depth.items()),
            *(
                f"temperature {heat:g}: the two draws are the same {found.same:.0f} % of the time; rejection sampling accepts "
                f"{found.most:.0f} %; naming the draft's likeliest token {found.likeliest:.0f} %; if tokens were drawn along "
                f"the cumulative distribution instead of by a race, it would be {found.cumulative:.0f} %"
                for heat, found in agreement.items()
            ),
            f"the 1B shape's draft has {shape.draft_weights / 1e6:.0f} million weights and runs; what it says is noise, so how "
            f"many of its {LENGTH} tokens are right in a step is replayed from the built-in pair, step by step",
        ],
        details={
            "by_depth": by_depth,
            "agreement": {str(heat): _columns(found) for heat, found in agreement.items()},
            "seconds": {
                "pair": {name: [plain[name].seconds, drafting[name].seconds] for name in plain},
                "large": _columns(shape),
            },
        },
        pictures=_picture(by_depth),
    )


def _columns(found: Any) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__dataclass_fields__}


def _picture(by_depth: dict[str, list[float]]) -> dict[str, bytes]:
    from hasten.lab.claims.picture import axes, png

    figure, (depths,) = axes(1)
    for name, rates in by_depth.items():
        depths.plot(range(1, len(rates) + 1), [100 * rate for rate in rates], marker="o", label=name)
    depths.set(xlabel="depth", ylabel="accepted, %", ylim=(0, 104), xticks=range(1, LENGTH + 1))
    depths.legend(frameon=False, fontsize="small")
    return {"draft-model": png(figure)}


_NAMES = [*TASKS, *(f"{TEXT}, temperature {heat:g}" for heat in HEATS)]

CLAIM = Claim(
    name=TECHNIQUE,
    title="A draft model's guesses against one token a step",
    paper="Fast Inference from Transformers via Speculative Decoding (Leviathan et al., 2023); Accelerating Large Language "
    "Model Decoding with Speculative Sampling (Chen et al., 2023)",
    workload=f"held-out texts and questions of the testbed, one at a time, {OUTPUT} tokens each, greedy unless a temperature "
    "is named, on one thread; the shape of Llama-3.2-1B with random weights in bfloat16",
    baseline="the plain engine",
    technique=f"{TECHNIQUE}:length={LENGTH}; the built-in draft for the built-in model; random weights for the 1B shape",
    requirements=(
        Requirement(
            name=f"large {TEXT}",
            what=f"1B shape, tokens a second at batch 1 over no drafts, accepting as on {TEXT}",
            paper="2x to 3.4x on T5-XXL (11B) with a draft of 77M to 800M, on TPUs",
            unit="x",
            at_least=1.6,
        ),
        Requirement(name=f"large {CODE}", what=f"the same, accepting as on {CODE}", unit="x", at_least=1.6),
        Requirement(name=f"large {SAMPLED}", what=f"the same, accepting as on {SAMPLED}", unit="x"),
        *(Requirement(name=f"tokens {name}", what=f"built-in pair, tokens a step, {name}") for name in _NAMES),
        *(
            Requirement(name=f"pair {name}", what=f"built-in pair, tokens a second over no drafts, {name}", unit="x")
            for name in _NAMES
        ),
        *(
            Requirement(
                name=f"draws {heat:g}",
                what=f"equal draws of draft and served model, of what rejection sampling accepts, temperature {heat:g}",
                unit="%",
            )
            for heat in HEATS
        ),
    ),
    run=run,
)
