"""Reading trace files: lines, rows and numbers, with errors that name the file, the line and the field."""

from __future__ import annotations

import csv
import gc
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hasten.lab.workloads.base import WorkloadError
from hasten.lab.workloads.progress import bar

T = TypeVar("T")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LARGEST = 2**31 - 1
"""Most tokens a request may have, far above any model's context."""


@contextmanager
def no_collection() -> Iterator[None]:
    """Hold Python's cycle collector off while millions of small objects are made: it would walk them over and over."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, as (line number from 1, bytes)."""
    try:
        with path.open("rb") as file, bar(f"reading {path.name}", path.stat().st_size, in_bytes=True) as advance:
            unreported = 0
            for number, line in enumerate(file, 1):
                unreported += len(line)
                if unreported > 1 << 20:
                    advance(unreported)
                    unreported = 0
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.isspace():
                    yield number, line
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror or error}") from error


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file, one a line, as (line number from 1, object)."""
    import orjson

    for number, line in lines(path):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise WorkloadError(f"{path}: line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise WorkloadError(f"{path}: line {number}: expected a JSON object, got {_shown(row)}")
        yield number, row


def json_file(path: Path) -> Any:
    """The one JSON value in a file."""
    import orjson

    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror or error}") from error
    except orjson.JSONDecodeError as error:
        raise WorkloadError(f"{path}: not JSON: {error}") from error


def whole(value: Any, place: str, low: int = 1, high: int = LARGEST) -> int:
    """`value` as an integer in [low, high]; `place` (file, line, field) begins the error."""
    if isinstance(value, bool) or not isinstance(value, int):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        else:
            raise WorkloadError(f"{place} must be a whole number, got {_shown(value)}")
    if not low <= value <= high:
        raise WorkloadError(f"{place} must be {f'at least {low}' if value < low else f'at most {high}'}, got {value}")
    return int(value)


def seconds(value: Any, place: str) -> float:
    """`value` as a finite number of seconds (or another unit) from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WorkloadError(f"{place} must be a number, got {_shown(value)}")
    if not math.isfinite(value) or value < 0:
        raise WorkloadError(f"{place} must be finite and not negative, got {value}")
    return float(value)


def field(row: Mapping[str, Any], name: str, place: str) -> Any:
    """`row[name]`, or an error that says what is there instead."""
    if name not in row:
        raise WorkloadError(f"{place}: the field {name!r} is missing; there are {', '.join(row) or 'none'}")
    return row[name]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of a CSV file as text. `line_numbers` [n]: the line of the file each row ends on."""

    path: Path
    columns: dict[str, list[str]]
    line_numbers: list[int]

    def __len__(self) -> int:
        return len(self.line_numbers)

    def place(self, row: int, name: str) -> str:
        return f"{self.path}: line {self.line_numbers[row]}: {name}"

    def floats(self, name: str) -> Floats:
        """A column as float64 [n], all finite and not negative."""
        values = self._numbers(name)
        self._check(name, values, np.isfinite(values) & (values >= 0), "finite and not negative")
        return values

    def ints(self, name: str, low: int = 1) -> Ints:
        """A column as int64 [n], all in [low, LARGEST]; whole numbers written with a decimal point are accepted."""
        values = self._numbers(name)
        good = np.isfinite(values) & (values == np.floor(values)) & (values >= low) & (values <= LARGEST)
        self._check(name, values, good, f"a whole number from {low} to {LARGEST}")
        return values.astype(np.int64)

    def _numbers(self, name: str) -> Floats:
        column = self.columns[name]
        try:
            return np.fromiter(map(float, column), dtype=np.float64, count=len(column))
        except ValueError:
            for row, text in enumerate(column):
                try:
                    float(text)
                except ValueError:
                    raise WorkloadError(f"{self.place(row, name)} must be a number, got {_shown(text)}") from None
            raise

    def _check(self, name: str, values: npt.NDArray[Any], good: npt.NDArray[np.bool_], what: str) -> None:
        if not good.all():
            row = int(np.argmin(good))
            raise WorkloadError(f"{self.place(row, name)} must be {what}, got {self.columns[name][row]}")


def read_csv(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """The `needed` and, where there, `optional` columns of a CSV file with a header line.

    Raises WorkloadError for missing columns, rows too short, text that is not UTF-8 and a file without rows."""
    number = 0

    def text() -> Iterator[str]:
        nonlocal number
        for number, line in lines(path):
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise WorkloadError(f"{path}: line {number}: not UTF-8 text") from error

    rows = csv.reader(text(), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        missing = [name for name in needed if name not in header]
        if missing:
            raise WorkloadError(
                f"{path}: the column {missing[0]!r} is missing; "
                f"needed: {', '.join(needed)}; found: {', '.join(header) or 'nothing'}"
            )
        wanted = [name for name in (*needed, *optional) if name in header]
        places = [header.index(name) for name in wanted]
        columns: list[list[str]] = [[] for _ in wanted]
        numbers: list[int] = []
        pairs = list(zip(columns, places, strict=True))
        for row in rows:
            if len(row) != len(header):
                raise WorkloadError(f"{path}: line {number}: {len(row)} fields where the header names {len(header)}")
            for column, place in pairs:
                column.append(row[place])
            numbers.append(number)
    except csv.Error as error:
        raise WorkloadError(f"{path}: line {number}: {error}") from error
    if not numbers:
        raise WorkloadError(f"{path}: there are no rows below the header")
    return Table(path, dict(zip(wanted, columns, strict=True)), numbers)


def counted(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """`items` with a progress bar, where it takes long."""
    with bar(description, total) as advance:
        for number, item in enumerate(items):
            if number % 8192 == 8191:
                advance(8192)
            yield item
