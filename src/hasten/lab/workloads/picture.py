"""A workload, or several for comparison, in one picture. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.workloads.base import Workload, WorkloadError
from hasten.lab.workloads.compare import Floats, arrivals, lengths, windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f6feb", "#e36209", "#2da44e", "#8250df")
MOST_POINTS = 4000


def picture(*workloads: Workload) -> bytes:
    """PNG: rate and burstiness over time, distributions of gaps and of lengths, prompt against output lengths."""
    if not 1 <= len(workloads) <= len(COLOURS):
        raise WorkloadError(f"a picture shows 1 to {len(COLOURS)} workloads, got {len(workloads)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise WorkloadError("pictures need matplotlib: pip install 'hasten[plots]'") from error
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels: Any = figure.subplots(2, 3)
    least_s = 1e-4 * max(np.diff(arrivals(workload)).max(initial=0.0) for workload in workloads)
    for workload, colour in zip(workloads, COLOURS, strict=False):
        _over_time(panels[0, 0], panels[0, 1], workload, colour)
        _gaps(panels[0, 2], workload, colour, least_s)
        prompt, output = lengths(workload)
        _distribution(panels[1, 0], prompt, colour)
        _distribution(panels[1, 1], output, colour)
        some = np.linspace(0, len(prompt) - 1, min(len(prompt), MOST_POINTS)).astype(int)
        panels[1, 2].loglog(prompt[some], output[some], ".", color=colour, markersize=2, alpha=0.4)
    _label(panels[0, 0], "arrivals over time", "seconds", "arrivals/s")
    _label(panels[0, 1], "burstiness over time", "seconds", "CV of gaps in a window")
    panels[0, 1].axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
    _label(panels[0, 2], "gaps between arrivals (dotted: Poisson)", "seconds", "share at most so long")
    _label(panels[1, 0], "prompt lengths", "tokens", "share at most so long")
    _label(panels[1, 1], "output lengths", "tokens", "share at most so long")
    _label(panels[1, 2], "lengths together", "prompt tokens", "output tokens")
    for axes in (panels[0, 0], panels[0, 1]):
        axes.set_ylim(bottom=0)
    marks = [panels[0, 0].plot([], [], color=colour, linewidth=4)[0] for _, colour in zip(workloads, COLOURS, strict=False)]
    figure.legend(
        marks, [workload.name for workload in workloads], loc="outside upper left", ncols=len(workloads), frameon=False
    )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _over_time(rate: Axes, cv: Axes, workload: Workload, colour: str) -> None:
    parts = windows(workload)
    if np.isfinite(parts.rate).all():
        rate.plot(parts.at_s, parts.rate, color=colour)
        cv.plot(parts.at_s, parts.cv, color=colour)


def _gaps(axes: Axes, workload: Workload, colour: str, least_s: float) -> None:
    gaps = np.sort(np.diff(arrivals(workload)))
    if not len(gaps) or not gaps[-1]:
        return
    # Gaps of 0 have no place on a logarithmic axis: they and all below `least_s` are drawn at its left end.
    axes.step(np.maximum(gaps, least_s), np.linspace(0, 1, len(gaps)), where="post", color=colour)
    x = np.geomspace(least_s, gaps[-1], 200)
    axes.plot(x, 1 - np.exp(-x / gaps.mean()), color=colour, linestyle=":", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)


def _distribution(axes: Axes, values: Floats, colour: str) -> None:
    shares = np.linspace(0, 1, min(len(values), 2000))
    axes.step(np.quantile(values, shares), shares, where="post", color=colour)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
