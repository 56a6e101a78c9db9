"""One HTML file that shows what runs did: tables, definitions and pictures, with nothing to load from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from hasten import __version__
from hasten.engine.request import SLO
from hasten.lab.bench import metrics, report_plots
from hasten.lab.bench.compare import Compared, Spread
from hasten.lab.bench.figures import LATENCIES, PARTS, best, present, show
from hasten.lab.bench.report_page import PAGE
from hasten.lab.bench.run import LAG_LIMIT_S, Run
from hasten.lab.bench.saturation import Probe


def write(
    path: Path,
    runs: Sequence[Run],
    *,
    slo: SLO | None = None,
    title: str = "",
    compared: Sequence[Compared] = (),
    names: tuple[str, str] = ("A", "B"),
    curves: Mapping[str, Sequence[Probe]] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the report of one to four runs, side by side where there are several.

    `compared`: figures of rounds of A against B, whose `names` these are; it then leads, and `runs` illustrate it (the last
    round's, say). `curves`: measured loads by system, for the throughput-latency curve. `notes`: sentences for the reader.
    Raises ValueError for no run or more than four, and when two have the same name."""
    most = len(report_plots.SERIES)
    if not 1 <= len(runs) <= most or len({run.name for run in runs}) < len(runs):
        raise ValueError(f"a report shows one to {most} runs of different names, got {[run.name for run in runs]}")
    path.write_text(html(runs, slo, title, compared, names, curves or {}, notes), encoding="utf-8")


def html(
    runs: Sequence[Run],
    slo: SLO | None,
    title: str,
    compared: Sequence[Compared],
    names: tuple[str, str],
    curves: Mapping[str, Sequence[Probe]],
    notes: Sequence[str],
) -> str:
    tables = [metrics.requests(run) for run in runs]
    summaries = [metrics.summary(run, slo) for run in runs]
    workload = runs[0].workload
    ok = any(table.ok.any() for table in tables)
    pictures = [
        (
            "Throughput and latency",
            "A dot is a measured load; solid lines are medians, dashed ones the 99th percentile.",
            report_plots.curves(dict(curves)) if curves else "",
        ),
        (
            "Distributions",
            "Of the requests that ended well; dots mark the 50th and the 99th percentile.",
            report_plots.distributions(runs, tables, slo) if ok else "",
        ),
        (
            "Latency over time",
            "A dot is a request, the lines are running medians.",
            report_plots.over_time(runs, tables, slo) if ok else "",
        ),
        ("The engine", "Averages of successive steps.", report_plots.engine(runs)),
        *(_timeline(i, run, table, len(runs) > 1) for i, (run, table) in enumerate(zip(runs, tables, strict=True))),
    ]
    alone = len(runs) == 1
    # Where a run is invalid, no side is said to be better.
    valid = all(run.valid for run in runs)
    definitions = dict.fromkeys(
        text for run in runs for text in (metrics.goodput_definition(run, slo), metrics.fairness_definition(run)) if text
    )
    return _TEMPLATE.render(
        title=title or f"{' and '.join(run.name for run in runs)} on {workload.name}",
        version=__version__,
        workload=workload,
        simulated=[run.name for run in runs if run.simulated],
        all_simulated=all(run.simulated for run in runs),
        invalid=[(run.name, show(run.lag_p99_s, "s")) for run in runs if not run.valid],
        lag_limit=show(LAG_LIMIT_S, "s"),
        tiles=_tiles(summaries[0]) if alone else [],
        latencies=_latencies(summaries[0]) if alone else [],
        names=names,
        compared=[_row(one, valid) for one in compared],
        runs=runs,
        figures=[_cells(one, summaries, valid) for one in present(summaries) if not (alone and _is_latency(one.key))],
        definitions=list(definitions),
        notes=list(notes),
        errors=[(run.name, len(run.errors), _first_errors(run)) for run in runs if run.errors],
        info=[(run.name, {str(k): v for k, v in run.info.items()}) for run in runs if run.info],
        pictures=[(heading, caption, svg) for heading, caption, svg in pictures if svg],
    )


def _timeline(number: int, run: Run, table: metrics.Table, several: bool) -> tuple[str, str, str]:
    if not len(report_plots.window(table)):
        return "", "", ""
    caption = "The requests around the longest wait for a first token. "
    limit_s = report_plots.stall_limit_s(run)
    if limit_s < float("inf"):
        caption += f"A stall is a gap between tokens of {show(limit_s, 's')} or more: {report_plots.STALL_RULE}."
    return (
        f"Timeline of {run.name}" if several else "Timeline",
        caption,
        report_plots.timeline(run, table, f"gantt{number}"),
    )


def _tiles(summary: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """(label, value, detail) of the figures that matter most."""
    wanted = [
        ("time to first token", "ttft_p50_s", "ttft_p99_s"),
        ("time per output token", "tpot_p50_s", "tpot_p99_s"),
        ("end-to-end", "e2e_p50_s", "e2e_p99_s"),
    ]
    out = [(label, show(summary[p50], "s"), f"p99 {show(summary[p99], 's')}") for label, p50, p99 in wanted if p50 in summary]
    if "output_tokens_per_s" in summary:
        out.append(
            ("output tokens", show(summary["output_tokens_per_s"], "/s"), f"{show(summary['requests_per_s'], '/s')} requests")
        )
    if "goodput" in summary:
        out.append(("goodput", show(summary["goodput"], "share"), f"{show(summary.get('goodput_per_s'), '/s')} requests"))
    return out


def _is_latency(key: str) -> bool:
    return key.partition("_")[0] in LATENCIES


def _latencies(summary: Mapping[str, float]) -> list[tuple[str, list[str]]]:
    """(what, its values at `PARTS`)."""
    there = ((key, label) for key, label in LATENCIES.items() if f"{key}_{PARTS[0]}_s" in summary)
    return [(label, [show(summary[f"{key}_{part}_s"], "s") for part in PARTS]) for key, label in there]


def _cells(figure: Any, summaries: Sequence[Mapping[str, float]], valid: bool) -> tuple[str, list[tuple[str, bool]]]:
    values = [summary.get(figure.key) for summary in summaries]
    return figure.label, [
        (show(value, figure.unit), good and valid) for value, good in zip(values, best(figure, values), strict=True)
    ]


def _row(one: Compared, valid: bool) -> dict[str, Any]:
    unit = one.figure.unit

    def side(spread: Spread) -> tuple[str, str]:
        around = "" if spread.low == spread.high else f"{show(spread.low, unit)} … {show(spread.high, unit)}"
        return show(spread.middle, unit), around

    ratio = ("–", "") if one.ratio is None else (f"{one.ratio.middle:.2f}×", f"{one.ratio.low:.2f} … {one.ratio.high:.2f}")
    return {
        "label": one.figure.label,
        "a": side(one.a),
        "b": side(one.b),
        "ratio": ratio,
        "better": one.better if valid else "",
    }


def _first_errors(run: Run) -> list[str]:
    counted: dict[str, int] = {}
    for error in run.errors.values():
        counted[error] = counted.get(error, 0) + 1
    most = sorted(counted.items(), key=lambda item: -item[1])[:5]
    return [f"{error} ({count}×)" if count > 1 else error for error, count in most]


_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
