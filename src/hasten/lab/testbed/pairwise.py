"""Two evaluations on the same questions, question by question.

Right or wrong: the exact test of McNemar (1947) on the questions that only one of the two got right, and the difference with
the interval of Newcombe (1998, method 10: from the two Wilson intervals and their correlation). Real-valued: the paired
bootstrap.
The p values are of single comparisons; among many tasks some are small by chance.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel
from scipy import stats

from hasten.lab.testbed.scores import Estimate, Floats, Scores, TaskScores, bootstrap, is_binary, wilson


class Difference(BaseModel):
    """One metric of one task in both. `difference`: b less a, with 95 % confidence. `p`: how probable a difference at least
    this large is if the two are equally good. `only_a`, `only_b`: questions that one alone got right, where answers are right
    or wrong."""

    task: str
    metric: str
    n: int
    a: Estimate
    b: Estimate
    difference: Estimate
    p: float
    only_a: int | None = None
    only_b: int | None = None


def compare(a: Scores, b: Scores) -> list[Difference]:
    """Every metric of every task, b against a. Raises ValueError unless both were asked the same questions."""
    ours, theirs = ({task.task: task for task in scores.tasks} for scores in (a, b))
    if ours.keys() != theirs.keys():
        unlike = ", ".join(sorted(ours.keys() ^ theirs.keys()))
        raise ValueError(f"only evaluations of the same tasks can be compared; one alone has {unlike}")
    return [one for name, task in ours.items() for one in _compare_task(task, theirs[name])]


def _compare_task(a: TaskScores, b: TaskScores) -> list[Difference]:
    asked = [[outcome.question for outcome in task.outcomes] for task in (a, b)]
    if asked[0] != asked[1]:
        raise ValueError(
            f"{a.task}: the questions differ; n, seed, split, texts (HASTEN_DATA) and the models' tokenizer have to be the same"
        )
    if a.estimates.keys() != b.estimates.keys():
        raise ValueError(f"{a.task}: the metrics differ: {', '.join(a.estimates)} and {', '.join(b.estimates)}")
    return [_compare_metric(a, b, metric) for metric in a.estimates]


def _compare_metric(a: TaskScores, b: TaskScores, metric: str) -> Difference:
    ours, theirs, weights = a.values(metric), b.values(metric), a.weights()
    both = {"task": a.task, "metric": metric, "n": len(ours), "a": a.estimates[metric], "b": b.estimates[metric]}
    if is_binary(ours) and is_binary(theirs) and (weights == 1).all():
        only_a, only_b = int((ours > theirs).sum()), int((theirs > ours).sum())
        p = float(stats.binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
        return Difference(**both, difference=newcombe(ours, theirs), p=p, only_a=only_a, only_b=only_b)
    low, high, means = bootstrap(theirs - ours, weights)
    value = float(np.average(theirs - ours, weights=weights))
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (1 + float(beyond)) / (1 + len(means)))
    return Difference(**both, difference=Estimate(value=value, low=low, high=high), p=p)


def newcombe(a: Floats, b: Floats) -> Estimate:
    """The share right of `b` less that of `a`, both 0 or 1 [n] on the same questions, with Newcombe's interval."""
    n = len(a)
    ours, theirs = float(a.mean()), float(b.mean())
    (low_a, high_a), (low_b, high_b) = wilson(int(a.sum()), n), wilson(int(b.sum()), n)
    phi = _correlation(a, b)

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    value = theirs - ours
    low = value - reach(theirs - low_b, high_a - ours)
    return Estimate(value=value, low=low, high=value + reach(high_b - theirs, ours - low_a))


def _correlation(a: Floats, b: Floats) -> float:
    """Phi of the two, corrected for continuity where it is positive; 0 where one of them is all alike."""
    n = len(a)
    both, neither = int((a * b).sum()), int(((1 - a) * (1 - b)).sum())
    only_a, only_b = int(a.sum()) - both, int(b.sum()) - both
    scale = math.sqrt(a.sum() * b.sum() * (n - a.sum()) * (n - b.sum()))
    if not scale:
        return 0.0
    product = both * neither - only_a * only_b
    return (max(product - n / 2, 0) if product > 0 else product) / scale
