"""How well output lengths are predicted: calibration and pinball loss on outputs that were not learned from.

A predictor sees a workload's requests as an engine would show them, in order of arrival: it learns from the outputs of the
first part and is asked about those of the rest, before the first token and again after more of them; it may go on learning
from each output it was asked about, as in use, since it was asked before.

- *Coverage error*: outputs should fall below the predicted q-quantile in a share q of all cases; the mean distance from that
  over the quantiles.
- *Pinball loss* (Koenker and Bassett, 1978): the mean over quantiles of q (y - z) above and (1 - q) (z - y) below a predicted
  z, here of logarithms, so that an error of 10 % counts the same for short and for long outputs; proper: only the true
  distribution makes it least.
- *Error of the mean*: what an order by expected length rests on: rank correlation of predicted means and outputs (Spearman).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hasten.engine.request import AppContext, Request, SamplingParams
from hasten.lab.workloads.base import Workload
from hasten.lab.workloads.prompts import Prompts

if TYPE_CHECKING:
    from hasten.engine.scheduling.lengths.saved import Learning

Floats = npt.NDArray[np.float64]

LEVELS: Floats = np.linspace(0.05, 0.95, 19)
VOCABULARY = 32_000
AFTER = (0, 32, 128)
"""Tokens produced when a predictor is asked."""


@dataclass(frozen=True, slots=True)
class Example:
    """A request as the engine sees it, and its output's length."""

    request: Request
    output: int


def examples(workload: Workload, *, limit: int | None = None, seed: int = 0) -> list[Example]:
    """The workload's requests in order of arrival (stages where the workload has them). `limit`: their `max_tokens`."""
    prompts = Prompts(workload, VOCABULARY, seed=seed, encode=lambda text: [ord(c) % VOCABULARY for c in text])
    sampling = SamplingParams(max_tokens=limit)
    return [
        Example(
            Request(
                id=timed.id,
                prompt=prompts.tokens(timed),
                sampling=sampling,
                app=AppContext(application=timed.application, workflow=timed.workflow, stage=timed.stage),
                tenant=timed.tenant,
            ),
            timed.output_tokens,
        )
        for timed in workload
    ]


@dataclass(slots=True)
class Score:
    """`observed` float64 [LEVELS]: the share of outputs below each predicted quantile. `mean_rank`: Spearman's correlation of
    predicted means and outputs."""

    asked: int
    observed: Floats
    pinball: float
    mean_rank: float
    by_level: Floats = field(default_factory=lambda: np.empty(0))

    @property
    def coverage_error(self) -> float:
        return float(np.abs(self.observed - LEVELS).mean())


def score(
    predictor: Learning, learn: Sequence[Example], test: Sequence[Example], *, keep_learning: bool = True
) -> dict[int, Score]:
    """Scores by tokens produced when asked (`AFTER`; only outputs longer than that count, and at least 20 of them)."""
    for example in learn:
        predictor.observe(example.request, example.output, ended=True)
    samples: dict[int, list[Floats]] = {after: [] for after in AFTER}
    outputs: dict[int, list[int]] = {after: [] for after in AFTER}
    for example in test:
        for after in AFTER:
            if example.output > after:
                found = predictor.predict(example.request, after)
                assert found is not None, "it has learned"
                samples[after].append(found)
                outputs[after].append(example.output - after)
        if keep_learning:
            predictor.observe(example.request, example.output, ended=True)
    return {after: _score(samples[after], outputs[after]) for after in AFTER if len(outputs[after]) >= 20}


def _score(samples: list[Floats], outputs: list[int]) -> Score:
    y = np.array(outputs, dtype=np.float64)
    quantiles = np.stack([np.quantile(one, LEVELS, method="hazen") for one in samples])
    low, high = np.array([_place(one, length) for one, length in zip(samples, y.tolist(), strict=True)]).T
    width = np.maximum(high - low, 1e-9)
    below = np.clip((LEVELS - low[:, None]) / width[:, None], 0.0, 1.0)
    error = np.log(y)[:, None] - np.log(quantiles)
    loss = np.maximum(LEVELS * error, (LEVELS - 1) * error)
    means = np.array([one.mean() for one in samples])
    return Score(len(y), below.mean(0), float(loss.mean()), _spearman(means, y), loss.mean(0))


def _place(sample: Floats, length: float) -> tuple[float, float]:
    """(probability of less, probability of at most) `length` by the distribution that an ascending `sample` stands for: linear
    between samples, a step where several are equal to it. Lengths are whole and some distributions are one length, so an output
    is spread over its step (the probability integral transform of counts; Czado, Gneiting and Held, 2009)."""
    count = len(sample)
    left, right = int(np.searchsorted(sample, length, "left")), int(np.searchsorted(sample, length, "right"))
    if right > left:
        return left / count, right / count
    if left == 0:
        return 0.0, 0.5 / count
    if left == count:
        return 1 - 0.5 / count, 1.0
    share = (length - sample[left - 1]) / (sample[left] - sample[left - 1])
    place = (left - 0.5 + share) / count
    return place, place


def _spearman(a: Floats, b: Floats) -> float:
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def of_all(found: Sequence[Example]) -> list[Example]:
    """The same with nothing known of who asks: what a histogram of all outputs is asked and learns from."""
    import dataclasses

    blank: Any = AppContext()
    return [Example(dataclasses.replace(example.request, app=blank, tenant=""), example.output) for example in found]
