"""Quality levels: how coarse the bins of keys and values are, by depth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Level:
    """Bins of keys and values in standard deviations, taken over the channels of a head and the tokens of a chunk."""

    keys: float
    values: float


LEVELS = (Level(0.25, 1.0), Level(0.4, 1.5), Level(0.6, 1.9))
"""From the finest on. Values bear far coarser bins than keys, whose errors decide where attention goes."""
DEFAULT = 1
DEPTH = (0.6, 1.0, 1.4)
"""What bins are multiplied with in the first, second and last third of the sites: what is lost early harms all that follows."""


def bins(level: Level, site: int, sites: int) -> tuple[float, float]:
    """Bins of the keys and the values of a site."""
    factor = DEPTH[site * len(DEPTH) // sites]
    return level.keys * factor, level.values * factor
