"""DeepSpeed-FastGen's Dynamic SplitFuse (2024): passes of one size at the knee of throughput, against whole prompts first.

For real: clients that send prompts of all lengths in turn, on the built-in model. On the virtual clock: passes under backlog
and effective throughput over loads, of an 8B model on an H100. Beside the rule that takes the pass size from the
throughput knee stands that of Sarathi-Serve, which takes it from a target between tokens.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.bench.metrics import gaps_by_request, steps, summary
from hasten.lab.claims import deadlock, stalls
from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.effective import PROMPT_RATE, RATES, SMOOTHING, effective, kept, scale
from hasten.lab.claims.sides import Side, equal_tokens, share
from hasten.lab.claims.virtual import Virtual

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.workloads.base import Workload

CLIENTS, OUTPUT = 8, 64.0
LOW, HIGH = 200, 3000
COMMON = (
    "executor.threads=1",
    "model.max_length=4096",
    "scheduling.max_tokens=4096",
    "scheduling.max_rows=64",
    "kv.memory_bytes=600000000",
    "kv.reuse=none",
)
WHOLE, SPLITFUSE, SARATHI = "whole prompts", "SplitFuse", "Sarathi-Serve"
SIDES = (Side(WHOLE, ("whole-prompts",)), Side(SPLITFUSE, ("splitfuse",)), Side(SARATHI, ("sarathi-serve",)))
LOADS = (0.5, 0.7, 0.85, 1.0)


def run(setting: Setting) -> Outcome:
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    setting.progress("equal tokens", 0.0)
    guards = [_equal(setting.seed), deadlock.guard(setting.seed)]
    real, first = _real(samples, setting)
    virtual = _virtual(samples, setting)
    return Outcome(
        samples=samples,
        guards=guards,
        shortfall={
            "effective-4": f"whole prompts keep the targets of {real['kept'][WHOLE]:.0%} of the requests here, SplitFuse of "
            f"{real['kept'][SPLITFUSE]:.0%}",
            "prediction": "by side: " + ", ".join(f"{name} {error:.0f}%" for name, error in real["errors"].items()),
            "cv": "rows or memory ran out, so prompts could not fill the passes",
            "token-p95": f"a pass of {real['pass']:.0f} tokens takes {real['pass_ms']:.0f} ms, and every gap is one of them",
        },
        notes=[
            f"for real, one thread: passes of {real['pass']:.0f} tokens by the knee rule ({real['pass_ms']:.0f} ms), "
            f"{real['target']:.0f} by the target rule ({real['target_ms']:.0f} ms)",
            "backlog: all requests come at once, and of 64 rows whole prompts fill all; passes count until the last request "
            "has been started",
            f"effective throughput: requests/s whose prompt is answered at {PROMPT_RATE:g} tokens/s and whose gaps, averaged "
            f"with weight {SMOOTHING} for the newest, never exceed those of 6, 4 or 2 tokens/s, all of them times "
            f"{real['factor']:.2f} here and {virtual['factor']:.1f} on the simulated machine: how many prompt tokens a second "
            "it computes over how many the paper's does (70 billion parameters on four A100)",
            f"virtual clock: the best of the loads {', '.join(f'{load:g}' for load in LOADS)} of each side's own saturation; "
            f"passes of {virtual['pass']} tokens by the knee rule",
        ],
        details={"real": real, "virtual": virtual},
        pictures=_picture(first, virtual),
    )


def _equal(seed: int) -> Guard:
    small = stalls.steady_and_long(4, 60, 4, 0.05, 100, 700, seed, output=8)
    tight = ("scheduling.max_tokens=1024", "model.max_length=1024", "kv.memory_bytes=10000000", "kv.reuse=none")
    return equal_tokens([Side("whole", ("whole-prompts",)), Side("splitfuse", ("splitfuse:tokens=192",))], small, common=tight)


def _real(samples: dict[str, list[float]], setting: Setting) -> tuple[dict[str, Any], dict[str, Run]]:
    rounds, each, budget_s = (3, 3, 5.0) if setting.quick else (5, 5, 30.0)
    tell = share(setting.progress, 0.1, 0.6)
    first: dict[str, Run] = {}
    facts: dict[str, list[float]] = {"pass": [], "pass_ms": [], "target": [], "target_ms": []}
    shares: dict[str, list[float]] = {side.name: [] for side in SIDES}
    errors: dict[str, list[float]] = {}

    def work(number: int) -> Workload:
        return stalls.closed(CLIENTS, each, LOW, HIGH, OUTPUT, setting.seed + number)

    def names(number: int) -> list[str]:
        return [side.name for side in SIDES[: 2 if setting.quick and number else 3]]

    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        machine = stalls.Machine.calibrate(COMMON, folder, budget_s, tell)
        factor = scale(machine.device, 4096)
        for measured, predicted in machine.rounds(SIDES, work, rounds, share(tell, 0.2, 1.0), names):
            first = first or measured
            late, guess = ({name: _p95(run) for name, run in runs.items()} for runs in (measured, predicted))
            for name in late:
                errors.setdefault(name, []).append(100 * abs(guess[name] / late[name] - 1))
            samples["prediction"].append(float(np.median([errors[name][-1] for name in late])))
            samples["token-p95"].append(late[WHOLE] / late[SPLITFUSE])
            for rate in RATES:
                good = {name: effective(run, PROMPT_RATE * factor, 1 / (rate * factor)) for name, run in measured.items()}
                samples[f"effective-{rate:g}"].append(good[SPLITFUSE] / max(good[WHOLE], 1e-3))
            for name, run in measured.items():
                shares[name].append(float(kept(run, PROMPT_RATE * factor, 1 / (4 * factor)).mean()))
            if SARATHI in measured:
                speed = {name: summary(run)["output_tokens_per_s"] for name, run in measured.items()}
                samples["rules-p95"].append(late[SPLITFUSE] / late[SARATHI])
                samples["rules-tokens"].append(speed[SPLITFUSE] / speed[SARATHI])
            for side, size, ms in ((SPLITFUSE, "pass", "pass_ms"), (SARATHI, "target", "target_ms")):
                if side in measured:
                    found = steps(measured[side])
                    mixed = found.tokens > found.rows + 16
                    facts[size].append(float(np.median(found.tokens[mixed])))
                    facts[ms].append(1e3 * float(np.median(found.took_s[mixed])))
    out: dict[str, Any] = {name: float(np.median(values)) for name, values in facts.items()}
    out["errors"] = {name: float(np.median(values)) for name, values in errors.items()}
    out["kept"] = {name: float(np.median(values)) for name, values in shares.items()}
    return out | {"factor": factor}, first


def _p95(run: Run) -> float:
    return float(np.percentile(gaps_by_request(run).seconds, 95))


def _virtual(samples: dict[str, list[float]], setting: Setting) -> dict[str, Any]:
    from hasten.engine.scheduling.base import Limits
    from hasten.engine.scheduling.splitfuse import Options, knee

    count, rounds, loads = (100, 3, LOADS[1:3]) if setting.quick else (500, 3, LOADS)
    tell = share(setting.progress, 0.6, 1.0)
    virtual = Virtual(SIDES, common=("scheduling.max_tokens=4096", "scheduling.max_rows=64"))
    factor = scale(virtual.device, 4096)
    curves: list[dict[str, list[tuple[float, float]]]] = []
    for number in range(rounds):
        work = stalls.uniform(count, 1.0, LOW, HIGH, 128.0, setting.seed + number)
        best: dict[str, float] = {}
        curves.append({})
        for turn, side in enumerate(SIDES):
            tell(f"loads of {side.name}", (number + turn / len(SIDES)) / rounds)
            rate = virtual.saturation(side.name, work)
            if side.name != SARATHI:
                crowd = virtual.replay(side.name, stalls.at_once(work))
                samples["cv" if side.name == SPLITFUSE else "cv-whole"].append(stalls.variation(crowd))
            points = []
            for load in loads:
                arriving = stalls.uniform(count, load * rate, LOW, HIGH, 128.0, setting.seed + number)
                run = virtual.replay(side.name, arriving)
                points.append((load * rate, effective(run, PROMPT_RATE * factor, 1 / (4 * factor))))
            curves[-1][side.name] = points
            best[side.name] = max(found for _, found in points)
        samples["effective-virtual"].append(best[SPLITFUSE] / max(best[WHOLE], 1e-3))
        samples["rules-effective"].append(best[SPLITFUSE] / max(best[SARATHI], 1e-3))

    class View:
        limits = Limits(4096, 256)
        price = staticmethod(virtual.device.costs.step)

    options = Options()
    return {"pass": knee(View(), options.knee, options.tile), "curves": curves, "factor": factor}  # type: ignore[arg-type]


def _picture(runs: dict[str, Run], virtual: dict[str, Any]) -> dict[str, bytes]:
    from hasten.lab.claims.picture import axes, png

    figure, (sizes, curve) = axes(2)
    for name in (WHOLE, SPLITFUSE, SARATHI):
        found = steps(runs[name])
        sizes.plot(found.end_s, found.tokens, ".", markersize=3, label=name)
        points = virtual["curves"][0][name]
        curve.plot([rate for rate, _ in points], [good for _, good in points], marker="o", markersize=3, label=name)
    sizes.set(xlabel="time, s", ylabel="tokens in a pass", yscale="log")
    curve.set(xlabel="requests/s (simulated H100)", ylabel="effective requests/s", xlim=(0, None), ylim=(0, None))
    for plot in (sizes, curve):
        plot.legend(frameon=False, fontsize=7)
    return {"splitfuse": png(figure)}


CLAIM = Claim(
    name="splitfuse",
    title="Passes of one size at the knee of throughput",
    paper="DeepSpeed-FastGen: High-throughput Text Generation for LLMs via MII and DeepSpeed-Inference (Holmes et al., 2024)",
    workload=f"for real: the built-in model, {CLIENTS} clients in turn with prompts of {LOW} to {HIGH:,} tokens and outputs of "
    f"about {OUTPUT:g}; on the virtual clock: such prompts with outputs of about 128 tokens, a backlog and Poisson arrivals, "
    "Llama-3 8B on a simulated H100",
    baseline="whole-prompts with steps wide enough for any prompt (scheduling.max_tokens=4096)",
    technique="splitfuse, its pass size from the cost model (for real calibrated just before); beside it sarathi-serve, whose "
    "budget keeps five times a decode-only step",
    requirements=(
        Requirement(
            name="cv",
            what="coefficient of variation of the tokens of a pass under backlog, SplitFuse (simulated)",
            at_most=0.15,
        ),
        Requirement(name="cv-whole", what="the same, whole prompts (simulated)", at_least=0.8),
        Requirement(
            name="token-p95",
            what="95th percentile between two tokens, whole prompts over SplitFuse",
            paper="up to 3.7x lower at the tail, against vLLM",
            unit="x",
            at_least=2.0,
        ),
        Requirement(
            name="effective-4",
            what="effective throughput at 4 tokens/s (scaled), SplitFuse over whole prompts",
            paper="up to 2.3x against vLLM",
            unit="x",
            at_least=1.3,
        ),
        Requirement(name="effective-6", what="the same at 6 tokens/s", unit="x"),
        Requirement(name="effective-2", what="the same at 2 tokens/s", unit="x"),
        Requirement(
            name="effective-virtual",
            what="best effective throughput over loads, SplitFuse over whole prompts (simulated)",
            unit="x",
        ),
        Requirement(
            name="rules-p95", what="95th percentile between two tokens, knee rule over target rule (Sarathi-Serve)", unit="x"
        ),
        Requirement(name="rules-tokens", what="output tokens per second, knee rule over target rule", unit="x"),
        Requirement(
            name="rules-effective",
            what="best effective throughput over loads, knee rule over target rule (simulated)",
            unit="x",
        ),
        Requirement(
            name="prediction", what="error of the simulator for the 95th percentile between two tokens", unit="%", at_most=15.0
        ),
    ),
    run=run,
)
