"""Proposers as tests switch them on: quick to guess, so that much is guessed wrongly too."""

from __future__ import annotations

from typing import Any

from hasten.engine.decoding import prompt_lookup, suffix_tree
from hasten.engine.decoding.chain import Chain
from hasten.engine.decoding.prompt_lookup import PromptLookup
from hasten.engine.decoding.suffix_tree import SuffixTree


def lookup(**knobs: Any) -> PromptLookup:
    return PromptLookup(prompt_lookup.Options(**{"shortest": 1, **knobs}))


def tree(**knobs: Any) -> SuffixTree:
    return SuffixTree(suffix_tree.Options(**{"shortest": 1, "least": 0.1, "tokens": 2000, **knobs}))


def both() -> Chain:
    return Chain([lookup(shortest=3), tree()])


KINDS = {"prompt-lookup": lookup, "suffix-tree": tree, "both": both}


def held(proposer: Any) -> int:
    """How much it still keeps of sequences."""
    if isinstance(proposer, Chain):
        return len(proposer._whose) + sum(held(one) for one in proposer._proposers)
    if isinstance(proposer, PromptLookup):
        return len(proposer._texts) + len(proposer._found)
    return len(proposer._places) + len(proposer._found)
