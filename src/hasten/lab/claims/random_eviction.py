"""The control `random-eviction`: what a random quarter of the keys costs on tasks that need a particular one."""

from __future__ import annotations

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.quality import rounds_of, same_answers
from hasten.lab.claims.sides import Side

RECALL, NEEDLE = "recall:pairs=16,length=2048", "needle:length=4096"
COMMON = ("model.max_length=8192",)
SEEDS = (0, 1, 2)
SIDES = tuple(Side(f"seed {seed}", (f"random-eviction:share=0.25:seed={seed}",)) for seed in SEEDS)
WHOLE = Side("all keys", ("random-eviction:share=1",))


def run(setting: Setting) -> Outcome:
    rounds, n = (2, 6) if setting.quick else (3, 20)
    guard = same_answers(WHOLE, {RECALL: 4 if setting.quick else 16}, seed=setting.seed + 500, common=COMMON)
    found = rounds_of(
        SIDES, {RECALL: n, NEEDLE: n // 2}, rounds=rounds, seed=setting.seed, common=COMMON, progress=setting.progress
    )
    return Outcome(
        samples={
            name: [points for side in SIDES for points in found.lost(side, task)]
            for name, task in (("recall", RECALL), ("needle", NEEDLE))
        },
        guards=[guard],
        notes=[
            "a quality control, never timed; both sides answer the same held-out questions",
            f"every round is asked with {len(SEEDS)} seeds of the eviction, as one seed loses the same positions always",
        ],
        details={"scores": found.scores},
    )


CLAIM = Claim(
    name="random-eviction",
    title="Control: a random quarter of the keys",
    paper="the control of H2O: Heavy-Hitter Oracle (Zhang et al., 2023) and its successors",
    workload=f"built-in model; {RECALL} and {NEEDLE} of the testbed, held-out wordings and texts",
    baseline="the plain engine",
    technique="random-eviction:share=0.25 with three seeds (every query sees a random quarter of the keys before it)",
    requirements=(
        Requirement(name="recall", what="points lost on recall of 16 pairs in 2k tokens", unit="points", at_least=30),
        Requirement(name="needle", what="points lost on a needle in 4k tokens", unit="points", at_least=30),
    ),
    run=run,
)
