"""A suffix automaton: every stretch of tokens that some texts hold, with how often and how lately each occurred.

Blumer et al., "The smallest automaton recognizing the subwords of a text" (1985), online and for several texts that may share
their beginnings. A state stands for all stretches that end at the same places; its link leads to the longest shorter one that
ends at more places. Appending a token takes amortised constant time, and there are at most two states a token.
"""

from __future__ import annotations

from array import array

ROOT = 0
"""The state of the empty text, where every text begins."""
LEVELS = 16
"""How many links up from the end of a text occurrences are counted. Longer chains have only texts that repeat a short pattern
over and over: there counts and times of its shortest stretches fall behind, so that an append stays cheap."""


class SuffixAutomaton:
    def __init__(self) -> None:
        self._next: list[dict[int, int]] = []
        self._length = array("i")
        """Of the longest stretch a state stands for."""
        self._link = array("i")
        self._count = array("i")
        self._when = array("i")
        """Number of the append that ended its latest occurrence."""
        self._appended = 0
        self._new(0, -1, {})

    def __len__(self) -> int:
        """States."""
        return len(self._next)

    def _new(self, length: int, link: int, after: dict[int, int], count: int = 0, when: int = 0) -> int:
        self._next.append(after)
        self._length.append(length)
        self._link.append(link)
        self._count.append(count)
        self._when.append(when)
        return len(self._next) - 1

    def append(self, last: int, token: int) -> int:
        """Go on with `token` after the text whose end is `last` (ROOT for a new one); the state that is its end now."""
        after, length, link = self._next, self._length, self._link
        there = after[last].get(token)
        if there is not None:  # another text went on like this
            state = self._exactly(last, token, there)
        else:
            state = self._new(length[last] + 1, ROOT, {})
            at = last
            while at >= 0 and token not in after[at]:
                after[at][token] = state
                at = link[at]
            if at >= 0:
                link[state] = self._exactly(at, token, after[at][token])
        self._appended += 1
        up = state
        for _ in range(LEVELS):
            if up == ROOT:
                break
            self._count[up] += 1
            self._when[up] = self._appended
            up = link[up]
        return state

    def _exactly(self, before: int, token: int, there: int) -> int:
        """The state of which `before`'s longest stretch and `token` are the longest: `there`, or a part split off it."""
        after, length, link = self._next, self._length, self._link
        if length[there] == length[before] + 1:
            return there
        part = self._new(length[before] + 1, link[there], dict(after[there]), self._count[there], self._when[there])
        link[there] = part
        while before >= 0 and after[before].get(token) == there:
            after[before][token] = part
            before = link[before]
        return part

    # -- looking up -----------------------------------------------------------------------------------------------------

    def follow(self, state: int, matched: int, token: int) -> tuple[int, int]:
        """From the longest stretch that a text ends with, the one with `token` after it: (state, its length)."""
        state = self.now_of(state, matched)
        while state != ROOT and token not in self._next[state]:
            state = self._link[state]
            matched = self._length[state]
        there = self._next[state].get(token)
        return (ROOT, 0) if there is None else (there, matched + 1)

    def now_of(self, state: int, matched: int) -> int:
        """The state of a stretch of that length that was `state`'s, which may have been split since."""
        while state != ROOT and matched <= self._length[self._link[state]]:
            state = self._link[state]
        return state

    def continued(self, state: int, matched: int) -> tuple[int, int]:
        """Its longest suffix that something follows somewhere: (state, length); ROOT and 0 if there is none."""
        while state != ROOT and not self._next[state]:
            state = self._link[state]
            matched = self._length[state]
        return state, matched if state != ROOT else 0

    def length_of(self, state: int) -> int:
        return self._length[state]

    def latest(self, state: int) -> tuple[int, int]:
        """What followed most recently, of a state that something follows: (token, state)."""
        after, when = self._next[state], self._when
        if len(after) == 1:
            return next(iter(after.items()))
        return max(after.items(), key=lambda pair: when[pair[1]])

    def branches(self, state: int) -> list[tuple[int, int, float]]:
        """What followed: (token, state, its share of the occurrences)."""
        after = self._next[state]
        counts = [self._count[there] for there in after.values()]
        total = sum(counts)
        return [(token, there, count / total) for (token, there), count in zip(after.items(), counts, strict=True)]
