"""`cache-craft`: pieces of text reused in new company, as much of them computed again as was measured to matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from hasten.lab.claims import chunk_reuse as reuse
from hasten.lab.claims import chunk_stream
from hasten.lab.claims.ape import PARALLEL
from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.chunk_reuse import ALL, FEW, NONE, PLAIN, SMALL
from hasten.lab.claims.sides import Side, share


def at(alpha: float) -> Side:
    return Side(f"alpha {alpha:g}", (f"cache-craft:alpha={alpha:g}",))


def at_random(alpha: float) -> Side:
    """As many tokens, any."""
    return Side("random", (f"cache-craft:alpha={alpha:g}:pick=random",))


def stopping(alpha: float, share: float) -> Side:
    """Mending ends early of chunks that have together this share of the question's attention; 1: of all."""
    return Side(f"stop {share:g}", (f"cache-craft:alpha={alpha:g}:stop_after={LAYERS}:stop_share={share:g}",))


LAYERS = 2
"""In a row that must rank a chunk low."""
ALPHAS = (1.0, 0.75, 0.5, 0.25)
SHARES = (0.1, 0.3, 0.6)
FIXED = tuple(Side(f"share {part}", (f"cache-craft:share={part}",)) for part in SHARES)
FIRSTS = tuple(Side(f"first {first}", (f"mpic:first={first}",)) for first in (8, 32, 64))
TOKENS = tuple(Side(f"any {count}", (f"plain-chunks:recompute=random:tokens={count}",)) for count in (32, 64))
MPIC = Side("mpic", ("mpic",))
AGEING = Side("mpic, cost-aware", ("mpic",), ("kv.chunk_retention=cost-aware",))


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench.rag_runs import Ways

    rounds, queries, prompts, asked = (2, 3, 3, 16) if setting.quick else (5, 8, 8, 120)
    setting.progress("engines", 0.0)
    candidates = {alpha: at(alpha) for alpha in (ALPHAS[::2] if setting.quick else ALPHAS)}
    base = Ways((PLAIN, *candidates.values()), reuse.COMMON)
    tuning = reuse.ask(
        base, FEW, list(base.llms), rounds=1 if setting.quick else 3, queries=queries, questions=3,
        seed=setting.seed + reuse.TUNING, seen=True, progress=share(setting.progress, 0.05, 0.2),
    )  # fmt: skip
    base.close()
    alpha = least(candidates, tuning)
    ours, chance = candidates[alpha], at_random(alpha)
    stop, stop_all = stopping(alpha, 0.25), stopping(alpha, 1.0)
    main = (PLAIN, ours, NONE, chance, stop, stop_all)
    others = () if setting.quick else (*candidates.values(), *FIXED, *FIRSTS, *TOKENS, PARALLEL, ALL)
    ways = Ways(dict.fromkeys((*main, *others)), reuse.COMMON, material=base.material)
    names, compared = list(ways.llms), [side.name for side in main]
    answers = reuse.ask(
        ways, FEW, compared, rounds=rounds, queries=queries, questions=3, seed=setting.seed,
        seen=True, progress=share(setting.progress, 0.2, 0.45),
    )  # fmt: skip
    sweep = answers if setting.quick else reuse.ask(
        ways, FEW, names, rounds=1, queries=queries, questions=3, seed=setting.seed + 100,
        seen=True, progress=share(setting.progress, 0.45, 0.6),
    )  # fmt: skip
    firsts = reuse.speed(
        ways, FEW, names, rounds=2 if setting.quick else 3, queries=prompts, seed=setting.seed + 200,
        progress=share(setting.progress, 0.6, 0.75),
    )  # fmt: skip
    ways.close()
    flow = chunk_stream.stream((PLAIN, ours, MPIC, AGEING), asked, setting.seed + 300, share(setting.progress, 0.75, 1.0))
    before, after = flow[PLAIN.name], flow[ours.name]
    found = reuse.points(
        sweep, firsts, {"cache-craft": [side.name for side in candidates.values()],
                        "cache-craft, fixed share": [side.name for side in FIXED], "cache-craft, at random": [chance.name],
                        "cache-craft, mending ends early": [stop.name, stop_all.name],
                        "mpic": [side.name for side in FIRSTS], "ape, T = S = 1": [PARALLEL.name],
                        "any tokens": [side.name for side in TOKENS], "nothing": [NONE.name],
                        "everything": [ALL.name], "prefix cache": [PLAIN.name]},
    )  # fmt: skip
    return Outcome(
        samples={
            "ttft": reuse.ttft_ratios(firsts, ours.name),
            "saved": reuse.saved(firsts, ours.name),
            "lost": [reuse.lost(answers, ours.name)],
            "lost-none": [reuse.lost(answers, NONE.name)],
            "lost-random": [reuse.lost(answers, chance.name)],
            "stop-saved": reuse.saved(firsts, stop.name),
            "stop-lost": [reuse.lost(answers, stop.name)],
            "stop-all-lost": [reuse.lost(answers, stop_all.name)],
            "stream-found": [after.found],
            "stream-saved": [100 * (1 - after.computed / before.computed)],
            "stream-p50": [before.wait(50) / after.wait(50)],
            "stream-p99": [before.wait(99) / after.wait(99)],
            "lru-found": [flow[MPIC.name].found],
            "cost-aware-found": [flow[AGEING.name].found],
        },
        guards=reuse.controls(answers, ours.name, NONE.name, chance.name),
        notes=[
            f"tuned on other libraries: alpha {alpha:g}; points lost there: "
            + ", ".join(f"{side.name[6:]} {reuse.lost(tuning, side.name):.1f}" for side in candidates.values()),
            *reuse.in_words(answers, compared),
            *chunk_stream.in_words(flow),
        ],
        details={"points": [asdict(point) for point in found], "alpha": alpha},
        pictures={"cache-craft": reuse.picture(found)},
    )


def least(candidates: Mapping[float, Side], tuning: reuse.Rounds) -> float:
    """The least alpha with which, as with all greater ones, nothing is lost; the greatest if each loses something."""
    best = max(candidates)
    for alpha in sorted(candidates, reverse=True):
        if reuse.lost(tuning, candidates[alpha].name) > 0:
            break
        best = alpha
    return best


CLAIM = Claim(
    name="cache-craft",
    title="Chunks reused in new company, mended by what was measured of them",
    paper="Cache-Craft: Managing Chunk-Caches for Efficient Retrieval-Augmented Generation (2025)",
    workload=f"built-in model, bfloat16; texts with facts in pieces of 128 tokens, 5 in a prompt, wanted by Zipf's law, of "
    f"{FEW.pieces} that were seen once in other company; a stream over {SMALL.pieces} with KV memory of "
    f"{chunk_stream.POOL >> 20} MiB; questions about facts within a piece, facts that the cut between two pieces went through, "
    "and names that another piece explains",
    baseline="the plain engine with its prefix cache, on the same prompts in turn; for answers that is full computation",
    technique=f"cache-craft with the least alpha of {', '.join(f'{alpha:g}' for alpha in ALPHAS)} (quick: every other one) "
    "that loses no answer on other libraries; in the stream also mpic with two ways of giving up chunks",
    requirements=(
        Requirement(
            name="ttft", what="time to first token, prefix cache over cache-craft", paper="2x lower latency in batches",
            unit="x", at_least=1.5,
        ),
        Requirement(
            name="saved", what="tokens that the prefix cache computes, saved", paper="51 % less redundant computing", unit="%",
            at_least=50.0,
        ),
        Requirement(name="lost", what="points of all questions below full computation", unit="points", at_most=2.0),
        Requirement(name="lost-none", what="the same, chunks computed alone and nothing of them again", unit="points"),
        Requirement(name="lost-random", what="the same, as many tokens as cache-craft at random", unit="points"),
        Requirement(name="stop-saved", what=f"tokens saved if mending may end after {LAYERS} layers", unit="%"),
        Requirement(name="stop-lost", what="points lost by that", unit="points"),
        Requirement(name="stop-all-lost", what="the same, whatever the question looks at", unit="points"),
        Requirement(name="stream-found", what="stream: pieces found", unit="%"),
        Requirement(name="stream-saved", what="stream: tokens that the prefix cache computes, saved", unit="%"),
        Requirement(name="stream-p50", what="stream: median of time to first token, prefix cache over cache-craft", unit="x"),
        Requirement(name="stream-p99", what="stream: 99th percentile of it", unit="x"),
        Requirement(name="lru-found", what="stream: pieces found by mpic, the one used least recently goes", unit="%"),
        Requirement(name="cost-aware-found", what="stream: the same, the one that saves least goes", unit="%"),
    ),
    run=run,
)  # fmt: skip
