"""Where starts go and what keeping warm costs, in one picture. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hasten.lab.planning.frontier import Frontier

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#57606a", "#2da44e", "#8250df", "#bf8700", "#1f6feb", "#cf222e", "#7d8590", "#e36209")


def picture(groups: Mapping[str, Mapping[str, Any]], baseline: Frontier, others: Sequence[Frontier], marked: int) -> bytes:
    """PNG. `groups`: of `coldstarts.breakdown`; `marked`: which value of the baseline's knob is the default."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _components(left, groups)
    _frontiers(right, baseline, others, marked)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _components(axes: Axes, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """A bar per component, groups side by side: parts of milliseconds stand beside seconds, so the axis is logarithmic."""
    names = list(next(iter(groups.values()))["components"])
    height = 0.8 / len(groups)
    for number, (group, report) in enumerate(groups.items()):
        parts = report["components"]
        at = [row + number * height for row in range(len(names))]
        mean = [parts[name]["mean_s"] for name in names]
        beyond = [max(0.0, parts[name]["max_s"] - parts[name]["mean_s"]) for name in names]
        label = f"{group}: {report['starts']} starts, {report['total']['mean_s']:.2f} s on average"
        axes.barh(at, mean, height, color=_COLOURS[1 + 3 * number], label=label, xerr=[[0] * len(mean), beyond])
        for y, name in zip(at, names, strict=True):
            axes.text(parts[name]["max_s"] * 1.15, y, f"{parts[name]['share']:.1%}", va="center", fontsize=8)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(names))], names)
    axes.set_ylim(len(names), -0.5)
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 4)
    axes.set_xlabel("seconds (bar: mean, line: to the slowest; label: share of the start)")
    axes.set_title("a start of an engine worker", fontsize=10)
    axes.legend(fontsize=8, loc="lower right", frameon=False)


def _frontiers(axes: Axes, baseline: Frontier, others: Sequence[Frontier], marked: int) -> None:
    for frontier, colour in zip([baseline, *others], _COLOURS, strict=False):
        base = frontier is baseline
        style = ":" if frontier.family.delays else "-"
        share = 100 * frontier.cold_waits / frontier.costs[0].invocations
        inside = frontier.idle_s > 0  # the axis is logarithmic
        label = frontier.family.name
        width = 2.4 if base else 1.4
        axes.plot(frontier.idle_s[inside] / 3600, share[inside], style, marker=".", color=colour, label=label, linewidth=width)
    default = baseline.costs[marked]
    at = (default.idle_s / 3600, 100 * default.cold_waits / default.invocations)
    axes.plot(*at, "o", color="black", markersize=8, label=f"the default: {baseline.family.values[marked]:g} s")
    axes.axvline(at[0], color="black", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="minor", labelsize=7)
    axes.set_xlabel("idle hours charged")
    axes.set_ylabel("cold waits, % of invocations")
    axes.set_title("keeping warm (simulated): lower left is better; dotted delay asynchronous calls", fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, frameon=False)
