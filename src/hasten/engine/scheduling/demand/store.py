"""Demand graphs in a file: JSON, one graph an application, and how long each backend takes to warm up."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hasten.engine.scheduling.demand.graph import DemandGraph
from hasten.engine.technique import ConfigError

FORMAT = "hasten demand 1"


@dataclass(slots=True)
class Demand:
    """`graphs` by application. `warm_s`: seconds of warm-up by backend; those that are not named need none."""

    graphs: dict[str, DemandGraph] = field(default_factory=dict)
    warm_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for backend, seconds in self.warm_s.items():
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
                raise ValueError(f"the warm-up of {backend} must be a number of seconds from 0 on, got {seconds!r}")

    def merged(self, other: Demand) -> Demand:
        """The runs of both; `other`'s warm-up times count."""
        graphs = dict(self.graphs)
        for application, graph in other.graphs.items():
            graphs[application] = graphs[application].merged(graph) if application in graphs else graph
        return Demand(graphs, {**self.warm_s, **other.warm_s})

    def save(self, path: str | Path) -> None:
        content = {
            "format": FORMAT,
            "warm_s": self.warm_s,
            "applications": {application: graph.as_dict() for application, graph in self.graphs.items()},
        }
        Path(path).write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Demand:
        """Raises ConfigError for a file that cannot be read or is none of these."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        except ValueError as error:
            raise ConfigError(f"{path} is no demand file: {error}") from None
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise ConfigError(f"{path} is no demand file; `hasten demand learn` writes one")
        try:
            graphs = {name: DemandGraph.of_dict(name, graph) for name, graph in content["applications"].items()}
            return cls(graphs, dict(content["warm_s"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from None
