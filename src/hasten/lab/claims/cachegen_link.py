"""What the claim `cachegen` does over the link: every form by itself and the controller, from several points of a trace on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from io import BytesIO
from statistics import median
from typing import TYPE_CHECKING

from hasten.lab.claims.base import Guard, Outcome, Setting
from hasten.lab.claims.sides import share

if TYPE_CHECKING:
    from hasten.lab.bench.kv_prefix import PrefixLab
    from hasten.lab.bench.kv_streaming import Run, StoredPrompt
    from hasten.lab.bench.throttled import Trace

TRACE_SEED = 3
DEADLINE = 0.5
"""Of the seconds that computing from the text takes: the text alone always misses it."""
BEFORE_S = 0.5
"""So long before a prompt the link was last measured."""
FASTEST, IN_TIME = "adaptive", "adaptive, with a deadline"
RAW, INT8, TEXT = "raw", "int8", "text"


def over_trace(lab: PrefixLab, setting: Setting) -> Outcome:
    """Samples, guards, notes and pictures of this part of the claim."""
    from hasten.lab.bench.kv_streaming import StoredPrompt
    from hasten.lab.bench.throttled import Trace
    from hasten.lab.testbed.evaluate import token_ids
    from hasten.lab.testbed.tasks.registry import find

    length, parts, rounds = (4000, (1 / 3, 2 / 3), 3) if setting.quick else (7800, [i / 8 for i in range(8)], 3)
    example = find(f"recall:pairs=16,length={length}").example(random.Random(setting.seed), "held-out", lab.material)
    trace = Trace.drawn(TRACE_SEED)
    prompt = StoredPrompt(lab, token_ids(lab.llm, example.prompt), 72, trace, 1 if setting.quick else 3)
    try:
        return _measure(prompt, trace, [trace.seconds * part for part in parts], rounds, setting)
    finally:
        prompt.close()


def _measure(prompt: StoredPrompt, trace: Trace, points: Sequence[float], rounds: int, setting: Setting) -> Outcome:
    from hasten.lab.bench.kv_streaming import FIXED, LEVEL_NAMES

    choice = (RAW, TEXT, *LEVEL_NAMES)
    text = next(option for option in prompt.options if option.name == TEXT)
    deadline_s = DEADLINE * (sum(text.seconds) + prompt.tail_s)
    progress = share(setting.progress, 0.6, 1.0)
    runs: dict[str, list[list[Run]]] = {name: [[] for _ in points] for name in (*FIXED, FASTEST, IN_TIME)}
    for number in range(rounds):
        for i, at in enumerate(points):
            progress(f"link, round {number + 1} of {rounds}", (number * len(points) + i) / (rounds * len(points)))
            for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
                prompt.bandwidth = trace.rate(at - BEFORE_S)
                names = [name] if name in FIXED else choice
                runs[name][i].append(prompt.run(names, at, deadline_s if name == IN_TIME else 0.0))
    seconds = {name: [median(run.seconds for run in at) for at in of] for name, of in runs.items()}
    best = [min(seconds[name][i] for name in FIXED) for i in range(len(points))]
    ratios = [mine / fixed for mine, fixed in zip(seconds[FASTEST], best, strict=True)]
    missed = {
        name: 100 * sum(run.seconds > deadline_s for at in of for run in at) / (rounds * len(points))
        for name, of in runs.items()
    }
    came = [option for at in runs[IN_TIME] for run in at for option in run.streamed.options]
    used = sorted({option for of in (FASTEST, IN_TIME) for at in runs[of] for run in at for option in run.streamed.options})
    return Outcome(
        samples={
            "adaptive-worst": [max(ratios)],
            "adaptive": ratios,
            **{
                name: [max(other / mine for other, mine in zip(seconds[name], seconds[FASTEST], strict=True))]
                for name in (RAW, INT8, TEXT)
            },
            "misses": [missed[IN_TIME]],
            "misses-fewer": [min(missed[name] for name in (RAW, INT8, TEXT)) - missed[IN_TIME]],
            "exact": [100 * sum(option in (RAW, TEXT) for option in came) / len(came)],
        },
        guards=[Guard("the controller changes its choice along the trace", len(used) > 1, f"it used {', '.join(used)}")],
        notes=[
            "the link is a loopback socket throttled along a drawn trace; decoding, computing and the question are the "
            "engine's own work",
            f"the controller knows the bandwidth of {BEFORE_S:g} s before, as from an earlier transfer; without a deadline it "
            f"takes what is fastest, with one ({deadline_s:.2f} s) the least lossy form that meets it",
            "deadlines missed: " + ", ".join(f"{name} {share:.0f} %" for name, share in missed.items()),
        ],
        details={"seconds": seconds, "megabits_s": [trace.rate(at) * 8e-6 for at in points], "deadline_s": deadline_s},
        pictures={"cachegen-link": _picture(trace, points, seconds, deadline_s)},
    )


def _picture(trace: Trace, points: Sequence[float], seconds: dict[str, list[float]], deadline_s: float) -> bytes:
    """PNG: the bandwidths, and below them every form's time to first token from each point on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    steps = [trace.seconds * i / 400 for i in range(400)]
    above.plot(steps, [trace.rate(at) * 8e-6 for at in steps], drawstyle="steps-post", color="black", linewidth=1)
    above.set(yscale="log", ylabel="Mb/s (throttled)")
    for name, of in seconds.items():
        adaptive = name in (FASTEST, IN_TIME)
        style = {"linewidth": 2.2, "marker": "o"} if adaptive else {"linewidth": 1, "marker": ".", "alpha": 0.8}
        below.plot(points, of, label=name, **style)
    below.axhline(deadline_s, color="grey", linestyle=":", linewidth=1)
    below.set(yscale="log", xlabel="seconds into the trace", ylabel="time to first token (s)")
    below.legend(fontsize=7, ncols=3)
    out = BytesIO()
    figure.savefig(out, format="png", dpi=80)
    return out.getvalue()
