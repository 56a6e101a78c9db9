"""`hasten techniques`: what can be switched on."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hasten.engine.technique import Technique


def techniques(as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False) -> None:
    """List the techniques and the plain engine's parts, by seam."""
    from hasten.engine.technique import all_techniques

    found = all_techniques()
    if as_json:
        import orjson

        sys.stdout.write(orjson.dumps([_facts(t) for t in found], option=orjson.OPT_INDENT_2, default=str).decode() + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("name", "seam", "result", "default"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it does", ratio=3)
    if any(t.paper for t in found):
        table.add_column("paper", ratio=2, style="dim")
    for t in found:
        result = "[green]exact[/]" if t.exact else "[yellow]approximate[/]"
        row = [f"[bold]{t.name}[/]", t.seam, result, "yes" if t.default else "", t.summary, t.paper]
        table.add_row(*row[: len(table.columns)])
    console = Console(highlight=False)
    console.print(table)
    console.print("\nSwitch one on with [bold]--with NAME[/] or [bold]--with NAME:knob=value[/].", style="dim")


def _facts(t: Technique) -> dict[str, Any]:
    knobs = [f.name for f in fields(t.options)] if t.options is not None else []
    return {
        "name": t.name,
        "seam": t.seam,
        "exact": t.exact,
        "default": t.default,
        "summary": t.summary,
        "paper": t.paper,
        "sets": dict(t.sets),
        "knobs": knobs,
        "requires": list(t.requires),
        "conflicts": dict(t.conflicts),
    }
