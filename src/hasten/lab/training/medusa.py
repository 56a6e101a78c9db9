"""`hasten train medusa`: heads that guess ahead, on top of a model that stays as it is (Medusa-1).

The model answers the testbed's questions; the heads learn, from the state that each token was drawn from, the tokens after it;
and how often each of their guesses is right is counted on answers to held-out questions. W1 starts at 0, so that every head
starts as the model's own head.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from hasten.engine import models
from hasten.engine.config import ModelConfig
from hasten.engine.decoding.drafts.heads import RANKS, Heads, rounded, save
from hasten.engine.llm import LLM
from hasten.lab.testbed import material
from hasten.lab.testbed.evaluate import token_ids
from hasten.lab.training import state
from hasten.lab.training.said import Said, collect, questions

SAVE_S, REPORT_S = 30.0, 5.0
PER_HEAD = 0.8
"""What a head counts in the loss, in parts of the one before it."""
BATCH = 256
RATE, OWN_RATE, LAST_RATE, WARM_UP_STEPS = 3e-3, 3e-4, 0.03, 50
HELD_OUT = 8
"""One question is held out, to count on, for so many that are learnt from."""
GUESSED_SHARE, MOST_GUESSED = 4, 8192
"""A vocabulary over the first, at most the second: tokens that are guessed at all, if nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`answers`: questions to learn from; `passes`: over what is said to them; `guessed`: the most frequent tokens, which
    alone are guessed (None: a part of the vocabulary; 0: all); `own`: whether each head has output weights of its own."""

    heads: int = 4
    answers: int = 3000
    passes: float = 4.0
    guessed: int | None = None
    own: bool = False
    seed: int = 0


class Training:
    """Heads while they learn from `said`. `output` float32 [n, width]: rows of the model's head; `tokens` int64 [n]: whose."""

    def __init__(self, said: Said, output: Tensor, tokens: Tensor, vocabulary: int, recipe: Recipe) -> None:
        # bfloat16 only where the processor multiplies it.
        self._dtype = models.run_dtype("auto", "bfloat16", torch.device("cpu"))
        self.recipe, self._hidden = recipe, said.hidden
        place = torch.full((vocabulary + 1,), -1)  # the last for -1, nothing said
        place[tokens] = torch.arange(len(tokens))
        self._targets = place[said.targets.long()]
        width = said.hidden.shape[1]
        self.w1 = torch.zeros(recipe.heads, width, width, requires_grad=True)
        self._output = output.to(self._dtype)
        self.w2 = output.repeat(recipe.heads, 1, 1).requires_grad_() if recipe.own else None
        groups = [{"params": [self.w1], "peak": RATE}]
        if self.w2 is not None:
            groups.append({"params": [self.w2], "peak": OWN_RATE})
        self._stepper = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
        self._counts = PER_HEAD ** torch.arange(recipe.heads, dtype=torch.float32)
        self.steps = max(1, int(recipe.passes * len(said) / BATCH))
        self.step = 0

    def load(self, saved: dict[str, object]) -> None:
        """Go on from what `state` gave."""
        with torch.no_grad():
            self.w1.copy_(saved["w1"])  # type: ignore[arg-type]
            if self.w2 is not None:
                self.w2.copy_(saved["w2"])  # type: ignore[arg-type]
        self._stepper.load_state_dict(saved["stepper"])  # type: ignore[arg-type]
        self.step = int(saved["step"])  # type: ignore[call-overload]

    def state(self) -> dict[str, object]:
        return {
            "w1": self.w1.detach(),
            "w2": None if self.w2 is None else self.w2.detach(),
            "stepper": self._stepper.state_dict(),
            "step": self.step,
        }

    def learn(self) -> list[float]:
        """One step; the mean loss of each head, in nats."""
        rows = self._rows()
        hidden, targets = self._hidden[rows].to(self._dtype), self._targets[rows]
        losses = []
        for k in range(self.recipe.heads):
            kept = targets[:, k] >= 0
            h = hidden[kept]
            x = F.silu(F.linear(h, self.w1[k].to(self._dtype))) + h
            logits = F.linear(x, self._output if self.w2 is None else self.w2[k].to(self._dtype))
            total = F.cross_entropy(logits.float(), targets[kept, k], reduction="sum")
            losses.append(total / max(1, len(h)))
        (torch.stack(losses) * self._counts).sum().backward()
        for group in self._stepper.param_groups:
            group["lr"] = group["peak"] * self._rate()
        self._stepper.step()
        self._stepper.zero_grad()
        self.step += 1
        return [loss.item() for loss in losses]

    def _rows(self) -> Tensor:
        """Which states this step learns from: a function of its number, so a run that was killed goes on as it would have."""
        generator = torch.Generator().manual_seed(1_000_003 * self.recipe.seed + self.step)
        return torch.randint(len(self._hidden), (BATCH,), generator=generator)

    def _rate(self) -> float:
        """The learning rates' factor: a linear warm-up, then half a cosine."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        return (LAST_RATE + (1 - LAST_RATE) * cosine) * min(1.0, (self.step + 1) / WARM_UP_STEPS)


def calibrate(w1: Tensor, output: Tensor, tokens: Tensor, said: Said) -> tuple[tuple[float, ...], ...]:
    """How often each of the RANKS likeliest guesses of each head is what was said. `output`: float32 [n, width], or one for
    each head; `tokens` int64 [n]."""
    shares = []
    for k, weight in enumerate(w1):
        said_more = said.targets[:, k] >= 0
        hidden, targets = said.hidden[said_more].float(), said.targets[said_more, k]
        right = torch.zeros(RANKS)
        for h, target in zip(hidden.split(BATCH), targets.split(BATCH), strict=True):
            logits = F.linear(F.silu(F.linear(h, weight)) + h, output if output.ndim == 2 else output[k])
            right += (tokens[logits.topk(RANKS).indices] == target[:, None]).sum(0)
        shares.append(tuple((right / max(1, len(targets))).tolist()))
    return tuple(shares)


def frequent(said: Said, vocabulary: int, count: int) -> Tensor:
    """The ids that are said most often, ascending, int64 [count]; of those equally often the lower ones."""
    counts = torch.bincount(said.targets[:, 0][said.targets[:, 0] >= 0].long(), minlength=vocabulary)
    return counts.sort(descending=True, stable=True).indices[:count].sort().values


def run(model: str, out: Path, recipe: Recipe, *, data: Path | None = None, threads: int | None = None) -> Heads:
    """Train and write the folder `out`; goes on where an earlier run in it was cut off. See the command's help."""
    tell = Console(stderr=True, highlight=False).print
    served = LLM(model, set_={"executor.threads": threads, "scheduling.max_rows": 64})
    learnt, held_out = _said(served, out, recipe, data, tell)
    shape = served.parts.model
    guessed = recipe.guessed if recipe.guessed is not None else min(MOST_GUESSED, shape.vocabulary // GUESSED_SHARE)
    tokens = frequent(learnt, shape.vocabulary, max(RANKS, guessed) if guessed else shape.vocabulary)
    output = shape.head.dense().float().cpu()[tokens]
    training = Training(learnt, output, tokens, shape.vocabulary, recipe)
    _train(training, out, tell)
    w1 = training.w1.detach()
    levels, scales = rounded(w1)  # as it will be read again
    w2 = None if training.w2 is None else training.w2.detach().bfloat16()
    shares = calibrate(levels.float() * scales[..., None], output if w2 is None else w2.float(), tokens, held_out)
    known = torch.isin(held_out.targets[:, 0], tokens.int()).float().mean().item()
    heads = Heads(
        _fingerprints(served.config.model),
        shape.vocabulary,
        shares,
        w1,
        None if len(tokens) == shape.vocabulary else tokens,
        w2,
        {"model": model, "states": len(learnt), "held_out_states": len(held_out), "said_that_is_guessed": round(known, 4)},
    )
    save(heads, out)
    for k, row in enumerate(shares):
        tell(f"head {k + 1}: right {100 * row[0]:.1f} %, among its {RANKS} best {100 * sum(row):.1f} %")
    return heads


def _said(served: LLM, out: Path, recipe: Recipe, data: Path | None, tell: Callable[[str], None]) -> tuple[Said, Said]:
    """What is learnt from, and what is held out; kept in the folder, so that it is said once."""
    saved, complaints = state.newest(out / "said")
    for complaint in complaints:
        tell(f"{complaint}; the model is asked again")
    asked = [recipe.answers, recipe.heads, recipe.seed, served.parts.model.fingerprint]
    if saved is None or saved["asked"] != asked:
        tell("reading the texts")
        texts = material.load(lambda text: len(token_ids(served, text)), data)
        parts = []
        for split, count, drawn in (("train", recipe.answers, 0.25), ("held-out", -(-recipe.answers // HELD_OUT), 0.0)):
            some = questions(served, texts, split, count, recipe.seed, drawn)  # type: ignore[arg-type]
            parts.append(collect(served, some, recipe.heads, partial(_answered, tell, split)))
        saved = {"asked": asked, "parts": [[part.hidden, part.targets] for part in parts]}
        state.save(out / "said", 0, saved)
    learnt, held_out = (Said(hidden, targets) for hidden, targets in saved["parts"])
    tell(f"{len(learnt):,} tokens to learn from, {len(held_out):,} held out")
    return learnt, held_out


def _answered(tell: Callable[[str], None], split: str, done: int, total: int) -> None:
    tell(f"{split}: {done:,} of {total:,} questions answered")


def _train(training: Training, out: Path, tell: Callable[[str], None]) -> None:
    folder = out / "states"
    saved, complaints = state.newest(folder)
    for complaint in complaints:
        tell(f"{complaint}; trying the one before it")
    if saved is not None and saved["recipe"] == repr(training.recipe):
        training.load(saved)
        tell(f"resumed after {training.step:,} steps")
    began = reported = kept = time.monotonic()
    first = training.step
    while training.step < training.steps:
        losses = training.learn()
        now = time.monotonic()
        if now - reported > REPORT_S:
            reported = now
            left = (training.steps - training.step) * (now - began) / (training.step - first)
            nats = " ".join(f"{loss:.3f}" for loss in losses)
            tell(f"step {training.step:,} of {training.steps:,}  nats by head {nats}  {left / 60:.1f} min left")
        if now - kept > SAVE_S:
            kept = now
            state.save(folder, training.step, {**training.state(), "recipe": repr(training.recipe)})
    state.save(folder, training.step, {**training.state(), "recipe": repr(training.recipe)})


def _fingerprints(config: ModelConfig) -> tuple[str, ...]:
    """Of the model in every dtype that it may be served in."""
    return tuple(models.fingerprint(config.model_copy(update={"dtype": dtype})) for dtype in ("float32", "bfloat16"))
