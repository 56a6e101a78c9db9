"""Training heads: they learn what follows, a run that was cut off goes on, what is counted is what is served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from hasten.cli.main import app
from hasten.engine.decoding.drafts import heads as stored
from hasten.engine.decoding.drafts.heads import RANKS
from hasten.lab.training import medusa
from hasten.lab.training.medusa import Recipe, Training, calibrate, frequent
from hasten.lab.training.said import Said, following

WIDTH, VOCABULARY = 24, 60


def said(seed: int, count: int = 1500) -> tuple[Said, torch.Tensor]:
    """States that say, to whoever reads them turned, what follows; and the model's head."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(0)
    output = torch.randn(VOCABULARY, WIDTH, generator=fixed)
    turns = torch.randn(3, WIDTH, WIDTH, generator=fixed) / WIDTH**0.5
    hidden = torch.randn(count, WIDTH, generator=generator)
    targets = torch.stack([F.linear(F.silu(F.linear(hidden, turn)) + hidden, output).argmax(-1) for turn in turns], 1)
    targets[::7, 2] = -1
    return Said(hidden.bfloat16(), targets.int()), output


def test_what_follows() -> None:
    assert following(torch.tensor([7, 8, 9], dtype=torch.int32), 2).tolist() == [[8, 9], [9, -1], [-1, -1]]


@pytest.mark.parametrize("own", [False, True])
def test_heads_learn_what_follows(own: bool) -> None:
    learnt, output = said(1)
    held_out, _ = said(2)
    tokens = torch.arange(VOCABULARY)
    training = Training(learnt, output, tokens, VOCABULARY, Recipe(heads=3, passes=30, own=own))
    before = calibrate(training.w1.detach(), output, tokens, held_out)
    while training.step < training.steps:
        training.learn()
    weights = output if training.w2 is None else training.w2.detach()
    after = calibrate(training.w1.detach(), weights, tokens, held_out)
    for k in range(3):
        assert after[k][0] > before[k][0] + 0.05 and after[k][0] > max(after[k][1:])
        assert len(after[k]) == RANKS and sum(after[k]) <= 1.001


def test_calibration_counts_each_guess() -> None:
    held_out, output = said(3, 50)
    tokens = torch.arange(0, VOCABULARY, 2)
    w1 = torch.randn(3, WIDTH, WIDTH, generator=torch.Generator().manual_seed(4))
    found = calibrate(w1, output[tokens], tokens, held_out)
    for k in range(3):
        counts, total = [0] * RANKS, 0
        for h, target in zip(held_out.hidden.float(), held_out.targets[:, k].tolist(), strict=True):
            if target >= 0:
                logits = (F.silu(w1[k] @ h) + h) @ output[tokens].T
                best = tokens[logits.topk(RANKS).indices].tolist()
                total += 1
                if target in best:
                    counts[best.index(target)] += 1
        assert found[k] == pytest.approx([count / total for count in counts])


def test_frequent_tokens() -> None:
    targets = torch.tensor([[5], [5], [3], [9], [9], [9], [-1]], dtype=torch.int32)
    assert frequent(Said(torch.zeros(7, 1), targets), 12, 2).tolist() == [5, 9]
    assert frequent(Said(torch.zeros(7, 1), targets), 12, 4).tolist() == [0, 3, 5, 9]


def test_a_run_that_was_cut_off_goes_on_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medusa, "SAVE_S", 0.0)
    learnt, output = said(1, 600)
    tokens = torch.arange(VOCABULARY)

    def fresh() -> Training:
        return Training(learnt, output, tokens, VOCABULARY, Recipe(heads=3, passes=20))

    whole = fresh()
    medusa._train(whole, tmp_path / "whole", print)
    cut = fresh()
    learn, lines = cut.learn, list[str]()

    def dies() -> list[float]:
        if cut.step == 5:
            raise KeyboardInterrupt
        return learn()

    cut.learn = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        medusa._train(cut, tmp_path / "cut", print)
    again = fresh()
    medusa._train(again, tmp_path / "cut", lines.append)
    assert lines[0] == "resumed after 5 steps" and again.step == whole.step
    assert torch.equal(again.w1, whole.w1)


def test_the_command_writes_heads_that_are_served(tmp_path: Path) -> None:
    from hasten import LLM, SamplingParams

    arguments = ["train", "medusa", "--out", str(tmp_path), "--answers", "8", "--passes", "2", "--heads", "2", "--threads", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = stored.load(tmp_path)
    assert found.count == 2 and found.tokens is not None and len(found.tokens) == 2048
    llm = LLM(speculate=f"medusa:{tmp_path}")
    (answer,) = llm.generate("import os\nimport sys\n", SamplingParams(max_tokens=40, temperature=0, ignore_eos=True))
    assert answer.drafted > 0
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and "questions answered" not in again.output, "what was said is kept"
