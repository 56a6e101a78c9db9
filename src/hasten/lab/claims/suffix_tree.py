"""`suffix-tree`: applications whose answers are alike, with and without drafts from earlier ones."""

from __future__ import annotations

from hasten.lab.claims import drafting
from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.drafting import OFF
from hasten.lab.claims.sides import Side, share

ON = Side("suffix-tree", ("suffix-tree",))
CHAINED = Side("chained", ("prompt-lookup", "suffix-tree"))
TASKS = {"json": "json", "calls": "calls", "sql": "sql", "copying": "copying:words=24"}
"""The last has answers that are not alike."""


def run(setting: Setting) -> Outcome:
    rounds, count, before = (3, 2, 12) if setting.quick else (9, 6, 48)
    sides = (OFF, ON, CHAINED)
    engines = {side.name: drafting.built(side) for side in sides}
    samples: dict[str, list[float]] = {}
    notes = []
    for place, (name, task) in enumerate(TASKS.items()):
        part = share(setting.progress, 0.85 * place / len(TASKS), 0.85 * (place + 1) / len(TASKS))
        part("earlier answers", 0.0)
        learned = drafting.questions(task, before, "before")
        for made in engines.values():
            drafting.teach(made, learned)
        asked = [drafting.questions(task, count, setting.seed + number) for number in range(rounds)]
        times = drafting.in_turns(engines, asked, part)
        samples[f"{name}-faster"] = drafting.faster(times, ON.name)
        samples[f"{name}-tokens"] = times[ON.name].tokens
        samples[f"{name}-chained"] = drafting.faster(times, CHAINED.name)
        notes += [f"{task}, {side}: {found.in_words()}" for side, found in times.items()]
        if name == "json":
            again = drafting.in_turns(engines, asked, part)
            samples["again-faster"] = drafting.faster(again, ON.name)
            samples["again-tokens"] = again[ON.name].tokens
    for made in engines.values():
        made.engine.executor.close()
    setting.progress("equal tokens", 0.9)
    mixed = [one for task in TASKS.values() for one in drafting.questions(task, 2 if setting.quick else 6, setting.seed)]
    return Outcome(samples=samples, notes=notes, guards=[drafting.same_tokens(CHAINED, mixed, twice=True)])


CLAIM = Claim(
    name="suffix-tree",
    title="Drafts from what an application said before",
    paper="SuffixDecoding: A Model-Free Approach to Speeding Up Large Language Model Inference (Oliaro et al., 2024)",
    workload="the built-in model, one request at a time, held-out questions of the testbed, greedy, each task an application "
    "that has answered 48 other questions before (quick: 12); times after the first token",
    baseline="the plain engine",
    technique="suffix-tree at its defaults; chained: behind prompt-lookup",
    requirements=(
        Requirement(
            name="json-faster",
            what="time a token, off over on, facts as JSON",
            paper="up to 5.3x on agents' workloads",
            unit="x",
            at_least=1.0,
        ),
        Requirement(name="json-tokens", what="tokens a step, facts as JSON"),
        Requirement(name="json-chained", what="time a token, off over chained, facts as JSON", unit="x"),
        Requirement(name="again-faster", what="time a token, off over on, the same questions again", unit="x", at_least=3.0),
        Requirement(name="again-tokens", what="tokens a step, the same questions again"),
        *(
            Requirement(name=f"{name}-{what}", what=words, unit=unit, at_least=required)
            for name, about, least in (("calls", "calls of functions", 1.3), ("sql", "SQL", 1.1), ("copying", "copying", 0.9))
            for what, words, unit, required in (
                ("faster", f"time a token, off over on, {about}", "x", least),
                ("tokens", f"tokens a step, {about}", "", None),
                ("chained", f"time a token, off over chained, {about}", "x", None),
            )
        ),
    ),
    run=run,
)
