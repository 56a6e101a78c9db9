"""Demand graphs in one picture: units as boxes with what they ask for, ways on as arrows with their chances. Needs
matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.engine.scheduling.demand.graph import BY_VISIT, END, NOBODY, DemandGraph, Seen
from hasten.lab.workloads.base import WorkloadError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 0.36, 0.5
_END: dict[str, Any] = {"boxstyle": "circle", "fc": "white", "ec": "grey"}
_PLAIN: dict[str, Any] = {"fc": "white", "ec": "none", "pad": 0.4}
_RAREST = 0.02
"""Ways on that fewer take are left out."""


def picture(graphs: Sequence[DemandGraph]) -> bytes:
    """PNG: a row for each graph."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise WorkloadError("pictures need matplotlib: pip install 'hasten[plots]'") from error
    widest = max(len(_columns(graph)) for graph in graphs)
    figure = Figure(figsize=(max(8.0, 2.3 * (widest + 1)), 3.0 * len(graphs)), layout="constrained")
    panels: Any = figure.subplots(len(graphs), 1, squeeze=False)
    for axes, graph in zip(panels[:, 0], graphs, strict=True):
        _draw(axes, graph)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def ways(graph: DemandGraph, unit: int) -> list[tuple[int, float]]:
    """(next unit or END, share of visits that went there), the likeliest first."""
    following, counts = np.unique(graph.seen[unit].next, return_counts=True)
    shares = (counts / counts.sum()).tolist()
    return sorted(zip(following.tolist(), shares, strict=True), key=lambda way: -way[1])


def told_by(graph: DemandGraph, feature: int) -> str:
    """What a feature is, in words."""
    if feature in (NOBODY, BY_VISIT):
        return "" if feature == NOBODY else "the number of the visit"
    unit = feature % len(graph.units)
    if not graph.seen[unit].visits[0].calls:
        return f"{graph.units[unit]}'s time"
    return f"what {graph.units[unit]} {'reads' if feature == unit else 'writes'}"


def words(seen: Seen) -> str:
    """What a unit asks for, with 10th to 90th percentiles."""
    if not seen.visits[0].calls:
        return f"{_range([visit.duration_s for visit in seen.visits])} s"
    calls = [len(visit.calls) for visit in seen.visits]
    prompts = [prompt for visit in seen.visits for prompt, _ in visit.calls]
    outputs = [output for visit in seen.visits for _, output in visit.calls]
    several = f"{_range(calls)} calls of\n" if max(calls) > 1 else ""
    return f"{several}{_range(prompts)} in\n{_range(outputs)} out"


def _range(values: Sequence[float]) -> str:
    low, high = np.nanpercentile(values, [10, 90]).tolist()
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"


def _columns(graph: DemandGraph) -> list[list[int]]:
    """Units by their median place in the runs that visit them."""
    places: list[list[int]] = [[] for _ in graph.units]
    for run in graph.runs:
        met: dict[str, int] = {}
        for visit in run:
            met.setdefault(visit.unit, len(met))
        for name, place in met.items():
            places[graph.number[name]].append(place)
    columns: dict[float, list[int]] = {}
    for unit, found in enumerate(places):
        columns.setdefault(float(np.median(found)), []).append(unit)
    return [columns[place] for place in sorted(columns)]


def _draw(axes: Axes, graph: DemandGraph) -> None:
    columns = _columns(graph)
    at: dict[int, tuple[float, float]] = {}
    for column, units in enumerate(columns):
        for row, unit in enumerate(units):
            at[unit] = (float(column), (len(units) - 1) / 2 - row)
    at[END] = (float(len(columns)), 0.0)
    for unit, (x, y) in at.items():
        if unit == END:
            axes.text(x, y, "end", ha="center", va="center", fontsize=8, bbox=_END)
            continue
        seen = graph.seen[unit]
        tool = not seen.visits[0].calls
        box: dict[str, Any] = {
            "boxstyle": "round,pad=0.35",
            "fc": "#fff4e5" if tool else "#e8f1fe",
            "ec": "#e36209" if tool else "#1f6feb",
        }
        axes.text(x, y, f"{graph.units[unit]}\n{words(seen)}", ha="center", va="center", fontsize=7.5, bbox=box, zorder=3)
        for following, share in ways(graph, unit):
            if share >= _RAREST:
                _arrow(axes, at[unit], at[following], share)
    axes.set_xlim(-0.6, len(columns) + 0.4)
    heights = [y for _, y in at.values()]
    axes.set_ylim(min(heights) - 1.0, max(heights) + 1.0)
    axes.set_axis_off()
    axes.set_title(f"{graph.application}: {len(graph.runs)} runs (10th to 90th percentiles)", fontsize=9, loc="left")


def _arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float], share: float) -> None:
    (x0, y0), (x1, y1) = begin, end
    style: dict[str, Any] = {"arrowstyle": "-|>", "color": "#57606a", "lw": 0.6 + 2.2 * share, "shrinkA": 2, "shrinkB": 2}
    label: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": "#24292f", "bbox": _PLAIN}
    if begin == end:
        loop = {**style, "connectionstyle": "arc3,rad=-1.6"}
        axes.annotate("", (x0 + 0.16, y0 + 0.36), (x0 - 0.16, y0 + 0.36), arrowprops=loop)
        axes.text(x0, y0 + _HEIGHT + 0.12, f"{share:.0%}", **label)
        return
    far = abs(x1 - x0) > 1.5 or x1 < x0
    bend = (-0.35 if x1 > x0 else -0.3) if far else 0.0
    side = _WIDTH if x1 >= x0 else -_WIDTH
    if far:
        edge = 0.36 if x1 > x0 else -0.36
        start, stop = (x0, y0 + edge), (x1, y1 + edge)
        if x1 < x0:
            bend = -0.3
    else:
        start, stop = (x0 + side, y0), (x1 - side, y1)
    axes.annotate("", stop, start, arrowprops={**style, "connectionstyle": f"arc3,rad={bend}"})
    # The middle of the arc lies half its height off the chord, to the side it bends to.
    dx, dy = stop[0] - start[0], stop[1] - start[1]
    middle = ((start[0] + stop[0]) / 2 + bend * dy / 2, (start[1] + stop[1]) / 2 - bend * dx / 2)
    axes.text(*middle, f"{share:.0%}", zorder=4, **label)
