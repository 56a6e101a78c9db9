"""Finding tasks by what they are called: `recall:pairs=16,length=2048`. Each module here that holds a `TASK` is one."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from dataclasses import fields
from functools import cache

from hasten.lab.testbed import tasks
from hasten.lab.testbed.tasks.base import Task


@cache
def all_tasks() -> dict[str, type[Task]]:
    """Every task class by name."""
    modules = (importlib.import_module(f"{tasks.__name__}.{m.name}") for m in pkgutil.iter_modules(tasks.__path__))
    return {m.TASK.name: m.TASK for m in modules if hasattr(m, "TASK")}


def find(notation: str) -> Task:
    """The task that `name:knob=value,...` means. Raises ValueError, which says what is accepted."""
    name, _, knobs = notation.strip().partition(":")
    known = all_tasks()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
        raise ValueError(f"no task is called {name!r}; {hint}")
    kinds = {field.name: type(field.default) for field in fields(known[name])}
    values: dict[str, object] = {}
    for item in filter(None, knobs.split(",")):
        knob, equals, text = (part.strip() for part in item.partition("="))
        if not equals or knob not in kinds:
            raise ValueError(f"{notation!r}: {item!r} is not one of {name}'s knobs ({', '.join(kinds) or 'none'}) with a value")
        values[knob] = _read(kinds[knob], text, f"{name}: {knob}")
    return known[name](**values)


def notation(task: Task) -> str:
    """What `find` reads: the name and the knobs that differ from their defaults."""
    changed = [f"{f.name}={_write(getattr(task, f.name))}" for f in fields(task) if getattr(task, f.name) != f.default]
    return task.name + (":" + ",".join(changed) if changed else "")


def _read(kind: type, text: str, what: str) -> object:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{what} must be true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise ValueError(f"{what} must be {wanted}, got {text!r}") from None


def _write(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
