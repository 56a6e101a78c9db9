"""Questions about a small table, answered by an SQL query that is executed to be scored.

The query runs on the table that was shown and on a second one of the same columns with other rows, so that an answer
which happens to give the right result (`SELECT 3`) does not count.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hasten.lab.testbed import sandbox_sql, words
from hasten.lab.testbed.document import END_OF_TURN, turn
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.queries import PATTERNS
from hasten.lab.testbed.sandbox_sql import Row
from hasten.lab.testbed.tasks.base import ANSWERING, Example, Lesson, Piece, Split, Task, Wordings, conversation

LEAST_COLUMNS, MOST_COLUMNS = 3, 5
LEAST_ROWS, MOST_ROWS = 2, 12
ROWS_OF_SECOND_TABLE = 24
QUESTIONS_A_LESSON = 4
LARGEST = 99

TABLES = "books boats cities games goods houses lamps orders parts pets plants shops songs tools toys trips".split()  # noqa: SIM905
KEYS = {"name": words.NOUNS, "item": words.NOUNS, "person": words.NAMES, "owner": words.NAMES}
CATEGORIES = {
    "color": "black blue green red white yellow".split(),  # noqa: SIM905
    "city": list(words.CITIES[:12]),
    "type": "big common fine old rare small".split(),  # noqa: SIM905
    "day": "Monday Tuesday Friday Sunday".split(),  # noqa: SIM905
    "material": "glass iron paper silver wood".split(),  # noqa: SIM905
}
NUMBERS = ("age", "count", "height", "length", "price", "rank", "size", "speed", "stock", "weight", "width", "year")

LAYOUTS = Wordings(
    train=(
        "{table}\n\n{question}",
        "{table}\n\nWrite SQL: {question}",
        "{table}\n\nSQL query: {question}",
        "Table:\n{table}\n\nQuestion: {question}",
        "{question} Answer with SQL.\n\n{table}",
        "Write an SQL query.\n{table}\n{question}",
        "{table}\n\nAnswer in SQL. {question}",
        "Given this table, write SQL.\n{table}\n\n{question}",
    ),
    held_out=(
        "{table}\n\nAnswer with SQL: {question}",
        "{table}\n\nQuestion: {question}",
        "Here is a table.\n{table}\n\n{question}",
    ),
)


@dataclass(frozen=True)
class Sql(Task):
    """columns: 3 to 5 of the table. rows: how many are shown (2 to 12)."""

    name: ClassVar[str] = "sql"
    about: ClassVar[str] = "answer a question about a small table with an SQL query, which is executed"
    metrics: ClassVar[tuple[str, ...]] = ("correct", "runs")
    columns: int = 4
    rows: int = 5

    def __post_init__(self) -> None:
        if not LEAST_COLUMNS <= self.columns <= MOST_COLUMNS:
            raise ValueError(f"sql: columns is {self.columns}; it must be from {LEAST_COLUMNS} to {MOST_COLUMNS}")
        if not LEAST_ROWS <= self.rows <= MOST_ROWS:
            raise ValueError(f"sql: rows is {self.rows}; it must be from {LEAST_ROWS} to {MOST_ROWS}")

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        table = _Table.drawn(rng, self.columns, self.rows)
        question, query, limit = table.question(rng, split)
        expected = {"query": query, "create": table.create, "tables": [table.rows, table.others(rng, limit)]}
        user = LAYOUTS.pick(rng, split).format(table=table.text, question=question)
        return conversation(user, query, expected=expected, max_tokens=64)

    def score(self, example: Example, output: str) -> dict[str, float]:
        written = output.rpartition("</think>")[2].strip()
        create = example.expected["create"]
        agree = []
        for rows in example.expected["tables"]:
            try:
                found = sandbox_sql.run(written, create, rows)
            except ValueError:
                return {"correct": 0.0, "runs": 0.0}
            agree.append(sandbox_sql.same_rows(found, sandbox_sql.run(example.expected["query"], create, rows)))
        return {"correct": float(all(agree)), "runs": 1.0}

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        table = _Table.drawn(rng, self.columns, self.rows)
        pieces: list[Piece] = []
        for number in range(QUESTIONS_A_LESSON):
            question, query, _ = table.question(rng, "train")
            user = question if number else LAYOUTS.pick(rng, "train").format(table=table.text, question=question)
            pieces.append(Piece(("\n" if number else "") + turn("user", user) + ANSWERING, False))
            pieces.append(Piece(query + END_OF_TURN, True))
        return tuple(pieces)

    def easier(self, rng: random.Random, tokens: int) -> Sql:
        # A row takes about 5 tokens a column; four questions take about 200.
        most = max(LEAST_ROWS, min(self.rows, (tokens - 250) // (5 * self.columns)))
        return replace(self, columns=rng.randint(LEAST_COLUMNS, self.columns), rows=rng.randint(LEAST_ROWS, most))


@dataclass(frozen=True)
class _Table:
    """A table whose first column is a text that differs in every row; then come categories and numbers. The numbers of a
    column differ from each other, so that there is one highest and one lowest row. columns: name and possible values."""

    name: str
    columns: Mapping[str, Any]
    rows: list[Row]

    @classmethod
    def drawn(cls, rng: random.Random, columns: int, rows: int) -> _Table:
        key = rng.choice(list(KEYS))
        categories = rng.sample(list(CATEGORIES), rng.randint(1, 1 if columns == LEAST_COLUMNS else 2))
        numbers = rng.sample(NUMBERS, columns - 1 - len(categories))
        pools: dict[str, Any] = {key: KEYS[key]}
        pools |= {name: CATEGORIES[name] for name in categories} | {name: range(1, LARGEST + 1) for name in numbers}
        return cls(rng.choice(TABLES), pools, _rows(rng, pools, rows))

    @property
    def create(self) -> str:
        columns = (f"{name} {'INTEGER' if isinstance(pool, range) else 'TEXT'}" for name, pool in self.columns.items())
        return f"CREATE TABLE {self.name} ({', '.join(columns)})"

    @property
    def text(self) -> str:
        return "\n".join([self.create, *(" | ".join(map(str, row)) for row in self.rows)])

    def question(self, rng: random.Random, split: Split) -> tuple[str, str, int]:
        """The question, the query, and the number it compares with, where it does."""
        pattern = rng.choice(PATTERNS)
        key, *rest = self.columns
        number = rng.choice([name for name in rest if isinstance(self.columns[name], range)])
        category = rng.choice([name for name in rest if not isinstance(self.columns[name], range)])
        row = rng.choice(self.rows)
        limit = rng.randint(5, LARGEST - 5)
        blanks = dict(table=self.name, key=key, number=number, category=category, limit=limit)
        blanks |= dict(word=row[list(self.columns).index(category)], entry=row[0])
        return pattern.questions.pick(rng, split).format(**blanks), pattern.query.format(**blanks), limit

    def others(self, rng: random.Random, limit: int) -> list[Row]:
        """Other rows, which share values with the table, so that its filters find some. One row has the limit itself in each
        column of numbers, so that `>` is told from `>=`."""
        entries = [row[0] for row in self.rows]
        drawn = _rows(rng, self.columns, ROWS_OF_SECOND_TABLE, avoid=(limit, *entries))
        for at, entry in enumerate(entries):
            drawn[at] = (entry, *drawn[at][1:])
        drawn[-1] = tuple(limit if isinstance(value, int) else value for value in drawn[-1])
        rng.shuffle(drawn)
        return drawn


def _rows(rng: random.Random, pools: Mapping[str, Any], count: int, avoid: tuple[object, ...] = ()) -> list[Row]:
    columns = []
    for at, pool in enumerate(pools.values()):
        if at == 0 or isinstance(pool, range):
            columns.append(rng.sample([value for value in pool if value not in avoid], count))
        else:
            columns.append(rng.choices(pool, k=count))
    return list(zip(*columns, strict=True))


TASK = Sql
