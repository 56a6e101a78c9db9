"""Scores by task as dots with their intervals, of one evaluation or several. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hasten.lab.testbed.scores import BITS_PER_BYTE, Scores, row_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#1f6feb", "#e36209", "#2da44e", "#8250df")
_ROW_INCHES = 0.34

Row = tuple[str, str]
"""A task's notation and a metric."""


def picture(evaluations: Mapping[str, Scores]) -> bytes:
    """PNG of one to four evaluations by name: a row for each task and metric, shares in per cent and bits per byte apart.

    Raises ValueError for none or too many."""
    from matplotlib.figure import Figure

    if not 1 <= len(evaluations) <= len(_COLOURS):
        raise ValueError(f"a picture shows 1 to {len(_COLOURS)} evaluations, got {len(evaluations)}")
    rows = list(
        dict.fromkeys((t.task, metric) for scores in evaluations.values() for t in scores.tasks for metric in t.estimates)
    )
    panels = [part for part in ([r for r in rows if r[1] != BITS_PER_BYTE], [r for r in rows if r[1] == BITS_PER_BYTE]) if part]
    heights = [len(part) + 1.5 for part in panels]
    figure = Figure(figsize=(9, 0.9 + _ROW_INCHES * sum(heights)), layout="constrained")
    axes: Any = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for part, one in zip(panels, axes[:, 0], strict=True):
        _draw(one, part, evaluations)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", frameon=False, fontsize=9)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


def _draw(axes: Axes, rows: list[Row], evaluations: Mapping[str, Scores]) -> None:
    in_bits = rows[0][1] == BITS_PER_BYTE
    scale = 1.0 if in_bits else 100.0
    for number, (name, scores) in enumerate(evaluations.items()):
        found = {(task.task, metric): e for task in scores.tasks for metric, e in task.estimates.items()}
        mine = [(i, found[row]) for i, row in enumerate(rows) if row in found]
        shift = (number - (len(evaluations) - 1) / 2) * 0.22
        axes.errorbar(
            [scale * e.value for _, e in mine],
            [i + shift for i, _ in mine],
            xerr=[[scale * (e.value - e.low) for _, e in mine], [scale * (e.high - e.value) for _, e in mine]],
            fmt="o",
            color=_COLOURS[number],
            markersize=5,
            elinewidth=1.6,
            capsize=3,
            label=name,
        )
    axes.set_yticks(range(len(rows)), [row_name(*row) for row in rows])
    axes.tick_params(labelsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(
        "bits per byte, lower is better (95 % interval)" if in_bits else "% of questions (95 % interval)", fontsize=9
    )
    if not in_bits:
        axes.set_xlim(-2, 102)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
