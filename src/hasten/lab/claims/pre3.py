"""`pre3`: coverage, mask times and whole answers of constrained decoding, beside llguidance and xgrammar where these are there
(the extra `grammar-bench`).

HASTEN_MASKBENCH names a second file in MaskBench's form, whose coverage is noted too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.lab.bench.mask_peers import INSTALLED
from hasten.lab.claims import constrained_coverage as coverage
from hasten.lab.claims import picture
from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.constrained_coverage import OURS, SAMPLE
from hasten.lab.claims.sides import share

if TYPE_CHECKING:
    from hasten.lab.bench.mask_vocabulary import Words
    from hasten.lab.bench.masks import Replayed

STRICT = "llguidance"
"""Compiles too few schemas to say which ones are compared."""
BATCHES = (1, 16, 64, 256)


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench import mask_grammars, masks
    from hasten.lab.bench.mask_peers import Hasten, peers
    from hasten.lab.bench.mask_vocabulary import words
    from hasten.lab.workloads.data import find

    quick, progress = setting.quick, setting.progress
    progress("reading the vocabulary and the schemas", 0.0)
    vocabulary = words()
    cases = masks.read(find(SAMPLE), vocabulary)
    drawn = masks.drawn(cases, 4)[2::8] if quick else masks.drawn(cases, 4)
    engines = [Hasten(vocabulary), *peers(vocabulary, whole=not quick)]
    results = masks.in_turns(engines, drawn, vocabulary, share(progress, 0.0, 0.4))
    compared = [name for name in results if name != STRICT]
    shared = masks.compiled_by_all(results, compared)
    rivals = [engine for engine in engines if engine.name in compared]
    progress("batches", 0.4)
    filled = masks.batches(rivals, results, BATCHES, vocabulary, 20 if quick else 100)
    progress("grammars written by hand", 0.45)
    grammars = mask_grammars.measure(rivals, vocabulary)
    covered = dict(results) if quick else coverage.covered(cases, vocabulary, share(progress, 0.5, 0.75))
    outcome = Outcome(
        samples={
            **coverage.samples(covered),
            **_speed(shared, results[OURS]),
            **_batches(filled),
            "grammars": [max(1e6 * _mean(of[OURS].masks) for of in grammars.values())],
        },
        notes=[
            f"vocabulary: {vocabulary.name}; {len(drawn)} schemas drawn evenly, {len(shared[OURS])} of them compiled by all of "
            f"{', '.join(compared)}",
            *_table(shared),
            *coverage.in_words(covered),
            *_grammars_in_words(grammars),
            "; ".join(
                f"batch of {size}: " + ", ".join(f"{name} {1e6 * of[size]:.0f} us" for name, of in filled.items())
                for size in BATCHES
            ),
        ],
        details={
            "times_us": {name: _quantiles(of) for name, of in shared.items()},
            "per_group": {name: masks.per_group(of) for name, of in covered.items()},
            "refused": {name: {one.case.id: one.refused for one in of if one.refused} for name, of in covered.items()},
            "wrong": {name: {one.case.id: one.wrong for one in of if one.wrong} for name, of in covered.items()},
            "batch_us": {name: {str(size): 1e6 * s for size, s in of.items()} for name, of in filled.items()},
        },
        pictures={"pre3": _plot(shared)},
    )
    if not INSTALLED:
        outcome.notes.append("no peer is installed (extra grammar-bench), so nothing is compared with one")
    if other := os.environ.get("HASTEN_MASKBENCH"):
        outcome.notes.append(coverage.second(Path(other), vocabulary))
    _answers(outcome, setting, vocabulary)
    return outcome


# Speed


def _speed(shared: Mapping[str, list[Replayed]], mine: Sequence[Replayed]) -> dict[str, list[float]]:
    """`shared`: what is compared; compilations are those of all schemas that were drawn, `mine`."""
    from hasten.lab.bench.masks import quantiles, together

    times = _quantiles(shared[OURS])
    compiled = quantiles([one.first_mask for one in mine], 1e-3)
    again = quantiles([one.again for one in mine if one.again], 1e-3)
    samples = {
        **{f"mask-{part}": [times["masks"][part]] for part in ("p50", "mean", "p95", "p99", "max")},
        **{f"cold-{part}": [times["cold"][part]] for part in ("mean", "p99", "max")},
        **{f"first-{part}": [compiled[part]] for part in ("p50", "p95", "max")},
        "again": [again["max"]],
        "commit": [times["commits"]["mean"]],
        "bytes": [max(one.bytes for one in mine) / 2**20],
    }
    for part in ("mean", "p99", "max"):
        others = [quantiles(together(of, "masks"))[part] for name, of in shared.items() if name not in (OURS, STRICT)]
        if others:
            samples[f"{part}-ahead"] = [min(others) / times["masks"][part]]
    return samples


def _quantiles(results: Sequence[Replayed]) -> dict[str, dict[str, float]]:
    from hasten.lab.bench.masks import quantiles, together

    return {
        **{what: quantiles(together(results, what)) for what in ("masks", "cold", "firsts", "commits")},
        "first_mask": quantiles([one.first_mask for one in results if not one.refused]),
        "MiB": {"max": max((one.bytes for one in results), default=0) / 2**20},
    }


def _table(shared: Mapping[str, list[Replayed]]) -> list[str]:
    """One line an engine."""
    lines = []
    for name, of in shared.items():
        times = _quantiles(of)
        masks, cold, first, commits = (times[what] for what in ("masks", "cold", "first_mask", "commits"))
        lines.append(
            f"{name} (compiles {sum(not one.refused for one in of)} of these {len(of)}): masks, us: "
            + ", ".join(f"{part} {masks[part]:.1f}" for part in ("p50", "mean", "p95", "p99", "max"))
            + f"; first replay: mean {cold['mean']:.1f}, p99 {cold['p99']:.0f}, max {cold['max']:.0f}"
            + f"; to the first, ms: p50 {first['p50'] / 1e3:.1f}, p95 {first['p95'] / 1e3:.1f}, max {first['max'] / 1e3:.0f}"
            + f"; commit {commits['mean']:.1f} us"
            + (f"; at most {times['MiB']['max']:.1f} MiB a schema" if times["MiB"]["max"] else "")
        )
    return lines


def _batches(filled: Mapping[str, Mapping[int, float]]) -> dict[str, list[float]]:
    samples = {f"batch-{size}": [1e6 * filled[OURS][size]] for size in BATCHES}
    theirs = [of[64] for name, of in filled.items() if name.startswith("xgrammar")]
    if theirs:
        samples["batch-64-share"] = [filled[OURS][64] / min(theirs)]
    return samples


def _grammars_in_words(grammars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"{name}, masks, us: "
        + "; ".join(
            f"{engine} mean {1e6 * _mean(of.masks):.1f}, max {1e6 * max(of.masks):.0f}" for engine, of in engines.items()
        )
        for name, engines in grammars.items()
    ]


def _mean(times: Sequence[float]) -> float:
    return sum(times) / len(times)


def _plot(shared: Mapping[str, list[Replayed]]) -> bytes:
    """What share of the positions takes longer than so many microseconds."""
    import numpy as np

    from hasten.lab.bench.masks import together

    figure, (warm, cold) = picture.axes(2)
    for axis, what, title in ((warm, "masks", "median of 5 replays"), (cold, "cold", "first replay")):
        for name, of in shared.items():
            times = np.sort(together(of, what)) * 1e6
            axis.step(times, 1 - np.arange(len(times)) / len(times), where="post", label=name, lw=2 if name == OURS else 1.2)
        axis.set(xscale="log", yscale="log", xlabel="us for a mask", title=title)
    warm.set_ylabel("share of positions that take longer")
    warm.legend(fontsize=8)
    return picture.png(figure)


# Whole answers


def _answers(outcome: Outcome, setting: Setting, words: Words) -> None:
    from hasten.lab.claims import constrained

    quick, progress = setting.quick, setting.progress
    rounds = 1 if quick else 9
    count, bad = constrained.validity(seeds=1 if quick else 8, seed=setting.seed, progress=share(progress, 0.75, 0.78))
    samples = {"valid": [100 * (1 - len(bad) / count)]}
    for begin, length, name, of, questions in (
        (0.78, 0.17, "", words, 1 if quick else 5),
        (0.95, 0.05, "-builtin", None, 8 if quick else 20),
    ):
        part = share(progress, begin, begin + 0.7 * length)
        for batch, kept in constrained.kept_speed(of, rounds=rounds, progress=part).items():
            samples[f"kept-{batch}{name}"] = kept
        part = share(progress, begin + 0.7 * length, begin + length)
        samples[f"forced{name}"] = constrained.forced_speed(of, count=questions, seed=setting.seed, progress=part)
    outcome.samples = {**outcome.samples, **samples}
    outcome.notes.append(f"{count} answers of the built-in model for {len(constrained.SCHEMAS)} schemas, {len(bad)} not valid")
    outcome.details["invalid"] = bad
    outcome.guards.append(constrained.everything_together())


# What is required

_COMPARED = (
    Requirement(name="coverage-ahead", what="coverage, points ahead of the better peer", unit="points", at_least=0),
    Requirement(name="mean-ahead", what="mean mask, the best peer's over ours", unit="x", at_least=1),
    Requirement(name="p99-ahead", what="99th percentile, the best peer's over ours", unit="x", at_least=1),
    Requirement(name="max-ahead", what="maximum, the best peer's over ours", unit="x", at_least=1),
)
_XGRAMMAR = (Requirement(name="batch-64-share", what="masks of a batch of 64, ours over xgrammar's", unit="x", at_most=0.5),)

CLAIM = Claim(
    name="pre3",
    title="Grammars as deterministic pushdown automata",
    paper="Pre^3: Enabling Deterministic Pushdown Automata for Faster Structured LLM Generation (2025)",
    workload="800 schemas of MaskBench with their instances, replayed token by token; masks on those of 4 schemas from each of "
    "15 groups that all engines compile, one thread, a position's time the median of 5 replays, a text's first mask apart; "
    "answers of the built-in model; random weights of Qwen3-0.6B's shape with 151,936 tokens",
    baseline="llguidance with its slices of JSON, as it is and lenient with coerce_one_of; xgrammar without cache, by default "
    "and with strict_mode=False (its coverage by bytes, since 800 schemas for the whole vocabulary take it most of an hour); "
    "for answers, decoding without constraint",
    technique="pre3 at its defaults; for forced tokens JSON in the schema's order, without blanks or as the model learnt it",
    requirements=(
        Requirement(name="coverage", what="schemas with every instance judged rightly", unit="%", at_least=95),
        Requirement(name="mask-p50", what="a mask, median", unit="us"),
        Requirement(name="mask-mean", what="a mask, mean", unit="us", at_most=25),
        Requirement(name="mask-p95", what="a mask, 95th percentile", unit="us"),
        Requirement(name="mask-p99", what="a mask, 99th percentile", unit="us", at_most=150),
        Requirement(name="mask-max", what="a mask, maximum", unit="us", at_most=1000),
        Requirement(name="cold-mean", what="a mask, first replay, mean", unit="us"),
        Requirement(name="cold-p99", what="a mask, first replay, 99th percentile", unit="us"),
        Requirement(name="cold-max", what="a mask, first replay, maximum", unit="us"),
        Requirement(name="first-p50", what="schema to first mask, median", unit="ms", at_most=5),
        Requirement(name="first-p95", what="schema to first mask, 95th percentile", unit="ms", at_most=100),
        Requirement(name="first-max", what="schema to first mask, maximum", unit="ms"),
        Requirement(name="again", what="the same for a schema asked for before, maximum", unit="ms", at_most=1),
        Requirement(name="commit", what="committing a token, mean", unit="us"),
        Requirement(name="bytes", what="a compiled schema with its masks, largest", unit="MiB"),
        *(Requirement(name=f"batch-{size}", what=f"masks of a batch of {size}, mean", unit="us") for size in BATCHES),
        Requirement(name="grammars", what="a mask of four grammars written by hand, mean, slowest grammar", unit="us"),
        *(_COMPARED if INSTALLED else ()),
        *(_XGRAMMAR if "xgrammar" in INSTALLED else ()),
        Requirement(name="valid", what="answers of the built-in model that are valid", unit="%", at_least=100),
        *(
            Requirement(
                name=f"kept-{batch}", what=f"tokens/s of unconstrained decoding kept, batch {batch}", unit="%", at_least=97
            )
            for batch in (1, 32)
        ),
        *(
            Requirement(name=f"kept-{batch}-builtin", what=f"the same on the built-in model, batch {batch}", unit="%")
            for batch in (1, 32)
        ),
        Requirement(
            name="forced", what="tokens/s with forced tokens over unconstrained, compact, mostly keys", unit="x", at_least=1
        ),
        Requirement(name="forced-builtin", what="the same, facts as JSON by the built-in model", unit="x"),
    ),
    run=run,
)
