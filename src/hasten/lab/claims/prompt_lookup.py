"""`prompt-lookup`: answers that repeat their prompt, and answers that do not, with and without drafts."""

from __future__ import annotations

import random

from hasten.lab.claims import drafting, rewrites
from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.drafting import OFF
from hasten.lab.claims.sides import Side, share

ON = Side("prompt-lookup", ("prompt-lookup",))
TASKS = {"copying": "copying:words=64", "json": "json", "calls": "calls", "arithmetic": "arithmetic", "rules": "rules"}
"""The first is all copying; the last two have little to copy."""


def run(setting: Setting) -> Outcome:
    rounds, count = (3, 2) if setting.quick else (9, 6)
    engines = {side.name: drafting.built(side) for side in (OFF, ON)}
    samples, notes = {}, []
    for place, (name, task) in enumerate(TASKS.items()):
        part = share(setting.progress, 0.5 * place / len(TASKS), 0.5 * (place + 1) / len(TASKS))
        drafting.in_turns(engines, [drafting.questions(task, 1, "first")], part)  # an engine's first steps are slower
        asked = [drafting.questions(task, count, setting.seed + number) for number in range(rounds)]
        times = drafting.in_turns(engines, asked, part)
        samples[f"{name}-faster"] = drafting.faster(times, ON.name)
        samples[f"{name}-tokens"] = times[ON.name].tokens
        notes += [f"{task}, {side}: {found.in_words()}" for side, found in times.items()]
    for made in engines.values():
        made.engine.executor.close()
    copies = {"json": "JSON", "code": "code"}
    pairs = [_rewrites(f"{setting.seed}/{number}") for number in range(1 if setting.quick else 5)]
    said = rewrites.large(ON, pairs, drafting.encode, share(setting.progress, 0.5, 0.95))
    for name, times in said.items():
        samples[f"large-{name}-faster"] = drafting.faster(times, ON.name)
        samples[f"large-{name}-tokens"] = times[ON.name].tokens
        notes += [f"1B shape, {copies[name]}, {side}: {found.in_words()}" for side, found in times.items()]
    setting.progress("equal tokens", 0.95)
    mixed = [one for task in TASKS.values() for one in drafting.questions(task, 2 if setting.quick else 6, setting.seed)]
    return Outcome(samples=samples, notes=notes, guards=[drafting.same_tokens(ON, mixed)])


def _rewrites(seed: str) -> dict[str, rewrites.Rewrite]:
    rng = random.Random(seed)
    return {"json": rewrites.json_rewrite(rng), "code": rewrites.code_edit(rng, drafting.texts())}


CLAIM = Claim(
    name="prompt-lookup",
    title="Drafts copied from the text itself",
    paper="Prompt Lookup Decoding (Saxena, 2023); Inference with Reference: Lossless Acceleration of Large Language Models "
    "(Yang et al., 2023); SAM Decoding (Hu et al., 2024)",
    workload="the built-in model, one request at a time, held-out questions of the testbed, greedy; times after the "
    "first token; the shape of Llama-3.2-1B with random weights in bfloat16, which is made to say a list of records with one "
    "value changed, and functions with one variable renamed, behind the originals",
    baseline="the plain engine",
    technique="prompt-lookup at its defaults",
    requirements=(
        Requirement(
            name="copying-faster",
            what="time a token, off over on, copying 64 words",
            paper="2x to 4x on tasks whose output repeats their input",
            unit="x",
            at_least=2.5,
        ),
        Requirement(name="copying-tokens", what="tokens a step, copying 64 words", at_least=3.0),
        Requirement(name="json-faster", what="time a token, off over on, facts as JSON", unit="x"),
        Requirement(name="json-tokens", what="tokens a step, facts as JSON"),
        Requirement(name="calls-faster", what="time a token, off over on, calls of functions", unit="x"),
        Requirement(name="calls-tokens", what="tokens a step, calls of functions"),
        Requirement(
            name="arithmetic-faster", what="time a token, off over on, sums with written steps", unit="x", at_least=0.9
        ),
        Requirement(name="arithmetic-tokens", what="tokens a step, sums with written steps"),
        Requirement(name="rules-faster", what="time a token, off over on, short answers by rules", unit="x", at_least=0.9),
        Requirement(name="rules-tokens", what="tokens a step, short answers by rules"),
        Requirement(
            name="large-json-faster", what="1B shape, time a token, off over on, JSON rewritten", paper="2x to 4x", unit="x",
            at_least=2.5,
        ),
        Requirement(name="large-json-tokens", what="tokens a step, JSON rewritten"),
        Requirement(
            name="large-code-faster", what="1B shape, time a token, off over on, code edited", paper="2x to 4x", unit="x",
            at_least=2.5,
        ),
        Requirement(name="large-code-tokens", what="tokens a step, code edited"),
    ),
    run=run,
)  # fmt: skip
