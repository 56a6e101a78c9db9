"""Running an SQL query that a model wrote on a small table, so that no query can do harm or take long."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence

STEPS = 200_000
"""Virtual-machine instructions after which a query is stopped."""
MOST_ROWS = 1000
LONGEST_QUERY_CHARACTERS = 2000
LONGEST_VALUE_BYTES = 100_000

_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}

Row = tuple[object, ...]


def run(query: str, create: str, rows: Iterable[Row]) -> list[Row]:
    """The rows of one SELECT over the table that `create` makes and `rows` fill, in an SQLite database in memory.

    Raises ValueError when it is not a single SELECT, fails, or takes too long.
    """
    if not re.match(r"\s*select\b", query, re.IGNORECASE) or len(query) > LONGEST_QUERY_CHARACTERS:
        raise ValueError(f"not a SELECT of at most {LONGEST_QUERY_CHARACTERS} characters")
    database = sqlite3.connect(":memory:")
    try:
        table = list(rows)
        database.execute(create)
        database.executemany(f"INSERT INTO {_table_name(create)} VALUES ({','.join('?' * len(table[0]))})", table)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE_BYTES)
        database.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY)
        database.set_progress_handler(lambda: 1, STEPS)
        found = database.execute(query).fetchmany(MOST_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise ValueError(f"the query fails: {error}") from None
    finally:
        database.close()
    if len(found) > MOST_ROWS:
        raise ValueError(f"the query gives more than {MOST_ROWS} rows")
    return found


def same_rows(a: Sequence[Row], b: Sequence[Row]) -> bool:
    """Whether two results hold the same rows, in whatever order."""
    return sorted(map(repr, a)) == sorted(map(repr, b))


def _table_name(create: str) -> str:
    return create.split()[2]
