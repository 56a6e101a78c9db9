"""Train a testbed model: `python -m hasten.lab.testbed.train --out DIR --minutes 40`, from scratch or from a checkpoint.

Time is the budget, so the learning rate, the switch to long windows and the end are all functions of the share of the
time that has been spent. A checkpoint folder is written every few minutes and can be used at any moment. SIGTERM brings
the run to an orderly end within a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from hasten.lab.testbed import batches, corpus
from hasten.lab.testbed.document import Document
from hasten.lab.testbed.export import export, load
from hasten.lab.testbed.loss import training_loss
from hasten.lab.testbed.net import Llama, NetConfig
from hasten.lab.testbed.pace import Pace
from hasten.lab.testbed.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are those of the built-in model."""

    batch_tokens: int = 4096
    window: int = 256
    long_window: int = 2048
    long_share: float = 0.15
    matrix_rate: float = 0.02
    vector_rate: float = 3e-3
    warm_up_share: float = 0.02
    decay_share: float = 0.7
    weight_decay: float = 0.02
    report_s: float = 10.0
    export_s: float = 180.0
    seed: int = 0
    max_steps: int | None = None


def rate_factor(progress: float, recipe: Recipe) -> float:
    """The learning rate's factor at a share `progress` of the training: a linear rise, a plateau, linearly to zero."""
    rise = max(0.05, progress / recipe.warm_up_share)
    return max(0.0, min(1.0, rise, (1 - progress) / recipe.decay_share))


def optimizers(net: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, where it learns more per step than AdamW; AdamW for embedding and norms."""
    matrices = [p for n, p in net.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in net.named_parameters() if p.dim() != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


@torch.no_grad()
def bits_per_byte(net: Llama, tokenizer: Tokenizer, documents: list[Document]) -> dict[str, float]:
    """Held-out bits per byte of text for each kind of document, and for "all" together."""
    nats: dict[str, float] = defaultdict(float)
    text_bytes: dict[str, int] = defaultdict(int)
    for document, tokens in zip(documents, batches.encode(tokenizer, documents), strict=True):
        loss = 0.0
        for inputs, targets in batches.held_out_windows([tokens], net.config.max_position_embeddings):
            loss += F.cross_entropy(net(inputs)[0], targets[0], reduction="sum").item()
        for kind in (document.kind, "all"):
            nats[kind] += loss
            text_bytes[kind] += len(document.text.encode())
    return {kind: nats[kind] / math.log(2) / text_bytes[kind] for kind in nats}


def train(
    net: Llama, tokenizer: Tokenizer, documents: list[Document], recipe: Recipe, pace: Pace, out: Path | None
) -> list[float]:
    """Train `net` in place until the pace says so or max_steps is up; returns each step's loss in nats a token."""
    windows = batches.Windows(batches.encode(tokenizer, documents), documents, recipe.seed)
    steppers = optimizers(net, recipe)
    losses: list[float] = []
    reported = exported = time.monotonic()
    while True:
        started = time.monotonic()
        progress = pace.progress() if recipe.max_steps is None else len(losses) / recipe.max_steps
        if progress >= 1:
            return losses
        length = recipe.long_window if progress > 1 - recipe.long_share else recipe.window
        inputs, targets = windows.draw(max(1, recipe.batch_tokens // length), length)
        loss = training_loss(net, inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for stepper, rate in zip(steppers, (recipe.matrix_rate, recipe.vector_rate), strict=True):
            stepper.param_groups[0]["lr"] = rate * rate_factor(progress, recipe)
            stepper.step()
            stepper.zero_grad()
        losses.append(loss.item())
        now = time.monotonic()
        pace.count(now - started)
        if now - reported > recipe.report_s:
            reported = now
            tokens_per_s = len(losses) * recipe.batch_tokens / pace.spent_s
            print(
                f"step {len(losses):5d}  loss {np.mean(losses[-20:]):.3f}  {tokens_per_s:6.0f} tokens/s  "
                f"window {length}  {progress:4.0%}  eta {pace.left_s():5.0f} s",
                flush=True,
            )
        if out is not None and now - exported > recipe.export_s:
            exported = now
            export(net, tokenizer, out)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--init", type=Path, help="checkpoint folder to go on from, with its tokenizer")
    parser.add_argument("--data", type=Path, help="folder with the public texts (default: HASTEN_DATA)")
    parser.add_argument("--minutes", type=float, default=40.0, help="training time; pauses of the process do not count")
    parser.add_argument("--deadline-minutes", type=float, help="end by then, pauses or not")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    return parser.parse_args()


def main() -> None:
    """Read the command line, train, export, and print the held-out bits per byte."""
    arguments = parse_arguments()
    recipe = Recipe()
    deadline = time.time() + 60 * arguments.deadline_minutes if arguments.deadline_minutes else None
    pace = Pace(arguments.minutes, deadline)
    signal.signal(signal.SIGTERM, pace.land)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(recipe.seed)

    training, held_out = corpus.split(corpus.data_folder(arguments.data))
    megabytes = sum(len(d.text) for d in training) / 1e6
    print(f"{len(training)} documents, {megabytes:.1f} MB; {len(held_out)} held out", flush=True)
    if arguments.init:
        net, tokenizer = load(arguments.init)
    else:
        tokenizer = train_tokenizer(d.text for d in training)
        net = Llama(NetConfig(vocab_size=tokenizer.get_vocab_size()))
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters", flush=True)
    losses = train(net, tokenizer, training, recipe, pace, arguments.out)
    export(net, tokenizer, arguments.out)
    print(f"scoring {len(held_out)} held-out documents", flush=True)
    report = {
        "steps": len(losses),
        "tokens": len(losses) * recipe.batch_tokens,
        "minutes": pace.spent_s / 60,
        "final_loss": float(np.mean(losses[-50:])),
        "bits_per_byte": bits_per_byte(net, tokenizer, held_out),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
