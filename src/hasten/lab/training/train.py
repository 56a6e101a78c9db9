"""The training loop.

A run lives in a folder: the checkpoint in Hugging Face's format, written every few minutes and usable at any moment;
`states/` to go on from after a kill; `training.json` with the recipe, what was done and the loss curve; `loss.png`.
Batches are functions of the step's number, so a resumed run trains on what it would have trained on.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer

from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.registry import find
from hasten.lab.training import state
from hasten.lab.training.ahead import ahead
from hasten.lab.training.batch import Ask, Windows
from hasten.lab.training.export import export, load
from hasten.lab.training.loss import training_loss
from hasten.lab.training.net import Llama
from hasten.lab.training.optimise import Optimisers
from hasten.lab.training.picture import picture
from hasten.lab.training.probe import LONG, SHORT, probe
from hasten.lab.training.recipe import MODELS, Recipe
from hasten.lab.training.start import wire

SAVE_S = 120.0
REPORT_S = 10.0
PROBE_S = 600.0
RECORD = "training.json"
PICTURE = "loss.png"


@dataclass
class Progress:
    """How far a run is. losses: (tokens so far, nats a learnt token) of every step; scores: probes by tokens so far."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    scores: list[tuple[int, dict[str, float]]] = field(default_factory=list)


class Run:
    """One training run in `folder`. `say` is told what happens, a line at a time."""

    def __init__(
        self, folder: Path, recipe: Recipe, tokenizer: Tokenizer, material: Material, *,
        init: Path | None = None, teacher: Path | None = None, device: str = "cpu", workers: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        """Goes on from the newest whole state in the folder; without one from the checkpoint `init`, with new optimisers;
        without that from random weights. teacher: a checkpoint that running text is learnt from. workers: processes
        that make the batches (0: a thread)."""
        self.folder, self.recipe, self.tokenizer, self.material, self.say = folder, recipe, tokenizer, material, say
        self.device, self.workers = torch.device(device), workers
        torch.manual_seed(recipe.seed)
        self.progress = Progress()
        saved, complaints = state.newest(folder / "states")
        for complaint in complaints:
            say(f"{complaint}; trying the one before it")
        if saved is not None and saved["model"] != recipe.model:
            raise ValueError(
                f"{folder} holds a run of the model {saved['model']!r}, not {recipe.model!r}: choose another folder"
            )
        if saved is None and init is not None:
            self.net, _ = load(init)
            self.progress = _recorded(init)
            say(f"from {init} after {self.progress.tokens:,} tokens, with new optimisers")
        else:
            self.net = Llama(MODELS[recipe.model])
            wire(self.net, tokenizer)
        self.net.to(self.device)
        self.teacher = None if teacher is None else load(teacher)[0].to(self.device, torch.bfloat16)
        self.optimisers = Optimisers(self.net, recipe)
        self.started_at = self.progress.tokens
        if saved is not None:
            self.net.load_state_dict(saved["net"])
            self.optimisers.load(saved["optimisers"])
            self.progress = Progress(**saved["progress"])
            self.started_at = saved["started_at"]
            say(f"resumed after {self.progress.tokens:,} tokens")
        self.windows = Windows(tokenizer, material, recipe.mixture(), recipe.seed)

    def train(self, stop_after_s: float = float("inf")) -> None:
        """Train until the recipe's tokens are used up, or for about so many seconds; saves and exports at the end."""
        began = saved = reported = probed = time.monotonic()
        first = self.progress.tokens
        with closing(ahead(self.windows, self._asks(), self.workers)) as batches:
            while self.progress.tokens < self.recipe.tokens and time.monotonic() - began < stop_after_s:
                at = time.monotonic()
                batch = next(batches)
                loss = training_loss(self.net, batch.to(self.device), self.teacher)
                loss.backward()
                rate = self.recipe.rate(self.progress.tokens, self.progress.tokens - self.started_at)
                norm = self.optimisers.step(rate)
                now = time.monotonic()
                self.progress.step += 1
                self.progress.tokens += batch.inputs.numel()
                self.progress.seconds += now - at
                self.progress.losses.append((self.progress.tokens, loss.item()))
                if now - reported > REPORT_S:
                    reported = now
                    rows, length = batch.inputs.shape
                    speed = (self.progress.tokens - first) / (now - began)
                    self._report(f"norm {norm:.2f}  rate {rate:.2f}  {rows} x {length}", speed)
                if now - saved > SAVE_S:
                    saved = now
                    self.save()
                if now - probed > PROBE_S:
                    probed = time.monotonic()
                    self.look()
        self.look(long=True)
        self.save()

    def look(self, long: bool = False) -> None:
        """Probe some held-out questions, and the long ones once long windows are trained."""
        long = long or self.recipe.stage(self.progress.tokens).length > 512
        scores = probe(self.net, self.tokenizer, self.material, [find(t) for t in (*SHORT, *(LONG if long else ()))])
        self.progress.scores.append((self.progress.tokens, scores))
        self.say("  ".join(f"{task} {100 * score:.0f} %" for task, score in scores.items()))

    def save(self) -> None:
        """Write the state, the checkpoint, the record and the picture."""
        content = {
            "model": self.recipe.model,
            "net": self.net.state_dict(),
            "optimisers": self.optimisers.state(),
            "progress": asdict(self.progress),
            "started_at": self.started_at,
        }
        state.save(self.folder / "states", self.progress.step, content)
        export(self.net, self.tokenizer, self.folder)
        record = {"recipe": asdict(self.recipe), "progress": asdict(self.progress)}
        unfinished = self.folder / f"{RECORD}.part"
        unfinished.write_text(json.dumps(record) + "\n", encoding="utf-8")
        unfinished.replace(self.folder / RECORD)
        title = f"{self.recipe.model}: {self.progress.tokens / 1e6:.1f} M tokens in {self.progress.seconds / 60:.0f} minutes"
        (self.folder / PICTURE).write_bytes(picture(self.progress.losses, self.progress.scores, title))

    def _report(self, details: str, tokens_per_s: float) -> None:
        done, total = self.progress.tokens, self.recipe.tokens
        recent = [loss for _, loss in self.progress.losses[-20:]]
        self.say(
            f"step {self.progress.step:5d}  {done / 1e6:6.2f} of {total / 1e6:.2f} M tokens  "
            f"loss {sum(recent) / len(recent):.3f}  {details}  {tokens_per_s:5.0f} tokens/s  "
            f"{(total - done) / tokens_per_s / 60:4.0f} min left"
        )

    def _asks(self) -> Iterator[Ask]:
        """The steps from here to the end."""
        tokens = self.progress.tokens
        longest = self.net.config.max_position_embeddings
        for step in itertools.count(self.progress.step):
            if tokens >= self.recipe.tokens:
                return
            stage = self.recipe.stage(tokens)
            rows = self.recipe.rows(stage)
            yield Ask(step, rows, stage.length, stage.echoes, stage.skips, longest)
            tokens += rows * stage.length


def _recorded(folder: Path) -> Progress:
    """How far the checkpoint in a folder was trained; nothing, where it does not say."""
    path = folder / RECORD
    if not path.is_file():
        return Progress()
    return Progress(**json.loads(path.read_text(encoding="utf-8"))["progress"])
