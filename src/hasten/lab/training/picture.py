"""The loss curve of a run, with what the probes found on the way. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

SMOOTHED_OVER = 25


def picture(losses: Sequence[tuple[int, float]], scores: Sequence[tuple[int, dict[str, float]]], title: str) -> bytes:
    """PNG of losses (tokens so far, nats a token) and scores (tokens so far, share right by task)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    tokens, loss = (np.array(column, dtype=float) for column in zip(*losses, strict=True))
    upper.plot(tokens / 1e6, loss, color="#c8d3e0", linewidth=0.6, label="one step")
    wide = min(SMOOTHED_OVER, len(loss))
    smooth = np.convolve(loss, np.ones(wide) / wide, mode="valid")
    upper.plot(tokens[wide - 1 :] / 1e6, smooth, color="#1f6feb", label=f"mean of {wide}")
    upper.set(title=title, ylabel="loss, nats a learnt token", yscale="log")
    upper.legend(frameon=False)
    colours = ("#1f6feb", "#e36209", "#2da44e", "#8250df", "#bf3989", "#57606a")
    for number, name in enumerate(dict.fromkeys(name for _, of in scores for name in of)):
        line = [(at / 1e6, 100 * of[name]) for at, of in scores if name in of]
        style = ("-", "--", ":", "-.")[number // len(colours) % 4]
        lower.plot(*zip(*line, strict=True), style, marker=".", color=colours[number % len(colours)], label=name)
    lower.set(xlabel="million tokens", ylabel="held-out answers right token for token, %", ylim=(-3, 103))
    if scores:
        lower.legend(frameon=False, fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
