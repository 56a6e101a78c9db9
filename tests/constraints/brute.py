"""What a grammar allows, by trying everything: the naive reference of the machine. Texts are read lexeme by lexeme with every
choice kept; which terminals may follow comes from an Earley parser over terminals, frames are replayed as Python values."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from functools import cache
from typing import NamedTuple

from hasten.engine.decoding.constraints.grammar import Act, Form, Grammar, Plan, Row
from hasten.engine.decoding.constraints.native import Language

CHARACTER = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,4})?)?|\\(?:u[0-9a-fA-F]{0,4}|[^u])?|[\xc0-\xff][\x80-\xbf]*|[^\"\\]",
    re.DOTALL,
)


class Frame(NamedTuple):
    plan: int
    seen: frozenset[int] = frozenset()
    """Bits of keys; witnesses w as -1 - w."""
    count: int = 0
    unnamed: bool = False
    keys: tuple[str, ...] = ()
    """Distinct ones."""
    key: str = ""
    value: tuple = ()
    """Items, or (key, value)."""


class Reading(NamedTuple):
    terminals: tuple[int, ...]
    frames: tuple[Frame, ...]
    text: bytes
    """Of the lexeme that is being read."""
    candidates: frozenset[int]


Config = frozenset[Reading]


class Brute:
    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.languages = {
            t: Language(one.language, one.form) for t, one in enumerate(grammar.terminals) if one.act != Act.TOKEN
        }
        productive: set[int] = {
            t for t, one in enumerate(grammar.terminals) if t not in self.languages or self.languages[t].states
        }
        while more := {-1 - left for left, right in grammar.productions if productive.issuperset(right)} - productive:
            productive |= more
        self.productions: dict[int, list[tuple[int, ...]]] = {}
        for left, right in grammar.productions:
            if productive.issuperset(right):
                self.productions.setdefault(-1 - left, []).append(right)
        self.chart = cache(self._chart)
        self.match = cache(self._match)
        self.complete = cache(self._complete)

    # ---- which terminals may follow others

    def _chart(self, terminals: tuple[int, ...]) -> tuple[frozenset, ...]:
        """Earley items (left, right, dot, origin) after each terminal."""
        if terminals:
            before = self.chart(terminals[:-1])
            items = {(a, r, d + 1, o) for a, r, d, o in before[-1] if d < len(r) and r[d] == terminals[-1]}
        else:
            before = ()
            items = {(0, (self.grammar.start,), 0, 0)}
        todo = list(items)
        while todo:
            left, right, dot, origin = todo.pop()
            if dot == len(right):
                source = before[origin] if origin < len(before) else frozenset()
                found = {(a, r, d + 1, o) for a, r, d, o in source if d < len(r) and r[d] == left and left != 0}
            else:
                found = {(right[dot], r, 0, len(before)) for r in self.productions.get(right[dot], ())}
            todo += found - items
            items |= found
        return (*before, frozenset(items))

    def follow(self, terminals: tuple[int, ...]) -> set[int]:
        return {r[d] for _, r, d, _ in self.chart(terminals)[-1] if d < len(r) and r[d] >= 0}

    def is_text(self, terminals: tuple[int, ...]) -> bool:
        return any(a == 0 and d == len(r) and o == 0 for a, r, d, o in self.chart(terminals)[-1])

    # ---- frames

    def rows(self, frame: Frame) -> list[Row]:
        return [row for row in self.plan(frame).rows if not row.forbidden & frame.seen]

    def plan(self, frame: Frame) -> Plan:
        return self.grammar.plans[frame.plan]

    def missing(self, frame: Frame) -> int:
        return sum(-1 - w not in frame.seen for w in range(self.plan(frame).witnesses))

    def items_fit(self, frame: Frame) -> bool:
        """Whether an array can be completed when each further item serves one witness."""
        return any(row.most is None or frame.count + self.missing(frame) <= row.most for row in self.plan(frame).rows)

    def enabled(self, terminals: tuple[int, ...], frames: tuple[Frame, ...], t: int) -> bool:
        one = self.grammar.terminals[t]
        top = frames[-1] if frames else None
        if one.act in (Act.NONE, Act.TOKEN, Act.OPEN):
            if top is not None and self.plan(top).array and not self.items_fit(top):
                return False
            if one.act == Act.OPEN and self.grammar.plans[one.argument].array:
                opened = self.opened(t)
                return self.items_fit(opened) or self.may_be_empty(opened)
            return True
        if top is None:
            return False
        plan = self.plan(top)
        if one.act == Act.EMPTY:
            return self.may_be_empty(top)
        if one.act == Act.CLOSE:
            return not self.missing(top) and any(
                row.required <= top.seen and row.least <= top.count and (row.most is None or top.count <= row.most)
                for row in self.rows(top)
            )
        if one.act == Act.COMMA and not plan.array:
            after = (*terminals, t)
            return any(
                self.grammar.terminals[key].act == Act.KEY and self.enabled(after, frames, key) for key in self.follow(after)
            )
        if one.act == Act.COMMA:
            return self.items_fit(self.counted(top, one.witness))
        bit = one.argument
        if bit in top.seen or bit >= plan.bits:
            return False
        if plan.ordered and bit >= 0 and (top.unnamed or any(later > bit for later in top.seen)):
            return False
        witnesses = self.missing(self.counted(top, one.witness))
        for row in self.rows(top):
            short = row.required - top.seen - {bit}
            if plan.ordered and any(bit < 0 or other < bit for other in short):
                continue
            if bit not in row.forbidden and (row.most is None or top.count + 1 + len(short) + witnesses <= row.most):
                return True
        return False

    def may_be_empty(self, frame: Frame) -> bool:
        return not self.plan(frame).witnesses and any(not row.required and not row.least for row in self.plan(frame).rows)

    def opened(self, t: int) -> Frame:
        one = self.grammar.terminals[t]
        frame = Frame(one.argument)
        return self.counted(frame, one.witness) if self.plan(frame).array else frame

    def counted(self, frame: Frame, witness: int) -> Frame:
        seen = frame.seen | {-1 - witness} if witness >= 0 else frame.seen
        return frame._replace(seen=seen, count=frame.count + 1)

    def apply(self, frames: tuple[Frame, ...], t: int, text: bytes) -> tuple[Frame, ...] | None:
        """The frames after a terminal; None: a duplicate."""
        one = self.grammar.terminals[t]
        if one.act == Act.OPEN:
            return (*frames, self.opened(t))
        if not frames or one.act == Act.TOKEN:
            return frames
        rest, top = frames[:-1], frames[-1]
        plan = self.plan(top)
        if one.act == Act.NONE:
            try:
                value = json.loads(
                    text, parse_float=lambda s: Decimal(s).normalize(), parse_int=lambda s: Decimal(s).normalize()
                )
            except ValueError:
                return frames
            return self.finish(frames, (type(value).__name__, value))
        if one.act in (Act.CLOSE, Act.EMPTY):
            value = ("array", *top.value) if plan.array else ("object", frozenset(top.value))
            return self.finish(rest, value)
        if one.act == Act.COMMA:
            return (*rest, self.counted(top, one.witness)) if plan.array else frames
        top = self.counted(top, one.witness)
        if one.argument >= 0:
            top = top._replace(seen=top.seen | {one.argument})
        else:
            top = top._replace(unnamed=True)
        key = json.loads(text)
        if one.distinct:
            if key in top.keys:
                return None
            top = top._replace(keys=(*top.keys, key))
        return (*rest, top._replace(key=key))

    def finish(self, frames: tuple[Frame, ...], value: tuple) -> tuple[Frame, ...] | None:
        if not frames:
            return frames
        top = frames[-1]
        if self.plan(top).unique and value in top.value:
            return None
        item = value if self.plan(top).array else (top.key, value)
        return (*frames[:-1], top._replace(value=(*top.value, item)))

    # ---- bytes

    def _match(self, t: int, text: bytes) -> tuple[bool, bool]:
        """Whether the text begins one of the terminal, and whether it is one."""
        length, accepted = self.languages[t].match(text)
        one = self.grammar.terminals[t]
        if length < len(text) or not self.languages[t].states:
            return False, False
        if one.form != Form.TEXT and (one.least or one.most is not None) and b'"' in text:
            inner = text[text.index(b'"') + 1 :]
            count = at = 0
            while found := CHARACTER.match(inner, at):
                count, at = count + 1, found.end()
            if (one.most is not None and count > one.most) or (at < len(inner) and count < one.least):
                return False, False
        return True, accepted

    def _complete(self, t: int, text: bytes) -> bool:
        return self.match(t, text)[1] and not any(self.languages[t].match(text + bytes([b]))[0] > len(text) for b in range(256))

    def goes_on(self, frames: tuple[Frame, ...], t: int, text: bytes) -> bool:
        if not self.match(t, text)[0]:
            return False
        return not self.complete(t, text) or self.apply(frames, t, text) is not None

    def start(self, terminals: tuple[int, ...] = (), frames: tuple[Frame, ...] = ()) -> Reading:
        candidates = frozenset(t for t in self.follow(terminals) if self.enabled(terminals, frames, t))
        return Reading(terminals, frames, b"", candidates)

    def ends(self, reading: Reading) -> list[Reading]:
        """Where it stands if the lexeme ends here."""
        if not reading.text:
            return [reading]
        matched = [t for t in reading.candidates if t in self.languages and self.match(t, reading.text)[1]]
        if self.grammar.longest and matched:
            highest = max(self.grammar.terminals[t].priority for t in matched)
            matched = [t for t in matched if self.grammar.terminals[t].priority == highest]
        return [
            self.start((*reading.terminals, t), frames)
            for t in matched
            if (frames := self.apply(reading.frames, t, reading.text)) is not None
        ]

    def go_on(self, reading: Reading, byte: bytes) -> Reading:
        text = reading.text + byte
        going = (t for t in reading.candidates if t in self.languages and self.goes_on(reading.frames, t, text))
        return Reading(reading.terminals, reading.frames, text, frozenset(going))

    def longer(self, reading: Reading, byte: bytes) -> bool:
        """Whether a terminal could match more, whatever counts and frames make of that."""
        text = reading.text + byte
        return any(
            self.languages[t].match(text)[0] == len(text) and self.languages[t].states
            for t in reading.candidates
            if t in self.languages
        )

    def step(self, config: Config, byte: bytes) -> Config:
        out = set()
        for reading in config:
            further = self.go_on(reading, byte)
            out.add(further)
            if reading.text and not (self.grammar.longest and self.longer(reading, byte)):
                out |= {self.go_on(begun, byte) for begun in self.ends(reading)}
        return frozenset(reading for reading in out if reading.candidates)

    def read(self, config: Config, text: bytes) -> Config:
        for byte in text:
            config = self.step(config, bytes([byte]))
        return config

    def token(self, config: Config, token: int) -> Config:
        """After a token that is named by its number."""
        return frozenset(
            self.start((*begun.terminals, t), begun.frames)
            for reading in config
            for begun in self.ends(reading)
            for t in begun.candidates
            if t not in self.languages and self.grammar.terminals[t].argument == token
        )

    def ended(self, config: Config) -> bool:
        for reading in config:
            if any(self.is_text(begun.terminals) for begun in self.ends(reading)):
                return True
            if reading.terminals or reading.text:
                continue
            # A terminal matches the empty text only where that is all there is.
            if any(t in self.languages and self.match(t, b"")[1] and self.is_text((t,)) for t in reading.candidates):
                return True
        return False

    def mask(self, config: Config, pieces: list[bytes], ends: set[int]) -> set[int]:
        known: dict[bytes, Config] = {b"": config}

        def after(text: bytes) -> Config:
            if text not in known:
                known[text] = self.step(before, text[-1:]) if (before := after(text[:-1])) else frozenset()
            return known[text]

        legal = {i for i, piece in enumerate(pieces) if piece and i not in ends and after(piece)}
        named = {one.argument for one in self.grammar.terminals if one.act == Act.TOKEN}
        legal |= {token for token in named if self.token(config, token)}
        return legal | ends if self.ended(config) else legal
