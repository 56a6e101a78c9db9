"""What an evaluation found: a score with its interval for every task and metric, and what became of every question.

Shares of right answers have the interval of Wilson (1927), which is honest near 0 and 100 %. Everything else, such as bits per
byte, has the percentile bootstrap over questions (Efron, 1979): questions are drawn anew, so a total over a total stays one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError
from scipy import stats

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
BITS_PER_BYTE = "bits_per_byte"
"""The metric of tasks that are scored by likelihood; lower is better."""
_RESAMPLES = 10_000


class Outcome(BaseModel):
    """One question. `question`: a hash of it, equal where two evaluations asked the same. `answer`: what was expected;
    `output`: what the model wrote (both empty where a text was only weighed). `scores`: by metric. `weight`: what the question
    counts, the bytes of the answer for bits per byte, otherwise 1. `prompt` is not written to files: it can be drawn again."""

    question: str
    answer: str
    output: str
    scores: dict[str, float]
    weight: float = 1.0
    prompt: str = Field("", exclude=True, repr=False)


class Estimate(BaseModel):
    """A score, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


class TaskScores(BaseModel):
    """One task's results. `task`: in its notation. `seconds`: of the engine's work on all its questions together."""

    task: str
    estimates: dict[str, Estimate]
    outcomes: list[Outcome]
    seconds: float
    prompt_tokens: int
    output_tokens: int

    def values(self, metric: str) -> Floats:
        """The metric of each question, float64 [n]."""
        return np.array([outcome.scores[metric] for outcome in self.outcomes])

    def weights(self) -> Floats:
        """What each question counts, float64 [n]."""
        return np.array([outcome.weight for outcome in self.outcomes])


class Scores(BaseModel):
    """An evaluation. `model` and `configuration`: as on the command line; `fingerprint`: of the weights. `engine`: what the
    engine says of itself and its device. `commit`: of this code, with `-dirty` where it was changed."""

    schema_version: Literal[1] = 1
    model: str
    fingerprint: str
    configuration: str
    seed: int
    split: str
    tasks: list[TaskScores]
    engine: dict[str, Any]
    cpu: str
    python: str
    torch: str
    version: str
    commit: str
    date: str

    @property
    def label(self) -> str:
        """The model and how it ran, in a line."""
        return f"{self.model}, {self.configuration}"

    def task(self, notation: str) -> TaskScores:
        """The scores of one task; KeyError when it was not asked."""
        for task in self.tasks:
            if task.task == notation:
                return task
        raise KeyError(notation)

    def write(self, path: Path) -> None:
        """Write everything but the prompts, as JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Scores:
        """What `write` wrote. Raises ValueError for a file that cannot be read or holds something else."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as fault:
            raise ValueError(f"{path}: {fault.strerror}") from None
        except ValidationError as fault:
            first = fault.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ValueError(f"{path} holds no scores of `hasten eval`: {where}: {first['msg']}") from None


def row_name(task: str, metric: str) -> str:
    """How tables and pictures call a metric of a task."""
    return task if metric in ("correct", BITS_PER_BYTE) else f"{task}, {metric.replace('_', ' ')}"


def estimate(values: Floats, weights: Floats) -> Estimate:
    """The weighted mean of `values` [n], n >= 2, with its interval: Wilson's where all are 0 or 1 and count the same."""
    value = float(np.average(values, weights=weights))
    if is_binary(values) and (weights == 1).all():
        low, high = wilson(int(values.sum()), len(values))
    else:
        low, high, _ = bootstrap(values, weights)
    return Estimate(value=value, low=low, high=high)


def is_binary(values: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def wilson(right: int, n: int) -> tuple[float, float]:
    interval = stats.binomtest(right, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(values: Floats, weights: Floats) -> tuple[float, float, Floats]:
    """The percentile interval of the weighted mean of `values` [n], and the means of all resamples. The same input gives the
    same interval."""

    def mean(values: Floats, weights: Floats, axis: int = -1) -> Floats:
        total: Floats = (values * weights).sum(axis) / weights.sum(axis)
        return total

    found = stats.bootstrap(
        (values, weights),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=500,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    interval = found.confidence_interval
    return float(interval.low), float(interval.high), found.bootstrap_distribution


def estimates(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> dict[str, Estimate]:
    """Each metric of a task over its questions."""
    weights = np.array([outcome.weight for outcome in outcomes])
    return {metric: estimate(np.array([o.scores[metric] for o in outcomes]), weights) for metric in metrics}
