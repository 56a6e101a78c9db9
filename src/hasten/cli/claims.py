"""`hasten claims`: the experiments that hold each technique against the plain engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hasten.lab.claims.base import Claim
    from hasten.lab.claims.result import Result

app = typer.Typer(
    help="Measure what the techniques promise: paper, required, measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Quick = Annotated[bool, typer.Option("--quick", help="Fewer rounds, within a minute; not kept.")]
Docs = Annotated[
    Path | None, typer.Option("--docs", help="The documentation's folder, where full results go; this checkout's if left out.")
]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON, for programs.")]


@contextmanager
def _told() -> Iterator[None]:
    """What the user can mend becomes one line and exit status 2."""
    from hasten.lab.claims.registry import ClaimError
    from hasten.lab.workloads.base import WorkloadError

    try:
        yield
    except (ClaimError, WorkloadError) as error:
        from rich.console import Console

        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None


@app.command("list")
def list_() -> None:
    """The claims, and what each requires."""
    from rich.console import Console
    from rich.table import Table

    from hasten.lab.claims.registry import all_claims
    from hasten.lab.claims.words import required

    console = Console(highlight=False)
    for claim in all_claims():
        simulated = " [yellow](simulated)[/]" if claim.simulated else ""
        console.print(f"[bold]{claim.name}[/]{simulated}  {claim.title}")
        console.print(f"  {claim.paper}", style="dim", markup=False)
        table = Table.grid(padding=(0, 2, 0, 0))
        for requirement in claim.requirements:
            table.add_row("  ", required(requirement), f"[dim]{requirement.what}[/]")
        console.print(table)


@app.command()
def run(name: str, quick: Quick = False, as_json: AsJson = False, docs: Docs = None) -> None:
    """Run a claim. Exit status: 0 met, 1 falls short, 3 undecided (quick runs only)."""
    from hasten.lab.claims.registry import find

    with _told():
        claim = find(name)
        _keeps(docs, quick)
        result = _measure(claim, quick, docs)
        if as_json:
            sys.stdout.write(result.model_dump_json(indent=1) + "\n")
        else:
            _show(result)
    raise typer.Exit(result.verdict.exit_code)


@app.command("all")
def all_(quick: Quick = False, docs: Docs = None) -> None:
    """Run every claim. Exit status 1 if any falls short, else 3 if any is undecided."""
    from hasten.lab.claims.registry import all_claims
    from hasten.lab.claims.result import worst

    with _told():
        _keeps(docs, quick)
        results = []
        for claim in all_claims():
            results.append(_measure(claim, quick, docs))
            _show(results[-1])
    raise typer.Exit(worst([result.verdict for result in results]).exit_code)


@app.command()
def render(docs: Docs = None) -> None:
    """Write docs/claims.md and the techniques' tables from the kept results."""
    from hasten.lab.claims.registry import all_claims
    from hasten.lab.claims.render import render as write
    from hasten.lab.claims.store import docs_folder, stored

    with _told():
        folder = docs_folder(docs)
        for path in write(stored(folder), all_claims(), folder):
            print(path)


def _keeps(docs: Path | None, quick: bool) -> None:
    """Say before minutes of measuring that there is nowhere to keep the result."""
    from hasten.lab.claims.registry import ClaimError
    from hasten.lab.claims.store import docs_folder

    if quick and docs is not None:
        raise ClaimError("quick results are not kept, so --docs has no meaning with --quick")
    if not quick:
        docs_folder(docs)


def _measure(claim: Claim, quick: bool, docs: Path | None) -> Result:
    from rich.console import Console
    from rich.progress import Progress

    from hasten.lab.claims.registry import all_claims
    from hasten.lab.claims.render import render as write
    from hasten.lab.claims.run import run as measure
    from hasten.lab.claims.store import docs_folder, keep, stored

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(claim.name, total=1.0)
        finished = measure(
            claim,
            quick=quick,
            progress=lambda what, share: bars.update(task, description=f"{claim.name}: {what}", completed=share),
        )
    if not quick:
        folder = docs_folder(docs)
        keep(finished, folder)
        write(stored(folder), all_claims(), folder)
    return finished.result


def _show(result: Result) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from hasten.lab.claims.result import Verdict
    from hasten.lab.claims.words import measured, required

    style = {Verdict.MET: "green", Verdict.SHORT: "bold red", Verdict.BROKEN: "bold red", Verdict.UNDECIDED: "yellow"}
    console = Console(highlight=False)
    kind = ("quick, " if result.quick else "") + ("simulated" if result.simulated else "measured")
    console.print(f"\n[bold]{result.claim}[/] {escape(result.title)} ({kind}, {result.seconds:.0f} s)")
    for label, words in (("workload", result.workload), ("baseline", result.baseline), ("technique", result.technique)):
        console.print(f"{label}: {words}", style="dim", markup=False)
    table = Table("", "paper", "required", "measured", "verdict")
    for figure in result.figures:
        word = f"[{style.get(figure.verdict, 'dim')}]{figure.verdict.value}[/]"
        table.add_row(*map(escape, (figure.what, figure.paper, required(figure), measured(figure))), word)
    console.print(table)
    for figure in result.figures:
        if figure.shortfall:
            console.print(f"{figure.what}: {figure.verdict.value}. {figure.shortfall}", style="yellow", markup=False)
    for guard in result.guards:
        mark = "[green]held[/]" if guard.held else "[bold red]broken[/]"
        console.print(f"guard {escape(guard.name)}: {mark} {escape(guard.detail)}")
    for note in result.notes:
        console.print(f"note: {note}", style="dim", markup=False)
    console.print(f"[{style[result.verdict]}]{result.claim}: {result.verdict.value}[/]")
