"""`hasten demand`: demand graphs of applications, learned from logged runs, for the technique `hermes`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hasten.engine.scheduling.demand.graph import DemandGraph
    from hasten.engine.scheduling.demand.store import Demand

app = typer.Typer(
    help="Learn, show and merge demand graphs of applications (for --with hermes:graphs=FILE).",
    no_args_is_help=True,
    add_completion=False,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A file of demand graphs, as `hasten demand learn` writes it.")]


@app.command()
def learn(
    workloads: Annotated[
        list[str],
        typer.Argument(
            metavar="WORKLOAD...",
            help="Logged runs: workloads whose requests name their application, workflow and stage "
            "(a name, a file, or a generator as applications:workflows=500).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write the graphs.")],
    warm: Annotated[
        list[str] | None,
        typer.Option("--warm", metavar="BACKEND=SECONDS", help="How long a backend takes to warm up. Repeatable."),
    ] = None,
) -> None:
    """Learn a graph of each application from runs that were logged."""
    from rich.console import Console

    from hasten.engine.scheduling.demand.store import Demand
    from hasten.lab import workloads as lab
    from hasten.lab.planning import demand as learning

    found = Demand(warm_s=_seconds(warm or []))
    for spec in workloads:
        found = found.merged(learning.learn(lab.load(spec)))
    _save(found, out)
    console = Console(stderr=True, highlight=False)
    for name, graph in found.graphs.items():
        console.print(f"{name}: {len(graph.runs):,} runs, {len(graph.units)} units", markup=False)
    console.print(f"written to {out}", markup=False)


@app.command()
def show(
    file: File,
    application: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (PNG) to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show what graphs say: units, what they ask for, where runs go from them, and what depends on what."""
    from hasten.engine.scheduling.demand.store import Demand
    from hasten.engine.technique import ConfigError

    demand = Demand.load(file)
    if application is not None and application not in demand.graphs:
        raise ConfigError(f"{file} has no application {application!r}; it has {', '.join(demand.graphs) or 'none'}")
    graphs = [graph for name, graph in demand.graphs.items() if application in (None, name)]
    if not graphs:
        raise ConfigError(f"{file} has no graphs")
    if as_json:
        import json

        typer.echo(json.dumps({graph.application: _facts(graph) for graph in graphs}, indent=1))
    else:
        _show(demand, graphs)
    if plot is not None:
        from hasten.lab.planning.demand_picture import picture

        try:
            plot.write_bytes(picture(graphs))
        except OSError as error:
            raise ConfigError(f"cannot write {plot}: {error.strerror or error}") from error


@app.command()
def merge(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files of demand graphs; later runs replace older ones.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write the merged graphs.")],
) -> None:
    """Merge graphs: as if they had been learned from the runs of all."""
    from hasten.engine.scheduling.demand.store import Demand

    merged = Demand()
    for file in files:
        merged = merged.merged(Demand.load(file))
    _save(merged, out)


def _save(demand: Demand, out: Path) -> None:
    from hasten.engine.technique import ConfigError

    try:
        demand.save(out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}") from error


def _seconds(pairs: list[str]) -> dict[str, float]:
    from hasten.engine.technique import ConfigError

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            equals = ""
        if not name or not equals or not 0 <= found[name] < float("inf"):
            raise ConfigError(f"--warm {pair}: expected BACKEND=SECONDS, as sandbox=2.5")
    return found


def _facts(graph: DemandGraph) -> dict[str, Any]:
    from hasten.engine.scheduling.demand.graph import END
    from hasten.lab.planning.demand_picture import told_by, ways, words

    features = graph.features
    return {
        graph.units[unit]: {
            "backend": graph.backends[unit],
            "visits": len(seen.visits),
            "demand": words(seen).replace("\n", " "),
            "next": {"end" if way == END else graph.units[way]: round(share, 4) for way, share in ways(graph, unit)},
            "demand_told_by": told_by(graph, features.demand[unit]),
            "demand_p": features.demand_p[unit],
            "next_told_by": told_by(graph, features.branch[unit]),
            "next_p": features.branch_p[unit],
        }
        for unit, seen in enumerate(graph.seen)
    }


def _show(demand: Demand, graphs: list[DemandGraph]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for graph in graphs:
        console.print(f"[bold]{escape(graph.application)}[/]  {len(graph.runs):,} runs")
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("unit", "backend", "visits a run", "asks for (10th to 90th percentile)", "then", "depends on"):
            table.add_column(column)
        for unit, facts in _facts(graph).items():
            warm_s = demand.warm_s.get(facts["backend"])
            backend = facts["backend"] + (f" (warm-up {warm_s:g} s)" if warm_s else "")
            then = ", ".join(f"{name} {share:.0%}" for name, share in facts["next"].items())
            depends = [
                f"{what} on {facts[f'{what}_told_by']} (p {facts[f'{what}_p']:.1g})"
                for what in ("demand", "next")
                if facts[f"{what}_told_by"]
            ]
            visits = f"{facts['visits'] / len(graph.runs):.2g}"
            row = (unit, backend or "the engine", visits, facts["demand"], then, "; ".join(depends))
            table.add_row(*map(escape, row))
        console.print(table)
        console.print()
