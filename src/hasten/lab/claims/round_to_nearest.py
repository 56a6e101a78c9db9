"""The control `round-to-nearest`: what weights of few bits cost when nothing is done about it."""

from __future__ import annotations

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.quality import rounds_of
from hasten.lab.claims.sides import Side

SUMS, RECALL, TEXT = "arithmetic", "recall", "json"
BITS = (2, 3, 4, 8)
SIDES = tuple(Side(f"{bits} bits", (f"round-to-nearest:bits={bits}",)) for bits in BITS)


def run(setting: Setting) -> Outcome:
    rounds, n = (3, 8) if setting.quick else (5, 40)
    found = rounds_of(
        SIDES, {SUMS: n, RECALL: n, TEXT: n}, rounds=rounds, seed=setting.seed, common=(), progress=setting.progress
    )
    return Outcome(
        samples={
            **{f"sums-{bits}": found.lost(side, SUMS) for bits, side in zip(BITS, SIDES, strict=True)},
            **{f"recall-{bits}": found.lost(side, RECALL) for bits, side in zip(BITS, SIDES, strict=True)},
            **{f"json-{bits}": found.lost(side, TEXT) for bits, side in zip(BITS, SIDES, strict=True)},
        },
        notes=["a quality control, never timed; all sides answer the same held-out questions"],
        details={"scores": found.scores},
    )


def _requirements() -> tuple[Requirement, ...]:
    what = {"sums": "3-operand sums with written steps", "recall": "recall of 16 pairs", "json": "JSON for a schema"}
    at_least, at_most = {("sums", 2): 20.0}, {("sums", 8): 3.0, ("recall", 8): 3.0}
    return tuple(
        Requirement(
            name=f"{name}-{bits}",
            what=f"points lost on {task} at {bits} bits",
            unit="points",
            at_least=at_least.get((name, bits)),
            at_most=at_most.get((name, bits)),
        )
        for name, task in what.items()
        for bits in BITS
    )


CLAIM = Claim(
    name="round-to-nearest",
    title="Control: weights rounded to the nearest of few levels",
    paper="the baseline of GPTQ (Frantar et al., 2022), AWQ (Lin et al., 2023) and their successors",
    workload=f"built-in model; {SUMS}, {RECALL} and {TEXT} of the testbed, held-out wordings",
    baseline="the plain engine (bf16)",
    technique="round-to-nearest with 2, 3, 4 and 8 bits, groups of 64 input columns, head and embedding left alone",
    requirements=_requirements(),
    run=run,
)
