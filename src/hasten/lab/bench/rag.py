"""A library of pieces of text and questions about them: retrieval as the testbed's models can do it.

Pieces have one length in tokens, as retrieval cuts texts, and hold facts between running text. Three sorts of question: `own`,
about a fact that stands within a piece; `cut`, about one that the cut between two pieces of one text went through, so that the
second says a value of it knows not what; `linked`, about a name that stands for a name of another piece (`raven = tulip` here,
`tulip = 4821` there). A prompt puts the pieces that were retrieved into some order, those of one text one after the other, and
asks. Wordings, values and texts are those of the testbed's tasks, of the split that the models never saw. Everything is a
function of the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from hasten.engine.request import Segment
from hasten.lab.testbed import words
from hasten.lab.testbed.document import END_OF_TURN, turn
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.sums import THINK_FIRST
from hasten.lab.testbed.tasks.base import ANSWERING, final_answer
from hasten.lab.testbed.tasks.facts import SENTENCES, VALUES, Fact, hide, question, values
from hasten.lab.testbed.tasks.tracing import QUERIES, STATEMENTS, Chain

Kind = Literal["own", "cut", "linked"]
KINDS: tuple[Kind, ...] = ("own", "cut", "linked")
SPLIT: Literal["held-out"] = "held-out"
SORTS = tuple(sort for sort in VALUES if sort[0] != "word")
"""What facts are about: not words, which names are."""
LONGEST_SENTENCE = 160
"""Tokens."""
END = "\n\n"
WHOLE = 0.5
"""How often a text that nothing is asked of comes with all its pieces."""

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Question:
    """`pieces` that hold what its answer needs. `expected`: the value."""

    kind: Kind
    pieces: tuple[int, ...]
    text: str
    expected: str
    max_tokens: int

    def right(self, output: str) -> bool:
        """As the tasks `tracing` and `recall` score."""
        return final_answer(output) == self.expected if self.kind == "linked" else values(output) == [self.expected]


@dataclass(frozen=True)
class Query:
    """Pieces in the order of the prompt, and what is asked about them: each of `questions` in a prompt of its own."""

    pieces: tuple[int, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Library:
    """`pieces`: token ids, all of one length. `texts`: their numbers, by the text that they were cut from, one or two."""

    pieces: list[list[int]]
    texts: list[tuple[int, ...]]
    questions: list[Question]

    def prompt(self, pieces: Sequence[int], asked: Question) -> list[Segment]:
        """The pieces are chunks."""
        opening = (turn("system", THINK_FIRST) if asked.kind == "linked" else "") + "<|im_start|>user\n"
        middle = [Segment(self.pieces[number], cache=True) for number in pieces]
        return [Segment(opening), *middle, Segment(f"{asked.text}{END_OF_TURN}\n{ANSWERING}")]

    def about(self, pieces: Sequence[int]) -> list[Question]:
        """The questions that these pieces answer."""
        there = set(pieces)
        return [one for one in self.questions if there.issuperset(one.pieces)]


def library(
    encode: Encode, material: Material, seed: int, *, pieces: int, tokens: int, facts: int = 2, cut: int = 0, links: int = 0
) -> Library:
    """`pieces` of `tokens` tokens with `facts` whole facts each; `cut` texts are of two pieces, the others of one; `links`
    names stand for a name of another text. Raises ValueError for more than fit."""
    if 2 * cut > pieces or 2 * links > min(pieces - cut, len(words.NOUNS) // 2):
        raise ValueError(f"{cut} cut texts and {links} links do not fit into {pieces} pieces")
    rng = random.Random(f"library/{seed}")
    texts: list[tuple[int, ...]] = [(2 * i, 2 * i + 1) for i in range(cut)] + [(i,) for i in range(2 * cut, pieces)]
    nouns = rng.sample(words.NOUNS, len(words.NOUNS))
    names, nouns = nouns[: 2 * links], nouns[2 * links :]  # a name that were part of a key would be two things
    what, value = rng.choice(SORTS)
    wording, linking = SENTENCES.pick(rng, SPLIT), STATEMENTS.pick(rng, SPLIT)
    keys = words.distinct(rng, pieces * facts + cut, lambda r: f"{r.choice(words.ADJECTIVES)} {r.choice(nouns)}")
    stated = [Fact(what, key, value(rng), wording) for key in keys]
    whole, split = stated[cut:], stated[:cut]
    said = [[fact.stated for fact in whole[i * facts : (i + 1) * facts]] for i in range(pieces)]
    asked = [_question(rng, "own", (i // facts,), fact) for i, fact in enumerate(whole)]
    asked += [_question(rng, "cut", text, fact) for text, fact in zip(texts, split, strict=False)]
    places = [rng.choice(text) for text in rng.sample(texts, 2 * links)]
    for i, held in enumerate(words.distinct(rng, links, lambda r: words.number(r, 4))):
        chain, there = Chain(tuple(names[2 * i : 2 * i + 2]), held, linking), tuple(places[2 * i : 2 * i + 2])
        for place, statement in zip(there, chain.statements, strict=True):
            said[place].insert(rng.randint(0, len(said[place])), statement)
        room = material.count(chain.answer(1, True)) + 16
        asked.append(Question("linked", there, QUERIES.pick(rng, SPLIT).format(name=chain.names[-1]), held, room))
    made: list[list[int]] = []
    for text, torn in zip(texts, [*split, *(None for _ in texts[cut:])], strict=True):
        first, rest = _torn(rng, torn) if torn else (END, "")
        made.append(_piece(encode, material, rng, said[text[0]], tokens, last=first))
        if torn:
            made.append(_piece(encode, material, rng, said[text[-1]], tokens, first=rest))
    return Library(made, texts, asked)


def _question(rng: random.Random, kind: Kind, pieces: tuple[int, ...], fact: Fact) -> Question:
    return Question(kind, pieces, question(rng, SPLIT, fact), fact.value, 32)


def _torn(rng: random.Random, fact: Fact) -> tuple[str, str]:
    """The statement in two, within what lies between the key's first word and the value's end: at a space or within digits,
    where no token reaches over it."""
    text = fact.stated
    first = text.index(fact.key) + 1
    end = text.rindex(fact.value) + len(fact.value)
    value = text.rindex(fact.value)
    at = rng.choice([i for i in range(first, end) if text[i] == " " or (i > value and text[i - 1 : i + 1].isdigit())])
    return " " + text[:at], text[at:]


def _piece(
    encode: Encode, material: Material, rng: random.Random, said: Sequence[str], tokens: int, *, first: str = "", last: str = ""
) -> list[int]:
    """Running text with the statements in it, of exactly `tokens`: it ends with `last` and is cut off in front, or begins with
    `first` and is cut off behind."""
    filler = material.filler(rng, SPLIT, tokens + 2 * LONGEST_SENTENCE)
    if first:
        filler.reverse()  # what is filled up is at the end then
    room = tokens - sum(material.count(" " + text) for text in (*said, first, last)) - 8
    if room < 0:
        raise ValueError(f"{len(said)} statements do not fit into {tokens} tokens")
    start = len(filler)
    while start and (room := room - material.count(" " + filler[start - 1])) >= 0:
        start -= 1
    beyond, within = filler[:start], filler[start:]
    if first:
        end = encode(END)
        text = encode(f"{first} " + " ".join([hide(rng, said, within[::-1]), *beyond[::-1]]))
        piece = [*text[: tokens - len(end)], *end]
    else:
        piece = encode(" ".join([*beyond, hide(rng, said, within)]) + last)[-tokens:]
    if len(piece) < tokens:
        raise ValueError(f"a text of {len(piece)} tokens is shorter than a piece of {tokens}")
    return piece


def shuffled(books: Library, seed: int, questions: int = 1) -> Query:
    """All pieces, texts in an order of their own, and some questions, of each kind in turn."""
    rng = random.Random(f"shuffled/{seed}")
    order = [piece for text in rng.sample(books.texts, len(books.texts)) for piece in text]
    return Query(tuple(order), tuple(_asked(rng, books.about(order), rng.choice(KINDS), questions)))


def zipf(count: int, skew: float, seed: int) -> list[float]:
    """The weight of each of `count` texts: the r-th most wanted, which is a random one, is wanted 1 / r^skew as often as the
    first."""
    ranks = list(range(1, count + 1))
    random.Random(f"ranks/{seed}").shuffle(ranks)
    return [rank**-skew for rank in ranks]


def retrieved(books: Library, weights: Sequence[float], seed: int, *, pieces: int = 5, questions: int = 1) -> Query:
    """So many pieces by the weights of their texts, none twice, shuffled, and questions about them. The first question brings
    all that it needs: a retriever that did not would have failed before we begin. Other texts come whole or with one piece, so
    that a piece is met in changing company."""
    rng = random.Random(f"retrieved/{seed}")
    if pieces > len(books.pieces):
        raise ValueError(f"there are {len(books.pieces)} pieces, fewer than {pieces}")
    of_text = {piece: text for text, of in enumerate(books.texts) for piece in of}
    kind = rng.choice([kind for kind in KINDS if any(one.kind == kind for one in books.questions)])
    of_kind = [one for one in books.questions if one.kind == kind]
    first = rng.choices(of_kind, [weights[of_text[one.pieces[0]]] for one in of_kind])[0]
    drawn: dict[int, tuple[int, ...]] = {}
    for piece in first.pieces:
        drawn[of_text[piece]] = (*drawn.get(of_text[piece], ()), piece)
    while (left := pieces - sum(map(len, drawn.values()))) > 0:
        text = rng.choices(range(len(books.texts)), weights)[0]
        of = books.texts[text]
        if text not in drawn:
            drawn[text] = of if len(of) <= left and rng.random() < WHOLE else (rng.choice(of),)
        elif len(drawn) == len(books.texts):  # there is no other text
            drawn[text] = of
    order = [piece for text in rng.sample(sorted(drawn), len(drawn)) for piece in drawn[text]]
    others = [one for one in books.about(order) if one is not first]
    return Query(tuple(order), (first, *_asked(rng, others, KINDS[(KINDS.index(kind) + 1) % 3], questions - 1)))


def _asked(rng: random.Random, about: Sequence[Question], kind: Kind, count: int) -> list[Question]:
    """Different ones, while there are, of each kind in turn from `kind` on."""
    waiting = {one: rng.sample(found := [q for q in about if q.kind == one], len(found)) for one in KINDS}
    asked: list[Question] = []
    at = KINDS.index(kind)
    while len(asked) < min(count, len(about)):
        if waiting[KINDS[at % 3]]:
            asked.append(waiting[KINDS[at % 3]].pop())
        at += 1
    return asked
