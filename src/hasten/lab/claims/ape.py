"""`ape`: many contexts encoded beside each other, attention to them sharpened and weighted, against reading them in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hasten.lab.claims import chunk_reuse as reuse
from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.chunk_reuse import PLAIN, Shape
from hasten.lab.claims.sides import Side, share

if TYPE_CHECKING:
    from hasten.lab.bench.rag import Kind
    from hasten.lab.bench.rag_runs import Answers

CONTEXTS = 32
OWN = Shape(pieces=2 * CONTEXTS, tokens=128, each=CONTEXTS, facts=1, cut=0)
ACROSS = Shape(pieces=2 * CONTEXTS, tokens=128, each=CONTEXTS, facts=1, cut=16, links=16)
"""Two in three questions need two contexts."""
BEYOND = Shape(pieces=96, tokens=128, each=80, facts=1, cut=0)
"""10,240 tokens: more than the built-in model has positions for, if they are read in a row."""
PARALLEL = Side("parallel", ("ape:temperature=1:scale=1",))
GRID = tuple((temperature, scale) for temperature in (1.0, 0.9, 0.8) for scale in (1.0, 0.9, 0.8))
QUICK_GRID = ((1.0, 1.0), (0.9, 0.9), (0.8, 0.9))
TWO: tuple[Kind, ...] = ("cut", "linked")
"""Questions that need two contexts."""
EXACT = 1e-4


def tuned(temperature: float, scale: float) -> Side:
    return Side(f"ape T={temperature:g} S={scale:g}", (f"ape:temperature={temperature:g}:scale={scale:g}",))


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench.rag_runs import Ways

    rounds, queries, asked, prompts = (2, 1, 6, 2) if setting.quick else (5, 1, 16, 3)
    setting.progress("one context", 0.0)
    guard = one_context(setting.seed)
    grid = QUICK_GRID if setting.quick else GRID
    candidates = [tuned(*pair) for pair in grid]
    base = Ways((PLAIN,), reuse.COMMON)
    tuning: list[dict[str, Answers]] = []
    for number, side in enumerate(candidates):  # one at a time, for the memory
        ways = Ways((side,), reuse.COMMON, material=base.material)
        tuning += reuse.ask(
            ways, OWN, [side.name], rounds=1 if setting.quick else 2, queries=1, questions=asked,
            seed=setting.seed + reuse.TUNING,
            progress=share(setting.progress, 0.05 + 0.35 * number / len(grid), 0.05 + 0.35 * (number + 1) / len(grid)),
        )  # fmt: skip
        ways.close()
    ours = best(candidates, tuning)
    sides = (PLAIN, PARALLEL, ours)
    names = [side.name for side in sides]
    ways = Ways(sides, reuse.COMMON, material=base.material)
    own = reuse.ask(
        ways, OWN, names, rounds=rounds, queries=queries, questions=asked, seed=setting.seed,
        progress=share(setting.progress, 0.4, 0.7),
    )  # fmt: skip
    across = reuse.ask(
        ways, ACROSS, names, rounds=1 if setting.quick else 2, queries=queries, questions=asked, seed=setting.seed + 100,
        progress=share(setting.progress, 0.7, 0.8),
    )  # fmt: skip
    beyond = reuse.ask(
        ways, BEYOND, names[1:], rounds=1 if setting.quick else 2, queries=1, questions=asked, seed=setting.seed + 300,
        progress=share(setting.progress, 0.8, 0.85),
    )  # fmt: skip
    firsts = reuse.speed(
        ways, OWN, names, rounds=2 if setting.quick else 3, queries=prompts, seed=setting.seed + 200,
        progress=share(setting.progress, 0.85, 1.0),
    )  # fmt: skip
    ways.close()
    base.close()
    return Outcome(
        samples={
            "ttft": reuse.ttft_ratios(firsts, ours.name),
            "saved": reuse.saved(firsts, ours.name),
            # Over all questions: a round has too few for a median of rounds.
            "kept": [100 * _right(own, ours.name) / plain if (plain := _right(own, PLAIN.name)) else 0.0],
            "above": [_right(own, ours.name) - _right(own, PARALLEL.name)],
            "beyond": [_right(beyond, ours.name)],
            "beyond-parallel": [_right(beyond, PARALLEL.name)],
            **{f"lost-{kind}": [_lost(across, ours.name, kind)] for kind in TWO},
        },
        guards=[guard],
        notes=[
            f"tuned on other libraries: {ours.name}; right there: "
            + ", ".join(f"{side.name[4:]} {_right(tuning, side.name):.0f} %" for side in candidates),
            *(f"within a context: {words}" for words in reuse.in_words(own, names)),
            *(f"with two contexts: {words}" for words in reuse.in_words(across, names)),
            f"{BEYOND.each} contexts, {BEYOND.each * BEYOND.tokens:,} tokens, have no baseline: in a row they are more than "
            "the built-in model has positions for",
        ],
        details={"tuning": {side.name: _right(tuning, side.name) for side in candidates}, "chosen": ours.name},
    )


def best(candidates: Sequence[Side], tuning: reuse.Rounds) -> Side:
    """That with most right answers; of several the first, which changes attention least."""
    return max(candidates, key=lambda side: _right(tuning, side.name))


def _right(rounds: reuse.Rounds, name: str) -> float:
    from hasten.lab.bench.rag_runs import pooled

    return pooled(rounds)[name].points()


def _lost(rounds: reuse.Rounds, name: str, kind: Kind) -> float:
    from hasten.lab.bench.rag_runs import lost, pooled

    every = pooled(rounds)
    return lost(every[PLAIN.name], every[name], kind)


def one_context(seed: int) -> Guard:
    """With one context and temperature and scale 1, attention is the ordinary one."""
    from hasten.engine.request import SamplingParams
    from hasten.lab.bench.rag_runs import Ways

    ways = Ways((PLAIN, PARALLEL), (*reuse.COMMON, "model.dtype=float32"))
    books = OWN.library(ways, seed)
    sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=10)
    furthest = 0.0
    for question in books.questions[:4]:
        scores = []
        for llm in ways.llms.values():
            (done,) = llm.generate([books.prompt(question.pieces, question)], sampling)
            found = done.choices[0].logprobs[0]
            assert found is not None
            scores.append(dict(found.top))
        plain, parallel = scores
        likely = sorted(plain, key=plain.__getitem__)[-5:]  # of ten, whose last may be others where two are as likely
        furthest = max(furthest, *(abs(plain[token] - parallel.get(token, float("-inf"))) for token in likely))
    ways.close()
    return Guard("one context at temperature and scale 1 is ordinary attention", furthest <= EXACT,
                 f"log-probabilities of first tokens differ by {furthest:.1e} at most, float32")  # fmt: skip


CLAIM = Claim(
    name="ape",
    title="Contexts encoded in parallel, attention to them realigned",
    paper="APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding (2025)",
    workload=f"built-in model, bfloat16; {CONTEXTS} contexts of 128 tokens with a fact each out of {OWN.pieces}, in changing "
    "order, every one seen before; questions about a fact in one context, and others that need two",
    baseline="the plain engine, which reads the contexts in a row, with its prefix cache",
    technique="ape with the temperature and scale that are best on other libraries, of "
    f"{len(GRID)} pairs (quick: {len(QUICK_GRID)}); and temperature and scale 1, plain parallel encoding",
    requirements=(
        Requirement(
            name="ttft", what="time to first token, prefix cache over ape", paper="4.5x end to end at 128K", unit="x",
            at_least=5.0,
        ),
        Requirement(
            name="saved", what="tokens that the prefix cache computes, saved", paper="28x less prefill at 128K", unit="%",
        ),
        Requirement(
            name="kept", what="right answers, of those of reading in a row", paper="98 % (retrieval), 93 % (examples)",
            unit="%", at_least=95.0,
        ),
        Requirement(
            name="above", what="points above plain parallel encoding", paper="3.6 to 7.9 %", unit="points", at_least=0.1,
        ),
        Requirement(name="beyond", what=f"right answers from {BEYOND.each} contexts, more than fit in a row", unit="%"),
        Requirement(name="beyond-parallel", what="the same, plain parallel encoding", unit="%"),
        Requirement(name="lost-cut", what="points lost where a cut between contexts went through the fact", unit="points"),
        Requirement(name="lost-linked", what="points lost where another context explains a name", unit="points"),
    ),
    run=run,
)  # fmt: skip
