"""Pages from kept results: `docs/claims.md`, and the measured tables of the techniques' own pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hasten.lab.claims.base import Claim
from hasten.lab.claims.result import Result, Verdict
from hasten.lab.claims.store import IMAGES
from hasten.lab.claims.words import measured, number, required

_INTRODUCTION = """# Claims

A claim is an experiment anyone can run (`hasten claims run NAME`) that holds a technique against the best plain configuration,
on the same work, taking turns in the same process. Here are full runs only, as the last one of each measured it; a shortfall is
printed as one. *Measured* is the median over the rounds and, in brackets, the interval of order statistics that holds the true
median with the probability given. This page is written by `hasten claims render` from `docs/claims/*.json`.
"""


def render(results: Sequence[Result], claims: Sequence[Claim], docs: Path) -> list[Path]:
    """Write `claims.md` and fill the tables of `techniques/*.md`; the paths that were written.

    A page of a technique asks for the table of a claim with a line `<!-- claim: NAME -->`; the table goes between it and the
    line `<!-- end of claim -->`."""
    written = [docs / "claims.md"]
    written[0].write_text(page(results, claims))
    for path in sorted((docs / "techniques").glob("*.md")):
        before = path.read_text()
        after = fill(before, results)
        if after != before:
            path.write_text(after)
            written.append(path)
    return written


def page(results: Sequence[Result], claims: Sequence[Claim]) -> str:
    kept = {result.claim for result in results}
    parts = [_INTRODUCTION, _overview(results)] if results else [_INTRODUCTION]
    waiting = [f"`{claim.name}` ({claim.title})" for claim in claims if claim.name not in kept]
    if waiting:
        parts.append(f"Not measured in full yet: {', '.join(waiting)}.\n")
    return "\n".join(parts + [_section(result) for result in results])


def fill(text: str, results: Sequence[Result]) -> str:
    """`text` with the measured table between each pair of marker lines that names one of the claims."""
    for result in results:
        marks = re.compile(rf"(<!-- claim: {re.escape(result.claim)} -->\n).*?(<!-- end of claim -->)", re.DOTALL)
        table = f"{_figures(result)}\n{_where(result)}\n"
        text = marks.sub(lambda found, table=table: found[1] + table + found[2], text)  # type: ignore[misc]
    return text


def _overview(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        link = f"[{result.claim}](#{result.claim})"
        for figure in result.figures:
            rows.append([link, figure.what, figure.paper, required(figure), measured(figure), _bold(figure.verdict)])
            link = ""
        if any(not guard.held for guard in result.guards):
            rows.append(["", "its guards", "", "held", "broken: no figure counts", _bold(Verdict.BROKEN)])
    return _table(["claim", "what", "paper", "required", "measured", "verdict"], rows)


def _section(result: Result) -> str:
    label = " (simulated)" if result.simulated else ""
    lines = [f"## {result.claim}", "", f"**{result.title}{label}: {result.verdict.value}.** {result.paper}", ""]
    if result.simulated:
        lines += ["These figures come from the simulator's virtual clock, not from a real machine's.", ""]
    lines += [f"- *Workload:* {result.workload}", f"- *Baseline:* {result.baseline}", f"- *Technique:* {result.technique}", ""]
    lines += [_figures(result)]
    for figure in result.figures:
        if figure.shortfall:
            lines += [f"**{figure.what}: {figure.verdict.value}.** {figure.shortfall}", ""]
    for guard in result.guards:
        lines += [f"- Guard *{guard.name}*: {'held' if guard.held else '**broken**'}. {guard.detail}"]
    lines += [f"- {note}" for note in result.notes]
    lines += [""] if result.guards or result.notes else []
    for picture in result.pictures:
        lines += [f"![{result.title}]({IMAGES.as_posix()}/{picture})", ""]
    lines += [_where(result)]
    return "\n".join(lines)


def _figures(result: Result) -> str:
    rows = [[f.what, f.paper, required(f), measured(f), _bold(f.verdict)] for f in result.figures]
    return _table(["what", "paper", "required", "measured", "verdict"], rows)


def _where(result: Result) -> str:
    machine = result.machine
    read = " and ".join(number(speed / 1e9, "GB/s") for speed in machine.read_bytes_per_s)
    clock = "Simulated on" if result.simulated else "Measured on"
    return (
        f"{clock} {machine.cpu}, {machine.cores} cores ({machine.physical_cores} physical), "
        f"{machine.memory_bytes / 2**30:.0f} GiB, kernels `{machine.kernels}`, torch {machine.torch}, "
        f"reading {read} before and after; commit `{result.commit}`, "
        f"{result.date[:10]}, {result.seconds:.0f} s, seed {result.seed}.\n"
    )


def _bold(verdict: Verdict) -> str:
    return f"**{verdict.value}**" if verdict in (Verdict.SHORT, Verdict.BROKEN) else verdict.value


def _table(header: list[str], rows: list[list[str]]) -> str:
    def row(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([row(header), "|" + "---|" * len(header), *map(row, rows)]) + "\n"
