"""Train a testbed model from scratch: `python -m hasten.lab.testbed.train --out DIR --minutes 40`.

Wall-clock time is the budget, so the learning rate, the switch to long windows and the end are all functions of the
share of the time that has passed. A checkpoint folder is written every few minutes and can be used at any moment.
"""

from __future__ import annotations

import argparse
import json
import math
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
from hasten.lab.testbed.export import export
from hasten.lab.testbed.net import Llama, NetConfig
from hasten.lab.testbed.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are those of the built-in model."""

    minutes: float = 40.0
    batch_tokens: int = 2048
    window: int = 512
    long_window: int = 2048
    long_share: float = 0.12
    matrix_rate: float = 0.02
    vector_rate: float = 3e-3
    warm_up_share: float = 0.01
    weight_decay: float = 0.02
    report_s: float = 10.0
    export_s: float = 180.0
    seed: int = 0
    max_steps: int | None = None


def rate_factor(progress: float, warm_up: float) -> float:
    """The learning rate's factor at a share `progress` of the training: a short linear rise, then a cosine to zero."""
    if progress < warm_up:
        return max(0.05, progress / warm_up)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))


def optimizers(net: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, where it learns more per step than AdamW; AdamW for embedding and norms."""
    matrices = [p for n, p in net.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in net.named_parameters() if p.dim() != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def loss_sum(net: Llama, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy in nats of targets [rows, length] given inputs [rows, length]."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(inputs)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")


@torch.no_grad()
def bits_per_byte(net: Llama, tokenizer: Tokenizer, documents: list[Document]) -> dict[str, float]:
    """Held-out bits per byte of text for each kind of document, and for "all" together."""
    nats: dict[str, float] = defaultdict(float)
    text_bytes: dict[str, int] = defaultdict(int)
    for document, tokens in zip(documents, batches.encode(tokenizer, documents), strict=True):
        windows = batches.held_out_windows([tokens], net.config.max_position_embeddings)
        loss = sum(loss_sum(net, *window).item() for window in windows)
        for kind in (document.kind, "all"):
            nats[kind] += loss
            text_bytes[kind] += len(document.text.encode())
    return {kind: nats[kind] / math.log(2) / text_bytes[kind] for kind in nats}


def train(net: Llama, tokenizer: Tokenizer, documents: list[Document], recipe: Recipe, out: Path | None) -> list[float]:
    """Train `net` in place until the time or max_steps is up; returns each step's loss in nats a token."""
    windows = batches.Windows(batches.encode(tokenizer, documents), documents, recipe.seed)
    steppers = optimizers(net, recipe)
    losses: list[float] = []
    started = reported = exported = time.monotonic()
    while True:
        now = time.monotonic()
        progress = (now - started) / (60 * recipe.minutes)
        if recipe.max_steps is not None:
            progress = len(losses) / recipe.max_steps
        if progress >= 1:
            return losses
        length = recipe.long_window if progress > 1 - recipe.long_share else recipe.window
        inputs, targets = windows.draw(max(1, recipe.batch_tokens // length), length)
        loss = loss_sum(net, inputs, targets) / targets.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for stepper, rate in zip(steppers, (recipe.matrix_rate, recipe.vector_rate), strict=True):
            stepper.param_groups[0]["lr"] = rate * rate_factor(progress, recipe.warm_up_share)
            stepper.step()
            stepper.zero_grad()
        losses.append(loss.item())
        if now - reported > recipe.report_s:
            reported = now
            tokens_per_s = len(losses) * recipe.batch_tokens / (time.monotonic() - started)
            left_s = (now - started) * (1 / progress - 1)
            print(
                f"step {len(losses):5d}  loss {np.mean(losses[-20:]):.3f}  {tokens_per_s:6.0f} tokens/s  "
                f"window {length}  {progress:4.0%}  eta {left_s:5.0f} s",
                flush=True,
            )
        if out is not None and now - exported > recipe.export_s:
            exported = now
            export(net, tokenizer, out)


def main() -> None:
    """Read the command line, train, export, and print the held-out bits per byte."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--data", type=Path, help="folder with the public texts (default: HASTEN_DATA)")
    parser.add_argument("--minutes", type=float, default=Recipe.minutes, help="training time")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    arguments = parser.parse_args()
    recipe = Recipe(minutes=arguments.minutes)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(recipe.seed)

    training, held_out = corpus.split(corpus.data_folder(arguments.data))
    megabytes = sum(len(d.text) for d in training) / 1e6
    print(f"{len(training)} documents, {megabytes:.1f} MB; {len(held_out)} held out", flush=True)
    tokenizer = train_tokenizer(d.text for d in training)
    net = Llama(NetConfig(vocab_size=tokenizer.get_vocab_size()))
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters", flush=True)
    losses = train(net, tokenizer, training, recipe, arguments.out)
    export(net, tokenizer, arguments.out)
    print(f"scoring {len(held_out)} held-out documents", flush=True)
    report = {
        "steps": len(losses),
        "tokens": len(losses) * recipe.batch_tokens,
        "minutes": recipe.minutes,
        "final_loss": float(np.mean(losses[-50:])),
        "bits_per_byte": bits_per_byte(net, tokenizer, held_out),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
