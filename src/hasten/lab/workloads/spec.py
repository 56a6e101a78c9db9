"""Workloads by name, as `--workload` and the lab's functions take them.

    azure-llm-2023-conv                            a data file by its stem (HASTEN_DATA, cache or download)
    traces/mine.jsonl                              a file by its path; the format is told by its content
    poisson:rate=4,requests=500                    a generator, with options
    text2sql-workflow-trace1:rate=1                loaders have options too
    azure-llm-2023-conv[0:200]                     requests 0 to 199 (see transform.cut)
    azure-llm-2023-conv[0:200]@context=2048,load=4 transformed, step by step as written

The steps behind @ are `load` (requests a second), `time` and `lengths` (factors), `context` (tokens that the longest request
must fit) and `coldstarts` (mean seconds between start-ups that delay a request).
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hasten.lab.workloads import (
    agents,
    applications,
    azure,
    burst,
    burstgpt,
    coldstarts,
    conversations,
    data,
    generate,
    jsonl,
    mooncake,
    sharegpt,
    text2sql,
    transform,
)
from hasten.lab.workloads.base import Workload, WorkloadError

GENERATORS: dict[str, Callable[..., Workload]] = {
    "poisson": generate.poisson,
    "gamma": generate.gamma,
    "conversations": conversations.conversations,
    "agents": agents.agents,
    "applications": applications.applications,
    "burst": burst.like,
}

STEPS: dict[str, tuple[Callable[[Workload, Any], Workload], type]] = {
    "load": (transform.scale_load, float),
    "time": (transform.scale_time, float),
    "lengths": (transform.scale_lengths, float),
    "context": (transform.fit_context, int),
    "coldstarts": (coldstarts.delayed, float),
}

_SPEC = re.compile(
    r"(?P<name>.+?)(?::(?P<options>\w+=[^@\[\]]*))?(?:\[(?P<start>\d*):(?P<stop>\d*)\])?(?:@(?P<steps>[a-z]+=[^@\[\]]*))?"
)


def load(spec: str) -> Workload:
    """The workload that `spec` (see above) or a path names.

    Raises WorkloadError for an unknown name, naming what is known, and for options, slices and files that are no good."""
    if Path(spec).is_file():  # such paths need not be read as more than a path
        return _from_file(Path(spec), {})
    match = _SPEC.fullmatch(spec.strip())
    if match is None:
        raise WorkloadError(f"{spec!r} is no workload: expected NAME[:option=value,...][[first:last]][@step=value,...]")
    workload = _named(match["name"], _pairs(match["options"], "option"))
    if match["start"] is not None:
        workload = transform.cut(workload, int(match["start"] or 0), int(match["stop"]) if match["stop"] else None)
    for name, value in _pairs(match["steps"], "step").items():
        if name not in STEPS:
            raise WorkloadError(f"no step is called {name!r}; known: {', '.join(STEPS)}")
        step, kind = STEPS[name]
        workload = step(workload, _converted(value, kind, name))
    return workload


def names() -> list[str]:
    """Data files by stem, those at hand and those that would be downloaded, and the generators."""
    return sorted({*_files(), *GENERATORS})


def _files() -> dict[str, str]:
    """File names by stem: the known ones, and what lies in the data folder and the cache in a format that may be a trace."""
    found = {Path(name).stem: name for name in data.FILES}
    for folder in (data.cache_folder(), data.data_folder()):
        if folder is not None and folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.is_file() and not path.name.startswith(".") and _seems_a_trace(path):
                    found[path.stem] = path.name
    return found


def _seems_a_trace(path: Path) -> bool:
    if path.suffix not in (".csv", ".json", ".jsonl"):
        return False
    try:
        loader(path)
    except WorkloadError:
        return False
    return True


def _named(name: str, options: dict[str, str]) -> Workload:
    if name in GENERATORS:
        return _call(GENERATORS[name], options, name)
    path = Path(name)
    if path.is_file():
        return _from_file(path, options)
    files = _files()
    if name in files:
        return _from_file(data.find(files[name]), options)
    if path.suffix or len(path.parts) > 1:
        raise WorkloadError(f"{name}: there is no such file, and no workload of that name")
    known = names()
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise WorkloadError(f"no workload is called {name!r}; {hint}known: {', '.join(known)}; or give the path of a file")


def _from_file(path: Path, options: dict[str, str]) -> Workload:
    return _call(loader(path), options, path.stem, path)


def loader(path: Path) -> Callable[..., Workload]:
    """The loader for a file, by what its first line holds. Raises WorkloadError where none fits."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip().decode(errors="replace")
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not head:
        raise WorkloadError(f"{path}: the file is empty")
    first = head.splitlines()[0]
    if head.startswith("["):
        if f'"{text2sql.KEY}"' in head:
            return text2sql.load
        if '"conversations"' in head or '"messages"' in head:
            return sharegpt.load
    elif head.startswith("{"):
        if '"input_length"' in first or '"hash_ids"' in first:
            return mooncake.load
        if f'"{jsonl.HEADER}"' in first or '"output_tokens"' in first or '"arrival_s"' in first:
            return jsonl.load
    else:
        columns = [name.strip() for name in first.split(",")]
        for module in (azure, burstgpt):
            # A trace that lacks some columns is still of its kind: its loader says which.
            if set(module.COLUMNS) & set(columns):
                return module.load
    raise WorkloadError(
        f"{path}: its format is not known from its beginning {first[:60]!r}; accepted: CSV with {', '.join(azure.COLUMNS)} "
        f"(Azure) or {', '.join(burstgpt.COLUMNS)} (BurstGPT), JSON Lines with timestamp, input_length, output_length, "
        f"hash_ids (Mooncake) or with arrival_s, prompt_tokens, output_tokens (one's own), JSON lists of {text2sql.KEY} or of "
        "conversations"
    )


def _pairs(text: str | None, what: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in (text or "").split(","):
        name, equals, value = item.partition("=")
        if item and not (name and equals and value):
            raise WorkloadError(f"{item!r} is no {what}: expected name=value")
        if name in pairs:
            raise WorkloadError(f"the {what} {name!r} is there twice")
        if item:
            pairs[name.strip()] = value.strip()
    return pairs


def _call(make: Callable[..., Workload], options: dict[str, str], name: str, *positional: Any) -> Workload:
    """Call `make` with its keyword-only parameters read from text."""
    types_of = typing.get_type_hints(make)
    accepted = {
        parameter.name: types_of[parameter.name]
        for parameter in inspect.signature(make).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and _simple(types_of[parameter.name])
    }
    for option in options:
        if option not in accepted:
            raise WorkloadError(f"{name} has no option {option!r}; it has {', '.join(accepted) or 'none'}")
    return make(*positional, **{option: _converted(text, accepted[option], option) for option, text in options.items()})


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union else (kind,)


def _simple(kind: Any) -> bool:
    simple = (int, float, str, bool)
    return any(one in simple or typing.get_origin(one) is typing.Literal for one in _alternatives(kind))


def _converted(text: str, kind: Any, name: str) -> Any:
    for one in _alternatives(kind):
        if one is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        elif one in (int, float):
            try:
                return one(text)
            except ValueError:
                continue
        elif one is str or typing.get_origin(one) is typing.Literal:
            return text  # the function itself says which texts it takes
    wanted = " or ".join(getattr(one, "__name__", str(one)) for one in _alternatives(kind) if one is not types.NoneType)
    raise WorkloadError(f"{name} must be {wanted}, got {text!r}")
