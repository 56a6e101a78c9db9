"""The figures of a run's summary as people read them: their names, units, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """`key`: in `metrics.summary`. `unit`: `s`, `share`, `bytes`, `/s` or empty (a count). `better`: `lower`, `higher` or empty
    (neither: it says what ran)."""

    key: str
    label: str
    unit: str
    better: str = ""


LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "gap": "inter-token gap", "e2e": "end-to-end", "queue": "queueing"}
"""Labels of what a summary has as `<key>_<part>_s` for each of `PARTS`."""
PARTS = ("p50", "p95", "p99", "mean")


FIGURES: tuple[Figure, ...] = (
    Figure("requests", "requests", ""),
    Figure("failed", "failed", "", "lower"),
    Figure("prompt_tokens", "prompt tokens", ""),
    Figure("output_tokens", "output tokens", ""),
    Figure("goodput", "goodput", "share", "higher"),
    Figure("goodput_per_s", "goodput, requests", "/s", "higher"),
    Figure("requests_per_s", "throughput, requests", "/s", "higher"),
    Figure("output_tokens_per_s", "throughput, output tokens", "/s", "higher"),
    Figure("tokens_per_s", "throughput, all tokens", "/s", "higher"),
    *(Figure(f"{key}_{part}_s", f"{label} {part}", "s", "lower") for key, label in LATENCIES.items() for part in PARTS),
    Figure("longest_stall_s", "longest stall", "s", "lower"),
    Figure("workflow_p50_s", "application completion p50", "s", "lower"),
    Figure("workflow_p99_s", "application completion p99", "s", "lower"),
    Figure("jain", "fairness (Jain)", "index", "higher"),
    Figure("prefix_hit_rate", "prefix hits", "share", "higher"),
    Figure("preemptions", "preemptions", "", "lower"),
    Figure("kv_mean", "KV in use, mean", "share"),
    Figure("kv_peak", "KV in use, peak", "share"),
    Figure("drafted", "drafted tokens", ""),
    Figure("accepted", "accepted tokens", ""),
    Figure("peak_memory_bytes", "peak memory", "bytes", "lower"),
    Figure("cpu_s_per_token", "CPU per output token", "s", "lower"),
    Figure("lag_p99_s", "replay's own lag p99", "s"),
)

HEADLINE = (
    "failed", "goodput", "requests_per_s", "output_tokens_per_s", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s",
    "e2e_p50_s", "e2e_p99_s", "gap_p99_s", "longest_stall_s", "workflow_p50_s", "prefix_hit_rate", "preemptions", "kv_peak",
    "lag_p99_s",
)  # fmt: skip
"""Keys of the figures a terminal shows; a report shows all."""


def present(summaries: Sequence[Mapping[str, float]], keys: Sequence[str] | None = None) -> list[Figure]:
    """The figures that at least one of the summaries has."""
    return [
        figure
        for figure in FIGURES
        if (keys is None or figure.key in keys) and any(figure.key in summary for summary in summaries)
    ]


def show(value: float | None, unit: str) -> str:
    """With a unit that fits its size; a dash for what is not there."""
    if value is None or value != value:
        return "–"
    if unit == "s":
        if 0 < abs(value) < 1e-3:
            return f"{value * 1e6:.0f} µs"
        return f"{value * 1e3:.3g} ms" if abs(value) < 1 else f"{value:.2f} s" if abs(value) < 100 else f"{value:.0f} s"
    if unit == "share":
        return f"{value:.1%}"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB" if value < 2**30 else f"{value / 2**30:.2f} GiB"
    if unit == "/s":
        return f"{value:.3g} /s" if value < 100 else f"{value:.0f} /s"
    return f"{value:.3f}" if unit == "index" else f"{value:,.0f}"


def best(figure: Figure, values: Sequence[float | None]) -> list[bool]:
    """Which of the values are the better ones; none where they are all the same, or neither way is better."""
    there = [value for value in values if value is not None]
    if not figure.better or len(there) < 2 or min(there) == max(there):
        return [False] * len(values)
    target = min(there) if figure.better == "lower" else max(there)
    return [value == target for value in values]
