"""`mpic`: pieces of text reused at any position, their first tokens computed again."""

from __future__ import annotations

from dataclasses import asdict

from hasten.lab.claims import chunk_reuse as reuse
from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.chunk_reuse import ALL, FEW, LARGE, NONE, PLAIN
from hasten.lab.claims.sides import Side, share

FIRST = 32
OTHERS = (4, 8, 64)
OURS = Side("mpic", (f"mpic:first={FIRST}",))
CHANCE = Side("random", (f"plain-chunks:recompute=random:tokens={FIRST}",))
SWEEP = tuple(Side(f"first {first}", (f"mpic:first={first}",)) for first in OTHERS)
MAIN = (PLAIN, OURS, NONE, CHANCE)


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench.rag_runs import Ways

    rounds, queries, prompts = (2, 3, 1) if setting.quick else (5, 6, 2)
    sides = MAIN if setting.quick else (*MAIN, *SWEEP, ALL)
    setting.progress("engines", 0.0)
    ways = Ways(sides, reuse.COMMON)
    names, main = [side.name for side in sides], [side.name for side in MAIN]
    large = [] if setting.quick else reuse.ask(
        ways, LARGE, main, rounds=3, queries=1, questions=9, seed=setting.seed, progress=share(setting.progress, 0.05, 0.3)
    )  # fmt: skip
    small = reuse.ask(
        ways, FEW, main, rounds=rounds, queries=queries, questions=3, seed=setting.seed,
        progress=share(setting.progress, 0.3, 0.6),
    )  # fmt: skip
    sweep = small if setting.quick else reuse.ask(
        ways, FEW, names, rounds=1, queries=queries, questions=3, seed=setting.seed + 100,
        progress=share(setting.progress, 0.6, 0.75),
    )  # fmt: skip
    of_large = reuse.speed(
        ways, LARGE, [PLAIN.name, OURS.name, NONE.name], rounds=rounds, queries=prompts, seed=setting.seed + 200,
        progress=share(setting.progress, 0.75, 0.9),
    )  # fmt: skip
    of_small = reuse.speed(
        ways, FEW, names, rounds=2, queries=4 * prompts, seed=setting.seed + 300,
        progress=share(setting.progress, 0.9, 1.0),
    )  # fmt: skip
    ways.close()
    both = [*large, *small]
    found = reuse.points(
        sweep, of_small, {"mpic": [OURS.name, *(side.name for side in SWEEP)], "any tokens": [CHANCE.name],
                          "nothing": [NONE.name], "everything": [ALL.name], "prefix cache": [PLAIN.name]},
    )  # fmt: skip
    return Outcome(
        samples={
            "ttft-large": reuse.ttft_ratios(of_large, OURS.name),
            "ttft-small": reuse.ttft_ratios(of_small, OURS.name),
            "ttft-least": reuse.ttft_ratios(of_large, NONE.name),
            "saved-large": reuse.saved(of_large, OURS.name),
            "saved-small": reuse.saved(of_small, OURS.name),
            "lost": [reuse.lost(both, OURS.name)],
            "lost-none": [reuse.lost(both, NONE.name)],
            "lost-random": [reuse.lost(both, CHANCE.name)],
        },
        guards=reuse.controls(both, OURS.name, NONE.name, CHANCE.name),
        notes=[
            *(f"512 tokens: {words}" for words in (reuse.in_words(large, main) if large else [])),
            *(f"128 tokens: {words}" for words in reuse.in_words(small, main)),
        ],
        details={"points": [asdict(point) for point in found]},
        pictures={"mpic": reuse.picture(found)},
    )


CLAIM = Claim(
    name="mpic",
    title="Chunks reused at any position, their first tokens computed again",
    paper="MPIC: Position-Independent Multimodal Context Caching System for Efficient MLLM Serving (2025)",
    workload="built-in model, bfloat16; texts with facts in pieces of one length: 8 of 512 tokens in changing order, and 5 of "
    f"128, by Zipf's law, of {FEW.pieces}; questions about facts within a piece, facts that the cut between two pieces went "
    "through, and names that another piece explains; for speed every piece was seen once before",
    baseline="the plain engine with its prefix cache, on the same prompts in turn; for answers that is full computation",
    technique=f"mpic:first={FIRST}",
    requirements=(
        Requirement(
            name="ttft-large", what="time to first token, prefix cache over mpic, 8 pieces of 512",
            paper="up to 54 % lower than context caching (images)", unit="x", at_least=2.0,
        ),
        Requirement(name="ttft-small", what="the same, 5 pieces of 128", unit="x", at_least=1.5),
        Requirement(name="ttft-least", what="the same, 8 pieces of 512, nothing computed again: the most to be had", unit="x"),
        Requirement(name="saved-large", what="tokens that the prefix cache computes, saved, 8 pieces of 512", unit="%"),
        Requirement(name="saved-small", what="the same, 5 pieces of 128", unit="%"),
        Requirement(
            name="lost", what="points of all questions below full computation", paper="negligible or none", unit="points",
            at_most=2.0,
        ),
        Requirement(name="lost-none", what="the same, nothing computed again", unit="points"),
        Requirement(name="lost-random", what=f"the same, any {FIRST} tokens of each piece", unit="points"),
    ),
    run=run,
)  # fmt: skip
