"""Does what a unit asks for, or where a run goes from it, depend on what came before? Two tests with categories.

Kruskal and Wallis (1952) for amounts: whether the ranks of the values differ between categories, ties corrected. Pearson's
chi-squared test of independence for branches. Both p-values are those of the chi-squared limit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SMALLEST = 5
"""Categories with fewer observations are left out."""


def amounts_differ(values: Floats, categories: Ints) -> float:
    """p-value float in (0, 1] of Kruskal and Wallis; 1 where fewer than two categories are large enough. Arrays [n]."""
    kept, categories = _large(categories)
    values = values[kept]
    sizes = np.bincount(categories)
    n, groups = len(values), len(sizes)
    if groups < 2:
        return 1.0
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    ties = 1.0 - float((counts.astype(np.float64) ** 3 - counts).sum()) / (float(n) ** 3 - n)
    if ties <= 0:
        return 1.0  # all values are equal
    sums = np.bincount(categories, rank)
    h = (12.0 / (n * (n + 1)) * float((sums**2 / sizes).sum()) - 3 * (n + 1)) / ties
    return _tail(h, groups - 1)


def branches_differ(outcomes: Ints, categories: Ints) -> float:
    """p-value of the chi-squared test that `outcomes` do not depend on `categories`; arrays [n]."""
    kept, categories = _large(categories)
    if not len(categories):
        return 1.0
    _, outcomes = np.unique(outcomes[kept], return_inverse=True)
    rows, columns = int(categories.max()) + 1, int(outcomes.max()) + 1
    if rows < 2 or columns < 2:
        return 1.0
    table = np.bincount(categories * columns + outcomes, minlength=rows * columns).reshape(rows, columns).astype(np.float64)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    return _tail(float(((table - expected) ** 2 / expected).sum()), (rows - 1) * (columns - 1))


def _large(categories: Ints) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Which observations are of categories that are large enough, and the categories of these, numbered from 0."""
    _, inverse, counts = np.unique(categories, return_inverse=True, return_counts=True)
    kept = counts >= SMALLEST
    chosen = kept[inverse]
    return chosen, (np.cumsum(kept) - 1)[inverse][chosen]


def _tail(statistic: float, freedom: int) -> float:
    from scipy.special import chdtrc

    return float(chdtrc(freedom, max(0.0, statistic)))
