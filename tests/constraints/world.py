"""A vocabulary of 40 tokens for the fake engine: letters of small JSON texts, a few longer tokens and an end."""

from __future__ import annotations

import re
from functools import cache
from types import SimpleNamespace
from typing import Any

import tokenizers
from tests.engine.fake import VOCABULARY, make_engine

from hasten.engine.decoding.chain import chained
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.decoding.forced_tokens import ForcedTokens
from hasten.engine.decoding.forced_tokens import Options as ForcedOptions
from hasten.engine.decoding.pre3 import Options, Pre3
from hasten.engine.loop import Engine
from hasten.engine.text import Tokenizer

LETTERS = '{}[]":,-01abcdefilnrstu'
MERGES = [
    *(('"', ":"), ("t", "r"), ("u", "e"), ("tr", "ue"), ("f", "a"), ("fa", "l"), ("s", "e"), ("fal", "se")),
    *(("n", "u"), ("l", "l"), ("nu", "ll"), ("{", '"'), ('"', ","), ("1", "0"), ("}", "}"), (",", '"')),
]
END = VOCABULARY - 1

PAIRS = r"""
root  ::= "{" pair ("," pair)* "}"
pair  ::= "\"a\":" value | "\"be\":" ("true" | "false") | "\"cd\":" root
value ::= "null" | "-"? [01]+ | "[" value ("," value)* "]"
"""
GRAMMAR = ConstraintSpec("gbnf", PAIRS)


@cache
def tokenizer() -> Tokenizer:
    names = [*LETTERS, *("".join(pair) for pair in MERGES)]
    assert len(names) == END
    made = tokenizers.Tokenizer(tokenizers.models.BPE({name: i for i, name in enumerate(names)}, MERGES))
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    assert made.token_to_id("<end>") == END
    return Tokenizer(made, [END])


def parts() -> Any:
    return SimpleNamespace(model=SimpleNamespace(vocabulary=VOCABULARY), eos=frozenset({END}), tokenizer=tokenizer())


def policy(**options: Any) -> Pre3:
    return Pre3(parts(), Options(**options))


def engine(*, forced: bool = False, proposer: Any = None, **knobs: Any) -> Engine:
    if forced:
        ours = ForcedTokens(parts(), ForcedOptions())
        proposer = chained([ours] if proposer is None else [ours, proposer])
    return make_engine(eos=frozenset({END}), constraint=knobs.pop("constraint", None) or policy(), proposer=proposer, **knobs)


def text_of(tokens: list[int]) -> str:
    return tokenizer().decode([token for token in tokens if token != END])


def follows(text: str) -> bool:
    """Whether a text is of the grammar: by writing a letter for each part of it, inner ones first."""
    text, before = re.sub(r"null|-?[01]+", "V", text), ""
    while text != before:
        before = text
        text = re.sub(r"\[V(,V)*\]", "V", text)
        text = re.sub(r'"a":V|"be":(true|false)|"cd":R', "P", text)
        text = re.sub(r"\{P(,P)*\}", "R", text)
    return text == "R"
