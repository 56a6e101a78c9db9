"""`cachegen`: bytes, quality and rates of KV as a bitstream, and time to first token over a link whose bandwidth changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.cachegen_link import DEADLINE, over_trace
from hasten.lab.claims.sides import share

if TYPE_CHECKING:
    from hasten.lab.bench.kv_prefix import PrefixLab
    from hasten.lab.bench.kv_quality import Quality

RECALL = "recall:pairs=16,length=2048"
TASKS = {RECALL: 24, "recall:pairs=16,length=4096": 8, "needle:length=4096": 4, "tracing": 12}
QUICK_TASKS = {RECALL: 2, "tracing": 3}
SETTINGS = ("model.dtype=bfloat16", "model.max_length=8192", f"kv.memory_bytes={256 << 20}", "scheduling.max_tokens=2048")
FORMS = ("channel", "anchor", "scaled")
LEVEL, COARSEST = 1, 2
"""The default, and the one that the controller takes where time is short."""


def run(setting: Setting) -> Outcome:
    from hasten.engine.llm import LLM
    from hasten.lab.bench.kv_coding import overhead, rates
    from hasten.lab.bench.kv_prefix import PrefixLab

    lab = PrefixLab(LLM(set_=SETTINGS))
    tasks, texts, rounds = (QUICK_TASKS, 1, 3) if setting.quick else (TASKS, 3, 7)
    asked, longer = _qualities(lab, tasks, texts, rounds, setting)
    setting.progress("rates of the coder", 0.5)
    speed = [rates(rounds=1 if setting.quick else 5, seed=setting.seed + number) for number in range(rounds)]
    link = over_trace(lab, setting)
    lab.llm.engine.executor.close()
    megabytes_s = {
        f"{name}-{threads}": [one.plain_bytes / 1e6 / getattr(one, f"{name}_s")[threads] for one in speed]
        for name in ("encode", "decode")
        for threads in (1, 2)
    }
    ours, coarsest, plain, int8, int4, int2 = (
        [one[name] for one in asked] for name in ("cachegen", "coarsest", "plain", "int8", "int4", "int2")
    )
    control = mean(_points(plain)) - mean(_points(int2))
    symbols = mean(one.symbols / 1e6 / one.decode_s[1] for one in speed)
    return Outcome(
        samples={
            "bytes-int8": _ratios(int8, ours),
            "bytes-int4": _ratios(int4, ours),
            "lost": [a - b for a, b in zip(_points(plain), _points(ours), strict=True)],
            "lost-coarsest": [a - b for a, b in zip(_points(plain), _points(coarsest), strict=True)],
            "lost-int8": [a - b for a, b in zip(_points(plain), _points(int8), strict=True)],
            "lost-int4": [a - b for a, b in zip(_points(plain), _points(int4), strict=True)],
            "perplexity": [100 * (a.perplexity / b.perplexity - 1) for a, b in zip(ours, plain, strict=True)],
            "perplexity-coarsest": [100 * (a.perplexity / b.perplexity - 1) for a, b in zip(coarsest, plain, strict=True)],
            **longer,
            "entropy": [overhead(setting.seed + number) for number in range(rounds)],
            **megabytes_s,
            "hidden": [one.hidden(2) for one in speed],
            **link.samples,
        },
        guards=[
            Guard(
                "rounding to as many bytes is visibly worse",
                control >= 5,
                f"2 bits in groups of 32, {int2[0].bytes_a_token:.0f} bytes a token, lose {control:.1f} points; "
                f"cachegen has {ours[0].bytes_a_token:.0f} bytes",
            ),
            *link.guards,
        ],
        notes=[
            f"bytes a token: bfloat16 {plain[0].bytes_a_token:.0f}, int8 {int8[0].bytes_a_token:.0f}, "
            f"int4 {int4[0].bytes_a_token:.0f}, cachegen {ours[0].bytes_a_token:.0f}, "
            f"its coarsest level {coarsest[0].bytes_a_token:.0f}, statistics and heads included",
            "the form of the paper (differences to an anchor) and that of the released code (values scaled by the token's "
            "maximum) are coded with the same bins, so with the same error",
            f"a thread decodes {symbols:.0f} million symbols a second, from the chunk to the planes, rotation included",
            "quality: the KV of all but the last 72 tokens of a prompt is coded and decoded, then the engine goes on from it",
            *link.notes,
        ],
        details={
            "right": [{name: quality.right for name, quality in one.items()} for one in asked],
            "perplexity": [{name: quality.perplexity for name, quality in one.items()} for one in asked],
            **link.details,
        },
        pictures=link.pictures,
    )


# -- quality ------------------------------------------------------------------------------------------------------------


def _qualities(
    lab: PrefixLab, tasks: Mapping[str, int], texts: int, rounds: int, setting: Setting
) -> tuple[list[dict[str, Quality]], dict[str, list[float]]]:
    """Of every round, by what the KV went through; and how many times as long the other forms are, which are not asked: their
    errors are the same."""
    from hasten.lab.bench import kv_rounding as rounding
    from hasten.lab.bench.kv_quality import Questions

    trips: dict[str, rounding.RoundTrip] = {
        "plain": rounding.plain,
        "int8": rounding.int8,
        "int4": rounding.int4,
        "int2": rounding.int2,
        "cachegen": rounding.bitstream(lab.cos_sin, LEVEL),
        "coarsest": rounding.bitstream(lab.cos_sin, COARSEST),
    }
    found = []
    longer: dict[str, list[float]] = {form: [] for form in FORMS[1:]}
    for number in range(rounds):
        progress = share(setting.progress, 0.5 * number / rounds, 0.5 * (number + 1) / rounds)
        questions = Questions(lab, tasks, texts, setting.seed + number, progress)
        one = {}
        for name, trip in trips.items():
            progress(f"round {number + 1} of {rounds}: {name}", 0.5)
            one[name] = questions.through(trip)
        bytes_of = {form: questions.weighed(rounding.bitstream(lab.cos_sin, LEVEL, form=form)) for form in FORMS}
        for form in FORMS[1:]:
            longer[form].append(bytes_of[form] / bytes_of[FORMS[0]])
        found.append(one)
    return found, longer


def _points(qualities: Sequence[Quality]) -> list[float]:
    """Per cent of all questions right."""
    return [100 * mean(right for task in one.right.values() for right in task) for one in qualities]


def _ratios(theirs: Sequence[Quality], ours: Sequence[Quality]) -> list[float]:
    return [a.bytes_a_token / b.bytes_a_token for a, b in zip(theirs, ours, strict=True)]


PAPER = "3.7 to 4.3x less bandwidth, 2.7 to 3x lower delay of fetching and processing than recent methods, at similar quality"

CLAIM = Claim(
    name="cachegen",
    title="KV cache as a streamed bitstream",
    paper="CacheGen: KV Cache Compression and Streaming for Fast Large Language Model Serving (Liu et al., SIGCOMM 2024)",
    workload="built-in model, bfloat16; quality: held-out questions and texts of the testbed (recall of 16 pairs in 2k and 4k "
    "tokens, a needle in 4k, tracing); link: a recall prompt of 7.8k tokens (quick: 4k) in chunks of 1,536 over a loopback "
    "socket THROTTLED along a drawn trace of 2 to 1,000 Mb/s; coder: random KV of two layers of Qwen3-0.6B's shape",
    baseline="the same KV in int8 for each token and head, 4 bits in groups of 32, or raw; the prompt computed from its text",
    technique=f"cachegen, level {LEVEL}; over the link, a controller with all levels, raw KV and the text to choose from",
    requirements=(
        Requirement(name="bytes-int8", what="bytes, int8 over cachegen", paper=PAPER, unit="x", at_least=3.0),
        Requirement(name="bytes-int4", what="bytes, groupwise int4 over cachegen", unit="x", at_least=1.0),
        Requirement(name="lost", what="points lost over all questions, cachegen", unit="points", at_most=1.0),
        Requirement(name="lost-coarsest", what=f"the same, level {COARSEST}", unit="points", at_most=1.0),
        Requirement(name="lost-int8", what="the same, int8", unit="points"),
        Requirement(name="lost-int4", what="the same, groupwise int4", unit="points"),
        Requirement(name="perplexity", what="perplexity of text behind a coded prefix, over exact KV", unit="%", at_most=1.0),
        Requirement(name="perplexity-coarsest", what=f"the same, level {COARSEST}", unit="%", at_most=1.0),
        Requirement(name="anchor", what="bytes at the same bins, differences to an anchor over values", unit="x"),
        Requirement(name="scaled", what="bytes at the same bins, values scaled by their token's maximum over values", unit="x"),
        Requirement(name="entropy", what="length of streams over their entropy", unit="%", at_most=1.0),
        Requirement(name="encode-1", what="encoding, one thread", unit="MB of bfloat16/s"),
        Requirement(name="encode-2", what="encoding, two threads", unit="MB of bfloat16/s"),
        Requirement(name="decode-1", what="decoding, one thread", unit="MB of bfloat16/s"),
        Requirement(name="decode-2", what="decoding, two threads", unit="MB of bfloat16/s"),
        Requirement(name="hidden", what="decoding on two threads over the transfer at 1 Gb/s", unit="x", at_most=1.0),
        Requirement(
            name="adaptive-worst", what="time to first token, adaptive over the best fixed form, worst point of the trace",
            unit="x", at_most=1.1,
        ),
        Requirement(name="adaptive", what="the same, over the points of the trace", unit="x"),
        Requirement(name="raw", what="raw KV over adaptive, best point of the trace", paper=PAPER, unit="x", at_least=2.0),
        Requirement(name="int8", what="int8 KV over adaptive, best point of the trace", unit="x", at_least=2.0),
        Requirement(name="text", what="computing from the text over adaptive, best point of the trace", unit="x", at_least=2.0),
        Requirement(name="misses", what=f"deadlines missed, adaptive ({DEADLINE:g} of the text's time)", unit="%"),
        Requirement(
            name="misses-fewer", what="deadlines that raw KV, int8 and the text miss at least, less those that adaptive misses",
            unit="points", at_least=1.0,
        ),
        Requirement(name="exact", what="chunks that came exact, adaptive with a deadline", unit="%"),
    ),
    run=run,
)  # fmt: skip
