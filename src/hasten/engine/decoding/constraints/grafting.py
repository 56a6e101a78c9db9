"""Putting one grammar into another."""

from __future__ import annotations

from dataclasses import replace

from hasten.engine.decoding.constraints.grammar import Act, Grammar


def graft(into: Grammar, other: Grammar) -> int:
    """The symbol that stands in `into` for the texts of `other`, which is copied."""
    assert into.longest == other.longest, "terminals end by one rule in all of a grammar"
    terminals, names, plans = len(into.terminals), len(into.names), len(into.plans)

    def moved(symbol: int) -> int:
        return symbol + terminals if symbol >= 0 else symbol - names

    for terminal in other.terminals:
        opens = terminal.act is Act.OPEN
        into.terminals.append(replace(terminal, argument=terminal.argument + plans) if opens else terminal)
    into.names += other.names
    into.plans += other.plans
    into.productions += [(left + names, tuple(map(moved, right))) for left, right in other.productions]
    into.warnings += other.warnings
    return moved(other.start)
