"""Techniques: named policies behind the seams, found without importing the others, switched on by name.

A technique is a file `engine/<seam>/<name with underscores>.py` that holds `TECHNIQUE`; other packages add theirs through the
entry-point group `hasten.techniques`. Switching one on sets fields of `EngineConfig` (`sets`); two techniques that set one
field to different values cannot run together, and neither can those that say so (`conflicts`): both are refused by name, with
the reason, when the engine is configured.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

SEAMS = ("scheduling", "kv", "attention", "decoding", "weights", "depth", "executors")
ENTRY_POINTS = "hasten.techniques"


class ConfigError(ValueError):
    """The engine cannot be configured as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """What a technique's file says of it.

    `exact`: gives the plain engine's tokens. `sets`: config paths and the values that switch it on; a tuple is added to what a
    list of parts holds already. `options`: a dataclass of
    its knobs, filled from `--with name:knob=value`; a field's `metadata={"search": values}` says what a search for the best
    value should try. `make(context, options)` builds the policy object; the context depends on
    the seam (see its `base.py`). `form(options)`: of an attention policy, how its keys and values lie in the pool
    (`kv.planes.Form`; None: dense). `default`: part of the plain engine. `paper`: title and year, empty for the defaults.
    """

    name: str
    seam: str
    summary: str
    exact: bool
    sets: Mapping[str, Any]
    make: Callable[[Any, Any], Any] | None = None
    options: type[Any] | None = None
    form: Callable[[Any], Any] | None = None
    paper: str = ""
    requires: tuple[str, ...] = ()
    conflicts: Mapping[str, str] = field(default_factory=dict)
    default: bool = False


def find(name: str) -> Technique:
    """The technique called `name`; imports its file only. Raises ConfigError with the nearest names."""
    module = name.replace("-", "_")
    if module.isidentifier():
        for seam in SEAMS:
            path = f"hasten.engine.{seam}.{module}"
            if importlib.util.find_spec(path) is not None:
                technique = getattr(importlib.import_module(path), "TECHNIQUE", None)
                if isinstance(technique, Technique) and technique.name == name:
                    return technique
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            return _load(entry)
    import difflib

    known = [t.name for t in all_techniques()]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise ConfigError(f"no technique is called {name!r}; {hint}")


def _load(entry: Any) -> Technique:
    technique = entry.load()
    if not isinstance(technique, Technique):
        raise ConfigError(f"entry point {entry.name!r} of {ENTRY_POINTS} is no Technique but {type(technique).__name__}")
    return technique


def all_techniques() -> list[Technique]:
    """Every technique, by seam and name (imports them all)."""
    found = []
    for seam in SEAMS:
        package = importlib.import_module(f"hasten.engine.{seam}")
        for module in pkgutil.iter_modules(package.__path__):
            technique = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "TECHNIQUE", None)
            if isinstance(technique, Technique):
                found.append(technique)
    found += [_load(entry) for entry in entry_points(group=ENTRY_POINTS)]
    return sorted(found, key=lambda t: (SEAMS.index(t.seam) if t.seam in SEAMS else len(SEAMS), t.name))


def decides(one: Any, other: Any) -> bool:
    """Whether two techniques that set one field to these values decide it differently; lists take both."""
    return bool(one != other) and not isinstance(one, tuple)


def refuse(techniques: Iterable[Technique]) -> None:
    """Raise ConfigError naming the first two techniques that cannot work together, or one whose requirement is missing."""
    chosen = list(techniques)
    names = {t.name for t in chosen}
    for i, one in enumerate(chosen):
        for need in one.requires:
            if need not in names:
                raise ConfigError(f"{one.name} needs {need}: switch it on too")
        for other in chosen[i + 1 :]:
            reason = one.conflicts.get(other.name) or other.conflicts.get(one.name)
            if reason:
                raise ConfigError(f"{one.name} and {other.name} cannot run together: {reason}")
            for path in one.sets.keys() & other.sets.keys():
                if decides(one.sets[path], other.sets[path]):
                    raise ConfigError(f"{one.name} and {other.name} cannot run together: both decide {path}")
