"""The pictures of a report, as SVG whose colours follow the page (light or dark)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from hasten.engine.request import SLO
from hasten.lab.bench import metrics
from hasten.lab.bench.metrics import Table
from hasten.lab.bench.run import Floats, Run
from hasten.lab.bench.saturation import Probe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib writes these colours, the page puts its own in their place (see `_svg`).
TEXT, GRID, LIMIT = "#010101", "#020202", "#030303"
SERIES = ("#040401", "#040402", "#040403", "#040404")
QUEUE, PREFILL, DECODE, STALL = "#050501", "#050502", "#050503", "#050504"
VARIABLES = {
    TEXT: "--soft", GRID: "--line", LIMIT: "--limit", QUEUE: "--queue", PREFILL: "--prefill", DECODE: "--decode",
    STALL: "--stall", **{color: f"--series{i}" for i, color in enumerate(SERIES)},
}  # fmt: skip

_MOST_POINTS = 1200
"""Dots in one picture; more are drawn from evenly, so that the file stays small."""
_MOST_BINS = 150
_WINDOW = 36
"""Requests in the timeline."""


_STYLE: Any = {
    "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": GRID, "axes.titlecolor": TEXT, "grid.color": GRID,
    "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": TEXT, "ytick.labelcolor": TEXT, "legend.labelcolor": TEXT,
    "font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.linewidth": 0.7, "axes.linewidth": 0.9, "xtick.minor.size": 0,
    "ytick.minor.size": 0, "legend.frameon": False, "legend.fontsize": 8.5, "legend.handlelength": 1.4, "lines.linewidth": 1.7,
    "figure.facecolor": "none", "axes.facecolor": "none", "svg.fonttype": "none",
}  # fmt: skip
P = ParamSpec("P")


def _styled(picture: Callable[P, str]) -> Callable[P, str]:
    """matplotlib reads its style when a thing is drawn, so all of a picture is drawn within it."""

    @wraps(picture)
    def drawn(*given: P.args, **named: P.kwargs) -> str:
        import matplotlib

        matplotlib.use("Agg")
        with matplotlib.rc_context(_STYLE):
            return picture(*given, **named)

    return drawn


def _figure(columns: int, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(10.4, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def _svg(figure: Figure, name: str, label: str) -> str:
    import matplotlib
    import matplotlib.pyplot as plt

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids are unique within a picture only.
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}"


def _logarithmic(axis: Any) -> None:
    """A log scale whose ticks are plain numbers, with some between the decades where there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    within = (1.0, 2.0, 5.0) if high < low * 300 else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=within, numticks=20))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _scale(values: Sequence[Floats]) -> tuple[float, str]:
    """Milliseconds where all is short, else seconds."""
    there = np.concatenate([value[np.isfinite(value)] for value in values]) if values else np.zeros(0)
    return (1e3, "ms") if len(there) and np.percentile(there, 95) < 2.0 else (1.0, "s")


def _legend(axis: Axes, where: Any = "best") -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc=where)


# -- latency over time ----------------------------------------------------------------------------------------------------


@_styled
def over_time(runs: Sequence[Run], tables: Sequence[Table], slo: SLO | None) -> str:
    """Each request's TTFT and end-to-end time by when it was due, with a running median."""
    figure, axes = _figure(2)
    what = (("time to first token", "ttft_s", "ttft_s"), ("end-to-end time", "e2e_s", "deadline_s"))
    for axis, (label, key, bound) in zip(axes, what, strict=True):
        factor, unit = _scale([getattr(table, key)[table.ok] for table in tables])
        for color, run, table in zip(SERIES, runs, tables, strict=False):
            x, y = table.due_s[table.ok], getattr(table, key)[table.ok] * factor
            order = np.argsort(x, kind="stable")
            x, y = x[order], y[order]
            every = max(1, -(-len(x) * len(runs) // _MOST_POINTS))
            axis.plot(x[::every], y[::every], ".", color=color, alpha=0.45, markersize=5.5, markeredgewidth=0)
            bins = max(1, min(40, len(x) // 8))
            parts = [part for part in np.array_split(np.arange(len(x)), bins) if len(part)]
            axis.plot([np.median(x[p]) for p in parts], [np.median(y[p]) for p in parts], color=color, label=run.name)
        _bound(axis, slo, bound, factor, vertical=False)
        axis.set(title=f"{label}, {unit}", xlabel="due, s after the start", yscale="log")
        _logarithmic(axis.yaxis)
    if len(runs) > 1:
        _legend(axes[0])
    return _svg(figure, "time", "latency of each request over time")


def _bound(axis: Axes, slo: SLO | None, name: str, factor: float, *, vertical: bool) -> None:
    limit = getattr(slo, name) if slo is not None else None
    if limit is not None:
        line = axis.axvline if vertical else axis.axhline
        line(limit * factor, color=LIMIT, linewidth=1.1, linestyle=(0, (4, 3)), label="objective")


@_styled
def distributions(runs: Sequence[Run], tables: Sequence[Table], slo: SLO | None) -> str:
    """Cumulative distributions of TTFT, TPOT and end-to-end time."""
    figure, axes = _figure(3, 2.6)
    what = (
        ("time to first token", "ttft_s", "ttft_s"),
        ("time per output token", "tpot_s", "tpot_s"),
        ("end-to-end time", "e2e_s", "deadline_s"),
    )
    for axis, (label, key, bound) in zip(axes, what, strict=True):
        columns = [getattr(table, key)[table.ok] for table in tables]
        factor, unit = _scale(columns)
        for color, run, column in zip(SERIES, runs, columns, strict=False):
            values = np.sort(column[np.isfinite(column)]) * factor
            if not len(values):
                continue
            share = np.arange(1, len(values) + 1) / len(values) * 100
            every = max(1, len(values) // 600)
            kept = np.unique(np.append(np.arange(0, len(values), every), len(values) - 1))
            axis.step(values[kept], share[kept], where="post", color=color, label=run.name)
            for p in (50, 99):
                axis.plot(np.percentile(values, p), p, "o", color=color, markersize=4)
        _bound(axis, slo, bound, factor, vertical=True)
        axis.set(title=f"{label}, {unit}", ylim=(0, 103), xscale="log")
        _logarithmic(axis.xaxis)
    axes[0].set_ylabel("requests, %")
    _legend(axes[0], "lower right")
    return _svg(figure, "cdf", "cumulative distributions of latency")


# -- the timeline ---------------------------------------------------------------------------------------------------------


@_styled
def timeline(run: Run, table: Table, name: str) -> str:
    """The requests around the longest queue, as bars: waiting, prefill, decode, and stalls in between."""
    from matplotlib.patches import Patch

    chosen = window(table)
    figure, (axis,) = _figure(1, 0.9 + 0.135 * len(chosen))
    served = bool(np.isfinite(table.scheduled_s).any())
    rows = {int(number): row for row, number in enumerate(chosen)}
    for number, y in rows.items():
        due, scheduled, first, end = (
            float(column[number]) for column in (table.due_s, table.scheduled_s, table.first_token_s, table.end_s)
        )
        begin = scheduled if np.isfinite(scheduled) else (end if served else due)
        first = first if np.isfinite(first) else end
        if served:
            axis.barh(y, begin - due, left=due, height=0.62, color=QUEUE, linewidth=0)
        axis.barh(y, first - begin, left=begin, height=0.62, color=PREFILL, linewidth=0)
        axis.barh(y, end - first, left=first, height=0.62, color=DECODE, linewidth=0)
        if not table.ok[number]:
            axis.plot(end, y, "x", color=STALL, markersize=5)
    for number, start, stop in _stalls(run, chosen):
        axis.barh(rows[number], stop - start, left=start, height=0.62, color=STALL, linewidth=0)
    labels = {"waiting to be scheduled": QUEUE, "prefill": PREFILL} if served else {"until the first token": PREFILL}
    labels |= {"decode": DECODE, "stall": STALL}
    handles = [Patch(color=color, label=label, linewidth=0) for label, color in labels.items()]
    axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, handlelength=1.1, borderpad=0.2)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    every = max(1, len(chosen) // 9)
    axis.set(
        ylim=(len(chosen) - 0.4, -0.6),
        yticks=range(0, len(chosen), every),
        yticklabels=[str(int(number)) for number in chosen[::every]],
        xlabel="s after the start",
        ylabel="request",
        xlim=(float(table.due_s[chosen].min()), float(table.end_s[chosen].max())),
    )
    axis.tick_params(axis="y", length=0)
    return _svg(figure, name, "timeline of requests")


def window(table: Table) -> Any:
    """Numbers of the requests to show, in order of due time: those around the longest wait for a first token."""
    ended = np.flatnonzero(np.isfinite(table.due_s) & np.isfinite(table.end_s))
    order = ended[np.argsort(table.due_s[ended], kind="stable")]
    if not len(order):
        return order
    worst = int(np.nanargmax(np.nan_to_num(table.ttft_s[order], nan=-1.0)))
    first = max(0, min(worst - _WINDOW * 2 // 3, len(order) - _WINDOW))
    return order[first : first + _WINDOW]


STALL_RULE = "five times the run's median gap, at least 50 ms"


def stall_limit_s(run: Run) -> float:
    """From how long on a gap between tokens counts as a stall, by `STALL_RULE`."""
    found = metrics.gaps(run)
    return max(0.05, 5 * float(np.median(found))) if len(found) else float("inf")


def _stalls(run: Run, chosen: Any) -> list[tuple[int, float, float]]:
    """(request, start, end) of each stall of the chosen requests."""
    found = metrics.gaps_by_request(run)
    stalled = (found.seconds >= stall_limit_s(run)) & np.isin(found.request, chosen)
    end_s = found.end_s[stalled]
    return list(zip(found.request[stalled].tolist(), (end_s - found.seconds[stalled]).tolist(), end_s.tolist(), strict=True))


# -- the engine over time -------------------------------------------------------------------------------------------------


@_styled
def engine(runs: Sequence[Run]) -> str:
    """Rows of a step and share of the KV blocks in use, over time; empty when no run saw an engine's steps."""
    found = [(color, run, metrics.steps(run)) for color, run in zip(SERIES, runs, strict=False)]
    found = [(color, run, steps) for color, run, steps in found if len(steps.end_s)]
    if not found:
        return ""
    with_kv = any(np.isfinite(steps.kv).all() for _, _, steps in found)
    figure, axes = _figure(3 if with_kv else 2, 2.4)
    for color, run, steps in found:
        parts = [part for part in np.array_split(np.arange(len(steps.end_s)), _MOST_BINS) if len(part)]
        x = [steps.end_s[part].mean() for part in parts]
        columns = [steps.rows, steps.tokens, *([steps.kv * 100] if with_kv else [])]
        for axis, column in zip(axes, columns, strict=True):
            axis.plot(x, [column[part].mean() for part in parts], color=color, linewidth=1.3, label=run.name)
    titles = ["sequences in a step", "tokens in a step", "KV blocks in use, %"]
    for axis, title in zip(axes, titles, strict=False):
        axis.set(title=title, xlabel="s after the start")
        axis.set_ylim(bottom=0)
    if len(found) > 1:
        _legend(axes[0])
    return _svg(figure, "engine", "batch size and KV use over time")


@_styled
def curves(probes: dict[str, Sequence[Probe]]) -> str:
    """Latency and attained objectives against the rate offered, a line a system."""
    figure, axes = _figure(3, 2.6)
    for color, (name, points) in zip(SERIES, probes.items(), strict=False):
        ordered = sorted(points, key=lambda probe: probe.rate)
        rate = [probe.rate for probe in ordered]
        for axis, key in ((axes[0], "ttft"), (axes[1], "tpot")):
            for part, dash in (("p50", "-"), ("p99", (0, (3, 2)))):
                y = [probe.figures.get(f"{key}_{part}_s", np.nan) * 1e3 for probe in ordered]
                axis.plot(rate, y, color=color, linestyle=dash, marker="o", markersize=3)
        axes[2].plot(rate, [probe.attainment * 100 for probe in ordered], color=color, marker="o", markersize=3, label=name)
    for axis, title in zip(axes, ("TTFT, ms", "TPOT, ms", "requests within the objectives, %"), strict=True):
        axis.set(title=title, xlabel="requests/s offered")
    for axis in axes[:2]:
        axis.set_yscale("log")
        _logarithmic(axis.yaxis)
    axes[2].set_ylim(0, 104)
    _legend(axes[2], "lower left")
    return _svg(figure, "curve", "latency against rate")
