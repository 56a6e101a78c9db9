"""The control `sink-window`: what a quarter of the keys, the first and the latest ones, costs where the rest is needed."""

from __future__ import annotations

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.quality import rounds_of, same_answers
from hasten.lab.claims.sides import Side

RECALL, NEEDLE = "recall:pairs=16,length=2048", "needle:length=4096"
COMMON = ("model.max_length=8192",)
BUDGET = Side("budget", ("sink-window:share=0.25",))
EXACT = Side("exact prefill", ("sink-window:share=0.25:prefill=exact",), ("kv.reuse=none",))
WHOLE = Side("all keys", ("sink-window:share=1",))


def run(setting: Setting) -> Outcome:
    rounds, n = (3, 6) if setting.quick else (5, 24)
    guard = same_answers(WHOLE, {RECALL: 4 if setting.quick else 16}, seed=setting.seed + 500, common=COMMON)
    found = rounds_of(
        (BUDGET, EXACT), {RECALL: n, NEEDLE: n // 2}, rounds=rounds, seed=setting.seed, common=COMMON,
        progress=setting.progress,
    )  # fmt: skip
    return Outcome(
        samples={
            "recall": found.lost(BUDGET, RECALL),
            "needle": found.lost(BUDGET, NEEDLE),
            "recall-exact": found.lost(EXACT, RECALL),
            "needle-exact": found.lost(EXACT, NEEDLE),
        },
        guards=[guard],
        notes=[
            "a quality control, never timed; both sides answer the same held-out questions",
            "with the prompt computed in full the question has read everything before the cache is cut, and the first token of "
            "the answer is exact: what is lost there is in the later tokens",
        ],
        details={"scores": found.scores},
    )


CLAIM = Claim(
    name="sink-window",
    title="Control: sinks and a window at a quarter of the keys",
    paper="Efficient Streaming Language Models with Attention Sinks (Xiao et al., 2023)",
    workload=f"built-in model; {RECALL} and {NEEDLE} of the testbed, held-out wordings and texts",
    baseline="the plain engine",
    technique="sink-window:share=0.25 (every query sees a quarter of the keys before it), and the same with prefill=exact",
    requirements=(
        Requirement(name="recall", what="points lost on recall of 16 pairs in 2k tokens", unit="points", at_least=30),
        Requirement(name="needle", what="points lost on a needle in 4k tokens", unit="points", at_least=30),
        Requirement(name="recall-exact", what="points lost on recall, prompt computed in full", unit="points"),
        Requirement(name="needle-exact", what="points lost on the needle, prompt computed in full", unit="points"),
    ),
    run=run,
)
