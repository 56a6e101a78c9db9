"""How `hasten grammar` tells sizes and conflicts, and draws automata."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasten.engine.decoding.constraints.grammar import Grammar
    from hasten.engine.decoding.constraints.lr import Automaton, Conflict
    from hasten.engine.decoding.constraints.reference import Edge, Pushdown

MOST_STATES, MOST_EDGES = 40, 200
"""Of an automaton that is printed as a table."""


def sizes(grammar: Grammar) -> str:
    counts = {
        "terminal": len(grammar.terminals),
        "rule": len(grammar.names),
        "production": len(grammar.productions),
        "kind of frame": len(grammar.plans),
    }
    shown = (f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items() if count)
    return ", ".join(shown).replace("kind of frames", "kinds of frames")


def conflict(lr: Automaton, found: Conflict) -> str:
    """With an example: a text after which the next terminal may be read in two ways."""
    before = " ".join(map(lr.name, found.prefix)) or "nothing"
    lines = [f"conflict ({found.kind}): after {before}, with {lr.name(found.terminal)} next, these two fit:"]
    for at, production in enumerate(found.productions):
        ends = at == 1 or found.kind == "reduce/reduce"
        lines.append(f"    {lr.show(production)}    ({'complete' if ends else 'goes on'})")
    return "\n".join(lines)


def table(pushdown: Pushdown) -> str:
    """One line an edge."""
    rows = [("state", "reads", "if below lie", "pops", "pushes")]
    for (top, terminal), edges in sorted(pushdown.edges.items()):
        for edge in edges:
            below = " ".join(map(str, edge.required[1:]))
            rows.append((str(top), _reads(pushdown, terminal, edge), below, str(edge.pop or ""), _pushes(edge)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _reads(pushdown: Pushdown, terminal: int, edge: Edge) -> str:
    name = pushdown.lr.name(terminal)
    return f"(before {name})" if edge.partial else name


def _pushes(edge: Edge) -> str:
    return " ".join(map(str, edge.push)) or "accepts"


def graph(pushdown: Pushdown) -> str:
    """In Graphviz's DOT: an arrow leads from the state on top to the one that is on top afterwards; edges that differ only in
    what they read share an arrow."""
    arrows: dict[tuple[int, int | str, str], list[str]] = {}
    for (top, terminal), edges in sorted(pushdown.edges.items()):
        for edge in edges:
            accepts = terminal == pushdown.lr.end and not edge.partial
            target = "end" if accepts else edge.push[-1]
            stack = [f"below {' '.join(map(str, edge.required[1:]))}"] if len(edge.required) > 1 else []
            stack += [f"pop {edge.pop}"] if edge.pop else []
            stack += [f"push {_pushes(edge)}"] if len(edge.push) > 1 and not accepts else []
            arrows.setdefault((top, target, ", ".join(stack)), []).append(_reads(pushdown, terminal, edge))
    lines = ["digraph grammar {", "  rankdir=LR; node [shape=circle];", "  end [shape=doublecircle];"]
    for (top, target, what), reads in arrows.items():
        label = ", ".join(reads) + (f"\n{what}" if what else "")
        lines.append(f"  {top} -> {target} [label={_quoted(label)}];")
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
