"""Right recursion on stacks that do not grow: laps round loops of the LR automaton that may be forgotten.

After `a: b a | b` has read "bbb", the stack holds a state for each "b", and at the end as many reductions undo them. Pre^3
takes the previous lap off the stack when a lap is complete. When is that right? Let the stack end with s q1 ... s, a lap from a
state s to itself. What follows is read by s alike with and without the lap below, until an item [X -> alpha . beta] that s was
entered with is complete. If that X then completes, one after the other and without choice, the items that the lap's other
states were entered with, up to [X -> alpha Z .] over the lower s, the lap has vanished and X stands where it would have stood
without it. So a lap may be forgotten if this holds for every item that s was entered with; look-aheads agree, because an item
that is completed by the last symbol of another has taken over its look-ahead.
"""

from __future__ import annotations

from hasten.engine.decoding.constraints.base import Limits
from hasten.engine.decoding.constraints.lr import Automaton, Item, Stack

MOST_STATES = 16
"""Of a lap."""

Laps = dict[int, list[Stack]]
"""By state: the stacks from it to itself, both ends included."""


def find(lr: Automaton, limits: Limits) -> Laps:
    found: Laps = {}
    for state in range(1, len(lr.states)):
        limits.check()
        for lap in sorted(_candidates(lr, state)):
            if all(_vanishes(lr, lap, item) for item in _entered(lr, state)):
                found.setdefault(state, []).append(lap)
    return found


def _entered(lr: Automaton, state: int) -> list[Item]:
    return [item for item in lr.states[state].items if item[1] > 0]


def _candidates(lr: Automaton, start: int) -> set[Stack]:
    """Laps along chains of items that each wait for their last symbol, closing on the one they began with."""
    found: set[Stack] = set()
    for production, dot in _entered(lr, start):
        right = lr.productions[production][1]
        if dot != len(right) - 1 or right[dot] >= 0:
            continue
        seen = {(start, right[dot])}
        todo: list[tuple[Stack, int]] = [((start,), right[dot])]
        while todo:
            path, wanted = todo.pop()
            for number in lr.of(wanted):
                *before, last = lr.productions[number][1]
                way = list(path)
                for symbol in before:
                    way.append(lr.states[way[-1]].shifts[symbol])
                if number == production and way[-1] == start and len(way) > 1:
                    found.add(tuple(way))
                elif last < 0 and len(way) <= MOST_STATES and (way[-1], last) not in seen:
                    seen.add((way[-1], last))
                    todo.append((tuple(way), last))
    return found


def _vanishes(lr: Automaton, lap: Stack, item: Item) -> bool:
    """Whether completing `item` on top of the lap comes to the same as completing it below the lap."""
    production, depth = item
    left = lr.productions[production][0]
    stack, current = list(lap), left
    out = depth
    while out < len(stack):
        del stack[len(stack) - out :]
        waiting = list(lr.states[lr.states[stack[-1]].shifts[current]].items)
        if len(waiting) != 1:
            return False
        current, right = lr.productions[waiting[0][0]]
        if waiting[0][1] != len(right):
            return False
        out = len(right) - 1
    return current == left and out - (len(stack) - 1) == depth
