"""FastSwitch (2024): cheap context switches under changing priorities, against block-by-block swapping that steps wait for.

Every side runs the same scheduler: priorities from one trace, memory by priority. They differ in how KV moves. The baseline
swaps as vLLM did when the paper was written: a copy a block and layer, steps wait until all are done, everything is sent every
time. The three parts of FastSwitch are added to it one by one, and taken from the whole one by one. All sides have vLLM's block
size and no prefix cache, as vLLM then; the two ends are compared with this engine's defaults of both as well.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.fastswitch_runs import (
    BASELINE,
    CONVERSATIONS,
    ENDS,
    FAST,
    LOAD,
    PLAIN,
    POOL_SHARE,
    QUICK,
    SIDES,
    STEMS,
    VLLM,
    guard,
    real,
    simulate,
)
from hasten.lab.claims.sides import share

if TYPE_CHECKING:
    from hasten.engine.kv.host import Traffic
    from hasten.lab.bench.run import Run


def run(setting: Setting) -> Outcome:
    conversations, rounds = (QUICK, 1) if setting.quick else (CONVERSATIONS, 3)
    guards = guard(setting)
    main = simulate((*SIDES, PLAIN), VLLM, conversations, rounds, setting.seed, share(setting.progress, 0.1, 0.55))
    default = simulate(ENDS, (), conversations, rounds, setting.seed, share(setting.progress, 0.55, 0.7))
    samples: dict[str, list[float]] = {}
    for stem in STEMS:
        samples[stem] = [found[stem] for found in main.ratios(FAST)]
        samples[f"default-{stem}"] = [found[stem] for found in default.ratios(FAST)]
    for name in main.first:
        if name not in (BASELINE, FAST, PLAIN.name):
            for stem in ("ttft", "tbt"):
                samples[f"{_slug(name)}-{stem}"] = [found[stem] for found in main.ratios(name)]
    for stem, figure in (("ttft", "ttft_p99_s"), ("tbt", "gap_p999_s")):
        samples[f"{stem}-plain"] = [of[PLAIN.name][figure] / of[FAST][figure] for of in main.figures]
    point, real_traffic, note = real(setting, share(setting.progress, 0.7, 1.0))
    for stem, figure in (("real-ttft", "ttft_p99_s"), ("real-tbt", "gap_p999_s")):
        samples[stem] = point.ratios(BASELINE, FAST, figure)
        samples[f"{stem}-error"] = [100 * point.error_of_ratio(BASELINE, FAST, figure)]
    samples["error"] = [100 * point.error("e2e_mean_s")]
    b, o = real_traffic[BASELINE], real_traffic[FAST]
    samples["real-calls"] = [(b.calls_out + b.calls_in) / (o.calls_out + o.calls_in)]
    samples["real-bytes"] = [100 * (1 - o.blocks_out / b.blocks_out)]
    kept = ("ttft_p50_s", "ttft_p99_s", "gap_p99_s", "gap_p999_s", "e2e_mean_s", "output_tokens_per_s", "preemptions")
    details = {
        title: [
            {name: {f: of[name][f] for f in kept} | asdict(moved[name]) for name in of}
            for of, moved in zip(one.figures, one.traffic, strict=True)
        ]
        for title, one in (("as vLLM", main), ("defaults", default))
    }
    return Outcome(
        samples=samples,
        guards=guards,
        notes=[
            *(
                f"virtual, {title}: {one.need.rate:.1f} requests/s, {LOAD:.0%} of what an engine with all the memory sustains; "
                f"it holds at most {one.need.blocks * one.block_size:,.0f} tokens of KV, of which {POOL_SHARE:.0%} fit here "
                f"({one.pool_bytes / 1e9:.1f} GB)"
                for title, one in (("blocks of 16 and no prefix cache", main), ("defaults", default))
            ),
            note,
            "calls are counted where copies are made: on the virtual clock a run of blocks in all layers is one call, on the "
            "real engine each layer's keys and values are calls of their own, on both sides",
            "most of a long gap between tokens is the time without memory, which the scheduler decides and all sides share",
        ],
        details={**details, "real": {"measured": point.measured, "predicted": point.predicted}},
        pictures=_picture(main.first, main.traffic[0]),
    )


def _slug(name: str) -> str:
    return name.replace("+ ", "with ").replace(" ", "-")


def _picture(runs: dict[str, Run], traffic: dict[str, Traffic]) -> dict[str, bytes]:
    from hasten.lab.bench.metrics import gaps, requests
    from hasten.lab.claims.picture import axes, png

    figure, (ttft, tbt, moved) = axes(3)
    shown = [name for name in (BASELINE, "+ groups", "+ overlap", "+ kept copies", FAST) if name in runs]
    for name in shown:
        waited = np.sort(requests(runs[name]).ttft_s)
        ttft.step(waited, 100 * (1 - np.arange(len(waited)) / len(waited)), where="post", label=name)
        between = np.sort(gaps(runs[name]))
        tbt.step(between, 100 * (1 - np.arange(len(between)) / len(between)), where="post", label=name)
    ttft.set(xlabel="time to first token, s", ylabel="requests that wait longer, %", xscale="log", yscale="log")
    tbt.set(xlabel="time between tokens, s", ylabel="gaps that are longer, %", xscale="log", yscale="log", ylim=(0.01, 100))
    ttft.legend(frameon=False)
    at = np.arange(len(shown))
    moved.bar(at - 0.2, [traffic[n].calls_out + traffic[n].calls_in for n in shown], 0.4, label="copy calls")
    moved.bar(at + 0.2, [traffic[n].blocks_out for n in shown], 0.4, label="blocks sent out")
    moved.set(yscale="log")
    moved.set_xticks(at, shown, rotation=25, ha="right")
    moved.legend(frameon=False)
    return {"fastswitch": png(figure)}


def _reported(name: str, what: str, unit: str = "x") -> Requirement:
    return Requirement(name=name, what=what, unit=unit)


CLAIM = Claim(
    name="fastswitch",
    title="Cheap KV context switches under changing priorities",
    paper="FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware LLM Serving (Shen et al., 2024)",
    workload="conversations of three turns (messages and answers as in LMSYS-Chat-1M), "
    f"at {LOAD:.0%} of what an engine with all the memory sustains; Markov priorities drawn every 25 to 50 steps; KV memory "
    f"{POOL_SHARE:.0%} of the demand; Llama-3 8B on a simulated H100, and for real the built-in model with shorter turns",
    baseline="the same scheduler (priority-trace, follow-order), with a copy a block (kv.copies=blocks), steps that wait for "
    "copies (follow-order:transfers=sync), and all of a sequence sent each time: block-by-block synchronous swapping as in "
    "vLLM; on all sides blocks of 16 tokens and no prefix cache, as vLLM when the paper was written, unless said otherwise",
    technique="fastswitch: block groups, copies beside steps, copies that stay",
    requirements=(
        Requirement(name="calls", what="copy calls, baseline over fastswitch", unit="x", at_least=8.0),
        Requirement(name="bytes", what="fewer bytes out", unit="%", at_least=30.0),
        Requirement(
            name="ttft",
            what="99th percentile of TTFT, baseline over fastswitch",
            paper="1.4x to 11.2x better tail TTFT and TBT than vLLM",
            unit="x",
            at_least=1.5,
        ),
        Requirement(name="tbt", what="99.9th percentile of TBT, baseline over fastswitch", unit="x", at_least=1.5),
        *(
            _reported(f"{_slug(side.name)}-{stem}", f"{what}, baseline over {side.name}")
            for side in SIDES[1:-1]
            for stem, what in (("ttft", "99th percentile of TTFT"), ("tbt", "99.9th percentile of TBT"))
        ),
        _reported("default-calls", "with blocks of 32 and prefix caching, the defaults: copy calls, baseline over fastswitch"),
        _reported("default-bytes", "the same: fewer bytes out", "%"),
        _reported("default-ttft", "the same: 99th percentile of TTFT, baseline over fastswitch"),
        _reported("default-tbt", "the same: 99.9th percentile of TBT, baseline over fastswitch"),
        _reported("ttft-plain", "99th percentile of TTFT, the default residency over fastswitch"),
        _reported("tbt-plain", "99.9th percentile of TBT, the default residency over fastswitch"),
        _reported("real-calls", "for real: copy calls, baseline over fastswitch"),
        _reported("real-bytes", "for real: fewer bytes out", "%"),
        _reported("real-ttft", "for real: 99th percentile of TTFT, baseline over fastswitch"),
        _reported("real-tbt", "for real: 99.9th percentile of TBT, baseline over fastswitch"),
        _reported("real-ttft-error", "error of its prediction", "%"),
        _reported("real-tbt-error", "error of the TBT ratio's prediction", "%"),
        _reported("error", "error of the predicted mean end-to-end time, all sides", "%"),
    ),
    run=run,
    simulated=True,
)
