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

_INCH = 2.3
"""Of a column; rows are closer together. Axes are drawn to scale, so that arcs are where their labels are put."""
_ROW = 0.42
_SIDE, _TOP = 0.31, 0.15
"""From a box's middle to where arrows begin."""
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
    places = [_places(graph) for graph in graphs]
    widest = max(place[END][0] for place in places) + 1.0
    heights = [_high(place) - _low(place) for place in places]
    figure = Figure(figsize=(_INCH * widest, _INCH * sum(heights) + 0.3 * len(graphs)), layout="constrained")
    panels: Any = figure.subplots(len(graphs), 1, squeeze=False, height_ratios=heights)
    for axes, graph, place in zip(panels[:, 0], graphs, places, strict=True):
        _draw(axes, graph, place, widest)
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
    low, high = (_short(value) for value in np.nanpercentile(values, [10, 90]).tolist())
    return low if low == high else f"{low} to {high}"


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}" if value < 1000 else f"{value / 1000:.2g}k"


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


def _places(graph: DemandGraph) -> dict[int, tuple[float, float]]:
    """Where the middle of each unit, and the end, is drawn."""
    columns = _columns(graph)
    at = {END: (float(len(columns)), 0.0)}
    for column, units in enumerate(columns):
        for row, unit in enumerate(units):
            at[unit] = (float(column), _ROW * ((len(units) - 1) / 2 - row))
    return at


def _low(at: dict[int, tuple[float, float]]) -> float:
    return min(y for _, y in at.values()) - 0.5


def _high(at: dict[int, tuple[float, float]]) -> float:
    return max(y for _, y in at.values()) + 0.55


def _draw(axes: Axes, graph: DemandGraph, at: dict[int, tuple[float, float]], widest: float) -> None:
    for unit, (x, y) in at.items():
        if unit == END:
            axes.text(x, y, "end", ha="center", va="center", fontsize=8, bbox=_END)
            continue
        seen = graph.seen[unit]
        tool = not seen.visits[0].calls
        box: dict[str, Any] = {"boxstyle": "round,pad=0.35", "fc": "#fff4e5", "ec": "#e36209"}
        if not tool:
            box |= {"fc": "#e8f1fe", "ec": "#1f6feb"}
        axes.text(x, y, f"{graph.units[unit]}\n{words(seen)}", ha="center", va="center", fontsize=7.5, bbox=box, zorder=3)
        for following, share in ways(graph, unit):
            if share >= _RAREST:
                _arrow(axes, at[unit], at[following], share)
    axes.set_xlim(-0.5, widest - 0.5)
    axes.set_ylim(_low(at), _high(at))
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title(f"{graph.application}: {len(graph.runs)} runs (10th to 90th percentiles)", fontsize=9, loc="left")


def _arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float], share: float) -> None:
    (x0, y0), (x1, y1) = begin, end
    dx = x1 - x0
    if begin == end:
        start, stop, height = (x0 + 0.12, y0 + _TOP), (x0 - 0.12, y0 + _TOP), 0.2
    elif 0 < dx < 1.5:
        start, stop, height = (x0 + _SIDE, y0), (x1 - _SIDE, y1), 0.0
    else:  # over the units between, or back below them
        side = 1 if dx > 0 else -1
        start, stop = (x0, y0 + side * _TOP), (x1, y1 + side * _TOP)
        height = 0.16 + 0.03 * abs(dx)
    across, up = stop[0] - start[0], stop[1] - start[1]
    length = max(1e-9, (across**2 + up**2) ** 0.5)
    bend = -2 * height / length  # the middle of the curve lies half as far off the chord as its control point
    style = {"arrowstyle": "-|>", "color": "#57606a", "lw": 0.6 + 2.2 * share, "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", stop, start, arrowprops={**style, "shrinkA": 2, "shrinkB": 2})
    x = (start[0] + stop[0]) / 2 + bend * up / 2
    y = (start[1] + stop[1]) / 2 - bend * across / 2
    label: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": "#24292f", "bbox": _PLAIN}
    axes.text(x, y, f"{share:.0%}", zorder=4, **label)
