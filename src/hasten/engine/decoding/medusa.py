"""Medusa: heads on the model's last hidden state guess several tokens ahead, a tree of guesses is checked in one pass.

Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads", 2024. Head k reads the state h
that the sequence's last token was drawn from, and guesses the (k + 1)-th token after it: softmax(W2 (SiLU(W1 h) + h)). From how
often each head's i-th guess is right, measured when the heads were trained, a tree of ranks is grown once (`drafts/tree.py`);
in every step its first nodes, as many as the sequence may have, are filled with the heads' guesses and verified like any
draft. What is accepted is moved into place, and the state of the node that the last token was drawn from is read next.

Exact: the true token is drawn at every node (`speculate.py`). The paper's approximate rule is a technique of its own,
`typical-acceptance`. Differences from the paper: W2 is by default the model's own head for all heads, so that only W1 is
trained and stored, and guesses come from a list of frequent tokens; drawn tokens are guessed as greedy ones are.

A step costs, for all sequences together, one product with all W1 and one with the head's chosen rows, `heads` rows a sequence.
Kept of a sequence: one hidden state.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from hasten.engine.config import BUILTIN
from hasten.engine.decoding.drafts import heads as stored
from hasten.engine.decoding.drafts.tree import grow
from hasten.engine.events import ENDS, Event
from hasten.engine.executors.base import NORMED
from hasten.engine.sequence import Draft, Sequence
from hasten.engine.technique import ConfigError, Technique
from hasten.engine.weights.dense import DenseWeights, WeightContext

if TYPE_CHECKING:
    from hasten.engine.build import Parts
    from hasten.engine.executors.base import StepResult
    from hasten.engine.executors.step import Model
    from hasten.engine.scheduling.base import View
    from hasten.engine.weights.base import WeightStore
    from hasten.kernels import Kernels

BUILTIN_HEADS = Path(str(files("hasten") / "builtin_medusa"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    path: str = ""
    """The folder that `hasten train medusa` wrote; empty: the heads that come with the built-in model."""
    nodes: Annotated[int, Field(ge=1, le=64)] = field(default=6, metadata={"search": (2, 3, 4, 8, 16, 32)})
    """Guesses checked for a sequence in one step."""


class Guesser:
    """The heads' products: hidden states in, the best guesses out: `ranks` of each of the first `depth` heads."""

    def __init__(self, heads: stored.Heads, model: Model, kernels: Kernels, depth: int, ranks: int) -> None:
        context = WeightContext(kernels, deterministic=False)

        def dense(weight: Tensor) -> DenseWeights:
            return DenseWeights(weight.to(model.device, model.dtype).contiguous(), None, context)

        self._depth, self._ranks = depth, ranks
        self._w1 = dense(heads.w1[:depth].reshape(depth * heads.width, heads.width))
        self._tokens = None if heads.tokens is None else heads.tokens.to(model.device)
        self._own: list[DenseWeights] | None = None if heads.w2 is None else [dense(weight) for weight in heads.w2[:depth]]
        self._head: WeightStore = model.head if heads.tokens is None else dense(model.head.dense()[self._tokens])

    @property
    def nbytes(self) -> int:
        """What it holds beside the model."""
        own = self._own if self._own is not None else [] if self._tokens is None else [self._head]
        return self._w1.nbytes + sum(store.nbytes for store in own)

    def __call__(self, hidden: Tensor) -> np.ndarray:
        """Of hidden states [n, width] the guesses, likeliest first: int64 [n, depth, ranks]."""
        rows, width = hidden.shape
        x = F.silu(self._w1.apply(hidden)).view(rows, self._depth, width) + hidden[:, None]
        if self._own is not None:
            logits = torch.stack([head.apply(x[:, k].contiguous()) for k, head in enumerate(self._own)], 1)
        else:
            logits = self._head.apply(x.view(rows * self._depth, width)).view(rows, self._depth, -1)
        best = torch.topk(logits.float(), self._ranks).indices
        found: np.ndarray = (best if self._tokens is None else self._tokens[best]).cpu().numpy()
        return found


class Medusa:
    """A proposer that reads the model."""

    taps = frozenset({NORMED})
    learns_from = ENDS

    def __init__(self, parts: Parts, options: Options) -> None:
        folder = Path(options.path) if options.path else _builtin(parts)
        heads = stored.load(folder)
        _fits(heads, parts, folder)
        self.tree = grow(heads.accuracies, options.nodes)
        if not len(self.tree):
            raise ConfigError(f"medusa: {folder}: none of its heads was ever right")
        depth, ranks = int(self.tree.depths.max()) + 1, int(self.tree.ranks.max()) + 1
        self._guess = Guesser(heads, parts.model, parts.kernels, depth, ranks)
        self._states: dict[int, tuple[int, Tensor]] = {}
        """By sequence, how long it was, and the state [width] that its last token was drawn from."""
        parts.facts |= {"medusa_heads": depth, "medusa_nodes": len(self.tree), "medusa_bytes": self._guess.nbytes}

    def __len__(self) -> int:
        """Sequences of which it keeps something."""
        return len(self._states)

    def committed(self, sequence: Sequence, row: int, result: StepResult) -> None:
        self._states[sequence.id] = (sequence.length, result.hidden[NORMED][row].clone())

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        """A sequence has ended."""
        self._states.pop(event.sequence, None)
        return ()

    def lookahead(self, sequence: Sequence) -> int:
        return len(self.tree) if self._state(sequence) is not None else 0

    def odds(self, sequence: Sequence, most: int) -> list[float]:
        """How likely each of its best nodes is to be accepted, of all sequences alike."""
        odds: list[float] = self.tree.first(most).expected.tolist()
        return odds

    def _state(self, sequence: Sequence) -> Tensor | None:
        """None where its last token was not drawn: of forks, and where something was injected."""
        length, state = self._states.get(sequence.id, (0, None))
        return state if length == sequence.length else None

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: StepResult | None) -> list[Draft | None]:
        states = [self._state(sequence) for sequence in sequences]
        known = [state for state in states if state is not None]
        if not known:
            return [None] * len(states)
        with torch.inference_mode():
            guesses = iter(self._guess(torch.stack(known)))
        return [
            self._draft(next(guesses), budget) if state is not None else None
            for state, budget in zip(states, budgets, strict=True)
        ]

    def _draft(self, guesses: np.ndarray, budget: int) -> Draft:
        """The tree's best nodes with the guesses [depth, ranks] of one sequence."""
        tree = self.tree.first(budget)
        return Draft(guesses[tree.depths, tree.ranks].astype(np.int32), tree.parents)


def _builtin(parts: Parts) -> Path:
    served = parts.config.model.path
    if served != BUILTIN:
        raise ConfigError(
            f"medusa: which heads guess for {served}? Train them with `hasten train medusa --model {served} --out FOLDER` "
            "and name the folder: medusa:path=FOLDER"
        )
    return BUILTIN_HEADS


def _fits(heads: stored.Heads, parts: Parts, folder: Path) -> None:
    """Raise ConfigError for heads of another model."""
    model, name = parts.model, parts.config.model.path
    for what, theirs, ours in (("tokens", heads.vocabulary, model.vocabulary), ("numbers a state", heads.width, model.width)):
        if theirs != ours:
            raise ConfigError(f"medusa: the heads in {folder} are not {name}'s: they are for {theirs} {what}, it has {ours}")
    if model.fingerprint not in heads.fingerprints:
        raise ConfigError(
            f"medusa: the heads in {folder} were trained on other weights than {name} has; train them again with `hasten train "
            "medusa`"
        )


TECHNIQUE = Technique(
    name="medusa",
    seam="decoding",
    summary="extra heads on the last hidden state guess a tree of next tokens, checked together",
    exact=True,
    sets={"decoding.proposers": ("medusa",)},
    options=Options,
    make=Medusa,
    paper="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads (2024)",
)
