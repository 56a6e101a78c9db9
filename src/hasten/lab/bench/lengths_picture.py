"""Calibration as a picture: nominal quantiles against the share of outputs found below them."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.lab.bench.lengths import LEVELS, Score


def calibration(scores: Mapping[str, Mapping[str, Mapping[int, Score]]]) -> bytes:
    """PNG: for each workload a plot with a line for each predictor; dotted: asked again after the most tokens there is a score
    for. `scores`: by workload, predictor and tokens produced."""
    from hasten.lab.claims.picture import axes, png

    figure, plots = axes(len(scores), height=3.2)
    for plot, (workload, by_predictor) in zip(plots, scores.items(), strict=True):
        plot.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
        for name, by_tokens in by_predictor.items():
            first, last = by_tokens[0], by_tokens[max(by_tokens)]
            (line,) = plot.plot(LEVELS, first.observed, label=f"{name}: {first.pinball:.3f}", linewidth=1.3)
            if last is not first:
                plot.plot(LEVELS, last.observed, linestyle=":", color=line.get_color(), linewidth=1.0)
        plot.set(title=workload, xlabel="predicted quantile", ylabel="outputs below it", xlim=(0, 1), ylim=(0, 1))
        plot.title.set_fontsize(9)
        plot.legend(frameon=False, fontsize=7, title="pinball loss", title_fontsize=7)
    return png(figure)
