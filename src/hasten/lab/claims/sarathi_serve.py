"""Sarathi-Serve (2024): no stall for anybody who decodes, and a token budget chosen by profiling, against whole prompts first.

For real: clients that decode steadily on the built-in model while long prompts come. On the virtual clock: how many requests a
second of a production trace an 8B model on an H100 takes while the time between tokens keeps five times a decode-only step.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.bench.metrics import gaps_by_request, requests, steps, summary
from hasten.lab.claims import capacities, stalls
from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.capacities import Capacities
from hasten.lab.claims.sides import Side, equal_tokens, share

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.workloads.base import Workload

DECODERS = 24
LOW, HIGH = 2000, 4000
PROMPT_LOAD = 0.6
"""Share of the time that the long prompts alone would keep the machine busy; here one comes every second or so."""
PART = 5
"""The target for real: this part of the time that the mean prompt takes whole."""
COMMON = (
    "executor.threads=1",
    "model.max_length=4608",
    "scheduling.max_tokens=8192",
    "scheduling.max_rows=64",
    "kv.memory_bytes=600000000",
    "kv.reuse=none",
)
"""Steps wide enough for any prompt to run whole, memory that never binds."""
WHOLE, SARATHI, STRICT = "whole prompts", "Sarathi-Serve", "Sarathi-Serve, 5x"


def run(setting: Setting) -> Outcome:
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    setting.progress("equal tokens", 0.0)
    small = stalls.steady_and_long(4, 60, 3, 0.05, 300, 700, setting.seed, output=8)
    tight = ("scheduling.max_tokens=1024", "model.max_length=1024", "kv.memory_bytes=10000000", "kv.reuse=none")
    chunked = Side("sarathi", ("sarathi-serve:tbt_s=0.01",))
    guard = equal_tokens([Side("whole", ("whole-prompts",)), chunked], small, common=tight)
    real, first = _real(samples, setting)
    found = capacities.compare(setting.quick, share(setting.progress, 0.45, 1.0))
    for name, other in (("capacity", "whole"), ("capacity-fixed", "fixed"), ("capacity-cut", "cut")):
        samples[name] += found.ratios("sarathi", other)
    samples["capacity-relaxed"] += found.ratios("relaxed", "relaxed whole")
    return Outcome(
        samples=samples,
        guards=[guard],
        shortfall=_reasons(real, found),
        notes=[
            f"for real: one thread; a prompt every {real['every_s']:.2f} s, alone a load of {PROMPT_LOAD:.0%}; the target is a "
            f"{PART}th of the mean prompt's time, {real['target_ms']:.0f} ms; a step that only decodes takes "
            f"{real['decode_ms']:.1f} ms at {DECODERS} rows; the median pass with a piece of a prompt holds "
            f"{real['tokens']:.0f} tokens and takes {real['mixed_ms']:.1f} ms; the longest prompt read "
            f"{real['rereads']:.1f} times its own keys again because of it",
            "prediction: the same arrivals simulated with the calibration made before the runs, median error over sides and "
            f"rounds; ratios are predicted within {real['ratio_error']:.0f}%",
            f"virtual clock: objectives are multiples of a decode-only step of {capacities.ROWS} rows at "
            f"{capacities.MEAN_CONTEXT:,} tokens of context, {1e3 * found.decode_s:.1f} ms; capacity: the highest rate with "
            "the 99th percentile between tokens within it and a median queueing time of at most "
            f"{capacities.QUEUE_S:g} s over the later half of {found.seconds:g} s of arrivals; with everything waiting "
            f"Sarathi-Serve does {found.saturation:.1f} requests/s",
            "the fixed chunk is the best by the same search on other requests, requests/s by chunk: "
            + ", ".join(f"{chunk}: {rate:.1f}" for chunk, rate in found.chunks.items()),
        ],
        details={"real": real, "virtual": asdict(found)},
        pictures=_picture(first, found),
    )


def _real(samples: dict[str, list[float]], setting: Setting) -> tuple[dict[str, Any], dict[str, Run]]:
    rounds, prompts, budget_s = (3, 3, 5.0) if setting.quick else (5, 10, 30.0)
    tell = share(setting.progress, 0.05, 0.45)
    first: dict[str, Run] = {}
    errors: list[float] = []
    ratio_errors: list[float] = []
    facts: dict[str, list[float]] = {"decode_ms": [], "mixed_ms": [], "tokens": [], "rereads": []}
    kept: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        machine = stalls.Machine.calibrate(COMMON, folder, budget_s, tell)
        mean_s = stalls.prompt_s(machine.device, (LOW + HIGH) // 2)
        every_s, target_s = mean_s / PROMPT_LOAD, mean_s / PART
        # Clients that go on for as long as prompts come.
        tokens = round(prompts * every_s * (1 - PROMPT_LOAD) / stalls.decode_only_s(machine.device, DECODERS, 150))
        sides = (
            Side(WHOLE, ("whole-prompts",)),
            Side(SARATHI, (f"sarathi-serve:tbt_s={target_s:.4f}",)),
            Side(STRICT, ("sarathi-serve:slack=5",)),
        )

        def work(number: int) -> Workload:
            return stalls.steady_and_long(DECODERS, tokens, prompts, every_s, LOW, HIGH, setting.seed + number)

        def names(number: int) -> list[str]:
            return [side.name for side in sides[: 2 if setting.quick and number else 3]]

        for measured, predicted in machine.rounds(sides, work, rounds, share(tell, 0.2, 1.0), names):
            first = first or measured
            of = {name: _figures(run) for name, run in measured.items()}
            guess = {name: _figures(run) for name, run in predicted.items()}
            kept.append(of)
            for name, (figure, above, below) in RATIOS.items():
                if above not in of or below not in of:
                    continue
                ratio = of[above][figure] / of[below][figure]
                samples[name].append(ratio)
                ratio_errors.append(100 * abs(guess[above][figure] / guess[below][figure] / ratio - 1))
            errors.append(100 * float(np.median([abs(guess[s][f] / of[s][f] - 1) for s in of for f in of[s]])))
            found = steps(measured[SARATHI])
            alone, mixed = found.tokens == found.rows, (found.tokens > found.rows + 16) & (found.rows > DECODERS // 2)
            facts["decode_ms"].append(1e3 * float(np.median(found.took_s[alone & (found.rows >= DECODERS - 2)])))
            facts["mixed_ms"].append(1e3 * float(np.median(found.took_s[mixed])))
            facts["tokens"].append(float(np.median(found.tokens[mixed])))
            facts["rereads"].append(rereads(HIGH, max(1, round(facts["tokens"][-1]) - DECODERS)) / HIGH)
    samples["prediction"] += errors
    out: dict[str, Any] = {name: float(np.median(values)) for name, values in facts.items()}
    out |= {"every_s": every_s, "target_ms": 1e3 * target_s, "ratio_error": float(np.median(ratio_errors)), "rounds": kept}
    return out, first


RATIOS = {
    "tbt-p99": ("gap_p99_s", WHOLE, SARATHI),
    "stall": ("longest_stall_s", WHOLE, SARATHI),
    "tokens": ("output_tokens_per_s", SARATHI, WHOLE),
    "ttft": ("ttft_p50_s", SARATHI, WHOLE),
    "strict-tbt-p99": ("gap_p99_s", WHOLE, STRICT),
    "strict-ttft": ("ttft_p50_s", STRICT, WHOLE),
}
"""What the real rounds compare: a figure of one side over that of another."""


def _figures(run: Run) -> dict[str, float]:
    """Of those that decode: gaps; of the long prompts: time to first token; of all: output tokens per second."""
    table, gaps, long = requests(run), gaps_by_request(run), stalls.long_ones(run.workload)
    seconds = gaps.seconds[~long[gaps.request]]
    return {
        "gap_p99_s": float(np.percentile(seconds, 99)),
        "longest_stall_s": float(seconds.max()),
        "ttft_p50_s": float(np.median(table.ttft_s[long])),
        "output_tokens_per_s": summary(run)["output_tokens_per_s"],
    }


def rereads(prompt: int, chunk: int) -> int:
    """Keys that pieces of `chunk` tokens read again of the pieces before them, over a prompt: about prompt² / (2 chunk)."""
    return sum(range(chunk, prompt, chunk))


def _reasons(real: dict[str, Any], found: Capacities) -> dict[str, str]:
    return {
        "ttft": f"a prompt shares its passes of {real['tokens']:.0f} tokens with {DECODERS} sequences that decode, whose part "
        "of each is what it waits longer",
        "tokens": "clients wait for their own long steps only; what a budget costs is more passes over the weights",
        "tbt-p99": f"a pass with a piece takes {real['mixed_ms'] / real['decode_ms']:.1f} times one that only decodes",
        "capacity": f"capacities in requests/s by round: {found.rates}",
    }


def _picture(runs: dict[str, Run], capacity: Capacities) -> dict[str, bytes]:
    from hasten.lab.claims.picture import axes, png

    figure, (gap, bars) = axes(2)
    for name, run in runs.items():
        found = gaps_by_request(run)
        mine = ~stalls.long_ones(run.workload)[found.request]
        gap.plot(found.end_s[mine], 1e3 * found.seconds[mine], ".", markersize=2, label=name)
    gap.set(xlabel="time, s", ylabel="between two tokens, ms", yscale="log")
    gap.legend(frameon=False, markerscale=4)
    names = {
        "whole": WHOLE,
        "cut": "whole, at most\n2,048 a step",
        "fixed": "best fixed chunk",
        "sarathi": SARATHI,
    }
    for place, key in enumerate(names):
        values = [rates[key] for rates in capacity.rates if key in rates]
        bars.bar(place, float(np.median(values)), width=0.6, color=f"C{place}")
        bars.plot([place] * len(values), values, "k.", markersize=3)
    bars.set_xticks(range(len(names)), list(names.values()), fontsize=7)
    bars.set(ylabel="requests/s within 5x a decode-only step")
    return {"sarathi-serve": png(figure)}


CLAIM = Claim(
    name="sarathi-serve",
    title="No stalls, with a token budget chosen by profiling",
    paper="Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve (Agrawal et al., OSDI 2024)",
    workload=f"for real: the built-in model, {DECODERS} clients that decode steadily, and prompts of {LOW:,} to {HIGH:,} "
    f"tokens at a load of {PROMPT_LOAD:.0%}, about one a second; on the virtual clock: {capacities.TRACE}, Llama-3 8B on a "
    "simulated H100",
    baseline="whole-prompts, with steps wide enough for any prompt (scheduling.max_tokens=8192); also cut at 2,048 tokens a "
    f"step, and stall-free with the best fixed chunk of {', '.join(map(str, capacities.CHUNKS))}",
    technique=f"sarathi-serve: for real with tbt_s a {PART}th of what the mean prompt takes whole, costs calibrated just "
    "before; strict: slack=5; on the virtual clock with tbt_s at the objective",
    requirements=(
        Requirement(
            name="tbt-p99",
            what="99th percentile between two tokens of those that decode, whole prompts over Sarathi-Serve",
            unit="x",
            at_least=3.0,
        ),
        Requirement(name="stall", what="longest stall of theirs, whole prompts over Sarathi-Serve", unit="x", at_least=3.0),
        Requirement(name="tokens", what="output tokens per second, Sarathi-Serve over whole prompts", unit="x", at_least=0.85),
        Requirement(
            name="ttft",
            what="median time to first token of the long prompts, Sarathi-Serve over whole prompts",
            unit="x",
            at_most=1.5,
        ),
        Requirement(name="strict-tbt-p99", what="the first figure at five times a decode-only step", unit="x"),
        Requirement(name="strict-ttft", what="time to first token at five times a decode-only step", unit="x"),
        Requirement(
            name="capacity",
            what="requests/s within 5 times a decode-only step, Sarathi-Serve over whole prompts (simulated)",
            paper="up to 2.6x (Mistral-7B on one A100) and 6.9x (Falcon-180B on eight) over Orca and vLLM",
            unit="x",
            at_least=1.5,
        ),
        Requirement(name="capacity-cut", what="the same over whole prompts cut at 2,048 tokens a step (simulated)", unit="x"),
        Requirement(name="capacity-fixed", what="the same over the best fixed chunk (simulated)", unit="x"),
        Requirement(
            name="capacity-relaxed",
            what="the same within 25 times a decode-only step, over whole prompts (simulated)",
            unit="x",
        ),
        Requirement(
            name="prediction", what="error of the simulator for the four real figures of both sides", unit="%", at_most=15.0
        ),
    ),
    run=run,
)
