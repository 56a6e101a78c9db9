"""The one form of all grammars: terminals that are regular languages, productions over them, and frames beside the stack.

Productions have no empty right-hand side; lists are left-recursive. A terminal may act on the *frame* of the container that
is open: objects whose properties come in any order, counts and the like would need a state for every combination, so a frame
remembers what was seen and says which terminals are enabled next. What an action means:

    OPEN plan       pushes a frame of that plan (of an array: its first item begins, unless EMPTY follows)
    KEY bit         object: sets the bit (-1: none, may come again), counts the property
    COMMA           array: counts the next item
    CLOSE           pops the frame
    EMPTY           pops the frame of a container that holds nothing: this bracket directly follows the opening one
    TOKEN id        no text: exactly the vocabulary's token `id`

`OPEN` of arrays, `KEY` and `COMMA` may have a `witness`: they set that bit of the frame, which says that the item or property
which now begins is the one that some condition asked for ("contains", negated "additionalProperties", ...). A terminal is
enabled if the frame still has a way to close after it:

    KEY      the bit is not set; some row has no forbidden bit set or in this key, and count + 1 + required bits and witnesses
             then missing <= most
    COMMA    object: some KEY is after it; array: in some row count + 1 + witnesses then missing <= most (an item can serve one)
    CLOSE    some row has all required and no forbidden bits, least <= count <= most; all witnesses are set
    EMPTY    the same for count 0
    OPEN     of an array: what it opens can be empty, or have its first item as COMMA has it; of others always

all others always, but not as the first item of an array that can only be empty. `count` of an object is its properties, of an
array its items. A duplicate (`distinct`, `unique`) is found where a lexeme ends or cannot go on: no text with one is accepted,
but a text may come to where all that could follow are duplicates.

A terminal matches the empty text only where that is all of the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from struct import pack

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.languages import Expr, program

MOST_BYTES = 64 << 20
"""Of a blob."""


class Form(IntEnum):
    """What of a terminal's language is written. TEXT: its code points in UTF-8. STRING: a JSON string that means them, in
    quotes, each character in its shortest JSON form (raw where JSON allows it; else a backslash and a letter, or `u00` and
    two digits of either case). ANY_STRING: any JSON string with all escapes; the language does not count."""

    TEXT = 0
    STRING = 1
    ANY_STRING = 2


class Act(IntEnum):
    NONE = 0
    OPEN = 1
    KEY = 2
    COMMA = 3
    CLOSE = 4
    EMPTY = 5
    TOKEN = 6


@dataclass(frozen=True, slots=True)
class Terminal:
    """`least` and `most` (None: no end) code points, only where `form` is a string's and counting them in the language's
    states would take too many. `name`: what messages call it. `priority`: of two terminals that match the same text the
    higher one wins (`Grammar.longest` only). `distinct`: a KEY whose text differs from that of all other distinct keys of the
    frame."""

    language: Expr
    form: Form = Form.TEXT
    act: Act = Act.NONE
    argument: int = 0
    witness: int = -1
    least: int = 0
    most: int | None = None
    priority: int = 0
    distinct: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One way in which a container may be complete: bits that must be set, bits that must not, and the count."""

    required: frozenset[int] = frozenset()
    forbidden: frozenset[int] = frozenset()
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Of frames. `bits`: of named keys. `witnesses`: how many, all of which must be found. `unique`: the items of an array must
    differ as JSON values. `ordered`: of an object, keys come in the order of their bits, and those without one (-1) after all
    others: a KEY is enabled only if no bit from its own on is set and no required one below it is missing, and one with a bit
    only before any without."""

    array: bool
    rows: tuple[Row, ...]
    bits: int = 0
    witnesses: int = 0
    unique: bool = False
    ordered: bool = False


@dataclass(slots=True)
class Grammar:
    """Symbols: terminal t is t, nonterminal n is -1 - n. `longest`: a terminal ends only where none of those that
    may be read here could go on, by their languages alone (as lark has it); otherwise wherever it may. Where a grammar is
    ambiguous, what is longest and what has priority is found for each reading by itself. `warnings`: what was not enforced,
    on the caller's wish."""

    terminals: list[Terminal] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    productions: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """(number of the nonterminal on the left, symbols on the right)."""
    names: list[str] = field(default_factory=list)
    """Of nonterminals, by number."""
    start: int = -1
    """A symbol as `nonterminal` gave it."""
    longest: bool = False
    warnings: list[str] = field(default_factory=list)

    def terminal(self, terminal: Terminal) -> int:
        self.terminals.append(terminal)
        return len(self.terminals) - 1

    def nonterminal(self, name: str = "") -> int:
        self.names.append(name)
        return -len(self.names)

    def plan(self, plan: Plan) -> int:
        self.plans.append(plan)
        return len(self.plans) - 1

    def produce(self, left: int, *right: int) -> None:
        """`left`: a symbol as `nonterminal` gave it."""
        assert left < 0 and right, "a nonterminal that becomes one symbol or more is wanted"
        self.productions.append((-1 - left, right))

    def blob(self) -> bytes:
        """What the native library reads: int32, little-endian, in the order below; bytes are preceded by their number and
        filled up to a multiple of four. Equal grammars give equal blobs. Raises GrammarError for more than MOST_BYTES."""
        out = bytearray(b"hgr1")

        def numbers(*values: int) -> None:
            out.extend(pack(f"<{len(values)}i", *values))

        def chunk(data: bytes) -> None:
            numbers(len(data))
            out.extend(data + b"\0" * (-len(data) % 4))
            if len(out) > MOST_BYTES:
                raise GrammarError(f"its patterns and words take more than {MOST_BYTES >> 20} MiB")

        languages: dict[tuple[Expr, Form], int] = {}
        for one in self.terminals:
            languages.setdefault((one.language, one.form), len(languages))
        numbers(self.longest, len(languages))
        for language, form in languages:
            numbers(form)
            chunk(program(language) if form != Form.ANY_STRING else b"")
        numbers(len(self.terminals))
        for one in self.terminals:
            most = -1 if one.most is None else one.most
            numbers(
                languages[one.language, one.form],
                one.act,
                one.argument,
                one.witness,
                one.least,
                most,
                one.priority,
                one.distinct,
            )
            chunk(one.name.encode())
        numbers(len(self.plans))
        for plan in self.plans:
            # `ordered` is the second bit of the number that says `unique`.
            numbers(plan.array, plan.bits, plan.witnesses, plan.unique | plan.ordered << 1, len(plan.rows))
            for row in plan.rows:
                numbers(row.least, -1 if row.most is None else row.most, len(row.required), *sorted(row.required))
                numbers(len(row.forbidden), *sorted(row.forbidden))
        numbers(len(self.names), -1 - self.start, len(self.productions))
        for name in self.names:
            chunk(name.encode())
        for left, right in self.productions:
            numbers(left, len(right), *right)
        return bytes(out)
