"""What `hasten eval` says: progress, tables, wrong answers, and the files it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasten.lab.testbed.pairwise import Difference
    from hasten.lab.testbed.scores import Estimate, Scores

_MOST_CHARACTERS = 600
"""Of a prompt that is shown; of longer ones the end, where the question stands."""


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Takes what is being done, and how much of how much of it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("loading", total=None)
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)


def show(scores: Scores) -> None:
    from rich.console import Console
    from rich.table import Table

    from hasten.lab.testbed.scores import row_name

    table = Table("task", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("score", "n", "seconds", "tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    for task in scores.tasks:
        tokens = task.prompt_tokens + task.output_tokens
        rest = [str(len(task.outcomes)), f"{task.seconds:.1f}", f"{tokens:,}"]
        for i, (metric, estimate) in enumerate(task.estimates.items()):
            table.add_row(row_name(task.task, metric), in_words(metric, estimate), *([] if i else rest))
    console = Console(highlight=False)
    console.print(scores.label, style="bold", markup=False)
    console.print(table)
    console.print("in brackets: where the score lies with 95 % confidence; tokens: read and written", style="dim", markup=False)


def show_compared(differences: list[Difference], names: tuple[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from hasten.lab.testbed.scores import row_name

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("task", *names):
        table.add_column(name, justify="left" if name == "task" else "right", overflow="fold")
    for column in ("difference", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in differences:
        sides = [in_words(one.metric, side).partition(" (")[0] for side in (one.a, one.b)]
        p = "<0.0001" if one.p < 1e-4 else f"{one.p:.4f}"
        difference = in_words(one.metric, one.difference, signed=True)
        table.add_row(row_name(one.task, one.metric), *sides, difference, p, style="bold" if one.p < 0.05 else "")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{differences[0].n} questions of each task; difference: the second less the first, with its 95 % interval; "
        "p: exact McNemar test, or bootstrap for figures that are not right or wrong; "
        "bold: p below 0.05, in one row of twenty by chance alone",
        style="dim",
        markup=False,
    )


def in_words(metric: str, estimate: Estimate, *, signed: bool = False) -> str:
    """As `93.5 % (89.1-96.2)`, or `+1.0 points (-2.5 to +4.5)` for a difference; bits per byte as `2.134 (2.012-2.250)`."""
    from hasten.lab.testbed.scores import BITS_PER_BYTE

    places, scale, unit = (3, 1.0, "") if metric == BITS_PER_BYTE else (1, 100.0, " points" if signed else " %")
    form = f"{{:{'+' if signed else ''}.{places}f}}"
    value, low, high = (form.format(scale * number) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value}{unit} ({low}{' to ' if signed else '-'}{high})"


def show_failures(scores: Scores, count: int) -> None:
    """The first questions of each task that were not answered right by its first metric."""
    from rich.console import Console
    from rich.text import Text

    from hasten.lab.testbed.scores import BITS_PER_BYTE

    console = Console(highlight=False)
    for task in scores.tasks:
        metric = next(iter(task.estimates))
        if metric == BITS_PER_BYTE:
            continue
        wrong = [(i, outcome) for i, outcome in enumerate(task.outcomes) if outcome.scores[metric] < 1]
        for i, outcome in wrong[:count]:
            prompt = outcome.prompt
            if len(prompt) > _MOST_CHARACTERS:
                prompt = f"[{len(prompt) - _MOST_CHARACTERS} characters before] …{prompt[-_MOST_CHARACTERS:]}"
            console.print(Text(f"\n{task.task}, question {i}", style="bold"))
            console.print(Text(prompt.rstrip(), style="dim"))
            console.print(Text.assemble("expected  ", (repr(outcome.answer), "green")))
            console.print(Text.assemble("answered  ", (repr(outcome.output), "red")))


def check_files(*paths: Path | None, plot: Path | None = None) -> None:
    """Refuse, before the work, what could not be written after it."""
    from importlib.util import find_spec

    from hasten.engine.technique import ConfigError

    for path in (*paths, plot):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{path} cannot be written: {path.parent} is no folder")
    if plot is not None and find_spec("matplotlib") is None:
        raise ConfigError("pictures need matplotlib: pip install 'hasten[plots]'")


def draw(path: Path | None, evaluations: Mapping[str, Scores]) -> None:
    if path is not None:
        from hasten.lab.testbed.picture import picture

        path.write_bytes(picture(evaluations))


def write_compared(
    path: Path | None, names: tuple[str, str], both: tuple[Scores, Scores], differences: list[Difference]
) -> None:
    if path is not None:
        import json

        told = {
            "names": names,
            "differences": [one.model_dump() for one in differences],
            "scores": [one.model_dump(mode="json") for one in both],
        }
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
