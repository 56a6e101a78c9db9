"""The training room: network, loss, packing, schedule, states, and runs that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from hasten.lab.testbed import small_talk
from hasten.lab.testbed.document import Document, turn
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.registry import find
from hasten.lab.testbed.tokenizer import train_tokenizer
from hasten.lab.training import recipe as recipes
from hasten.lab.training import state
from hasten.lab.training.ahead import ahead
from hasten.lab.training.batch import Ask, Batch, Mixture, Windows
from hasten.lab.training.export import export, load, rounded
from hasten.lab.training.loss import CHUNK_ROWS, training_loss
from hasten.lab.training.net import Attention, Llama, NetConfig
from hasten.lab.training.optimise import Optimisers
from hasten.lab.training.picture import picture
from hasten.lab.training.recipe import SHORT_BUDGET, Recipe, Stage, recipe_for
from hasten.lab.training.start import wire
from hasten.lab.training.train import Run

SMALL_TALK = list(small_talk.documents())
TASKS = {"recall:pairs=4": 1.0, "copying": 1.0}


@pytest.fixture(scope="module")
def material() -> Material:
    return Material(len, SMALL_TALK, SMALL_TALK[:2])


@pytest.fixture(scope="module")
def tokenizer(material: Material) -> Tokenizer:
    rng = random.Random(0)
    lessons = ("".join(p.text for p in find(t).lesson(rng, material)) for t in TASKS for _ in range(50))
    return train_tokenizer([*(d.text for d in SMALL_TALK), *lessons], vocab_size=512)


@pytest.fixture(scope="module")
def tiny() -> NetConfig:
    return NetConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
    )  # fmt: skip


@pytest.fixture
def tiny_recipe(tiny: NetConfig, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setitem(recipes.MODELS, "tiny", tiny)
    stages = (Stage(0.75, 128), Stage(1.0, 256))
    return Recipe("tiny", 40 * 512, 512, stages, warm_up_steps=4, tasks=TASKS, texts={"small talk": 1.0})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread: these networks are too small for more. And no probing of tasks that 512 words cannot say."""
    monkeypatch.setattr("hasten.lab.training.train.SHORT", ("recall:pairs=2",))
    monkeypatch.setattr("hasten.lab.training.train.LONG", ())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The network


def test_network_gives_logits_and_is_causal(tiny: NetConfig) -> None:
    torch.manual_seed(0)
    net = stirred(Llama(tiny))
    tokens = torch.randint(0, tiny.vocab_size, (2, 16))
    changed = tokens.clone()
    changed[:, 10] = (changed[:, 10] + 1) % tiny.vocab_size
    logits, after = net(tokens), net(changed)
    assert logits.shape == (2, 16, tiny.vocab_size)
    torch.testing.assert_close(logits[:, :10], after[:, :10])
    assert (logits[:, 10:] - after[:, 10:]).abs().amax(-1).min() > 1e-4
    torch.testing.assert_close(net(tokens, last=3), logits[:, -3:])


def test_only_differences_of_positions_matter(tiny: NetConfig) -> None:
    torch.manual_seed(0)
    net = stirred(Llama(tiny))
    tokens = torch.randint(0, tiny.vocab_size, (2, 16))
    usual = torch.arange(16).repeat(2, 1)
    torch.testing.assert_close(net(tokens, usual + 100), net(tokens), rtol=1e-3, atol=1e-4)
    skipping = usual + 40 * (usual > 7)
    apart = (net(tokens, skipping) - net(tokens)).abs().amax((0, 2))
    assert apart[:8].max() < 1e-5 and apart[8:].min() > 1e-4


def test_attention_by_blocks_is_attention(monkeypatch: pytest.MonkeyPatch, tiny: NetConfig) -> None:
    torch.manual_seed(0)
    attention = Llama(tiny).model.layers[0].self_attn
    q, k, v = (torch.randn(2, heads, 37, 8) for heads in (4, 2, 2))
    monkeypatch.setattr("hasten.lab.training.net.QUERY_BLOCK", 16)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
    torch.testing.assert_close(attention._mix(q, k, v), expected)


def test_training_loss_and_its_gradients_are_those_of_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, tiny: NetConfig, device: str
) -> None:
    torch.manual_seed(0)
    net = stirred(Llama(tiny))
    monkeypatch.setitem(CHUNK_ROWS, device, 24)  # does not divide the rows that are learnt
    inputs, targets = torch.randint(0, tiny.vocab_size, (2, 2, 32))
    counts = torch.rand(2, 32) * (torch.rand(2, 32) < 0.7)
    losses = F.cross_entropy(net(inputs).flatten(0, 1), targets.flatten(), reduction="none")
    plain = (losses * counts.flatten()).sum() / counts.sum()
    expected = torch.autograd.grad(plain, list(net.parameters()))
    net.to(device)
    loss = training_loss(net, Batch(inputs, targets, counts, torch.arange(32).repeat(2, 1)).to(torch.device(device)))
    assert loss.item() == pytest.approx(plain.item(), rel=0.01)
    for gradient, wanted in zip(torch.autograd.grad(loss, list(net.parameters())), expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient.cpu() - wanted).norm() < 0.05 * wanted.norm()  # bf16


def test_running_text_is_learnt_from_a_teacher(monkeypatch: pytest.MonkeyPatch, tiny: NetConfig, device: str) -> None:
    torch.manual_seed(0)
    net, teacher = stirred(Llama(tiny)), stirred(Llama(replace(tiny, hidden_size=48)))
    teacher.bfloat16().float()  # as it is used, so that only the arithmetic differs
    with torch.no_grad():
        teacher.model.embed_tokens.weight *= 8  # one that knows what it wants: any two flat distributions are alike
    monkeypatch.setitem(CHUNK_ROWS, device, 24)
    inputs, targets = torch.randint(0, tiny.vocab_size, (2, 2, 32))
    counts = torch.tensor([0.0, 0.4, 3.0])[torch.randint(0, 3, (2, 32))]
    logits = net(inputs)
    hard = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    meant = teacher(inputs).detach().softmax(-1).flatten(0, 1)
    assert meant.amax(-1).median() > 0.1
    soft = F.cross_entropy(logits.flatten(0, 1), meant, reduction="none")
    plain = (torch.where(counts.flatten() < 1, soft, hard) * counts.flatten()).sum() / counts.sum()
    expected = torch.autograd.grad(plain, list(net.parameters()))
    batch = Batch(inputs, targets, counts, torch.arange(32).repeat(2, 1)).to(torch.device(device))
    loss = training_loss(net.to(device), batch, teacher.to(device, torch.bfloat16))
    assert loss.item() == pytest.approx(plain.item(), rel=0.01)
    for gradient, wanted in zip(torch.autograd.grad(loss, list(net.parameters())), expected, strict=True):
        assert (gradient.cpu() - wanted).norm() < 0.05 * wanted.norm()  # bf16


def test_wired_heads_look_at_the_token_before_and_for_the_same_token(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = NetConfig(vocab_size=512, intermediate_size=64, num_hidden_layers=2, max_position_embeddings=128)
    net = Llama(config)
    wire(net, tokenizer)
    seen: list[torch.Tensor] = []
    mix = Attention._mix

    def watch(self: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = q @ k.repeat_interleave(self.group_size, 1).transpose(2, 3)
        later = torch.full(scores.shape[-2:], -torch.inf).triu(1)
        seen.append((scores + later).softmax(-1)[:, [0, 4]])  # the first head of each group
        return mix(self, q, k, v)

    monkeypatch.setattr(Attention, "_mix", watch)
    tokens = torch.randint(0, 512, (4, 32)).repeat(1, 2)
    net(tokens)
    before = seen[0].diagonal(-1, 2, 3)
    assert before.mean() > 0.7
    followed = seen[1].diagonal(-31, 2, 3)  # of a token's second time: what followed the first
    assert followed.mean() > 1.3 * seen[1][:, :, 32:].mean()  # a hint; training makes it sharp


def test_tokens_that_are_spelt_alike_start_alike(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    net = Llama(NetConfig(vocab_size=512, num_hidden_layers=2))
    wire(net, tokenizer)
    rows = F.normalize(net.model.embed_tokens.weight - net.model.embed_tokens.weight.mean(0), dim=1)
    alike = rows @ rows.T
    ids = tokenizer.get_vocab()
    pairs = [(ids[word], ids[f"\u0120{word}"]) for word in ids if word.isalpha() and word.islower() and f"\u0120{word}" in ids]
    assert len(pairs) > 10
    assert min(alike[a, b] for a, b in pairs) > 0.2 and max(alike[a, b] for a, b in pairs) < 0.9
    assert alike.fill_diagonal_(0).mean().abs() < 0.05


def test_the_mean_of_the_embedding_stays(tiny: NetConfig, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    net = Llama(tiny)
    wire(net, tokenizer)
    mean = net.model.embed_tokens.weight.detach().mean(0)
    assert mean.norm() > 0.1
    optimisers = Optimisers(net, recipe_for("base", "cpu"))
    for _ in range(3):
        net(torch.randint(0, 512, (2, 16))).square().mean().backward()
        optimisers.step(1.0)
    torch.testing.assert_close(net.model.embed_tokens.weight.mean(0), mean, rtol=0, atol=1e-6)


# Batches


def test_windows_hold_whole_lessons_and_depend_on_the_step_alone(tokenizer: Tokenizer, material: Material) -> None:
    windows = Windows(tokenizer, material, Mixture([(find("recall:pairs=4"), 1.0)], [("small talk", 1.0)], 0.1), seed=3)
    batch, again = (windows.batch(Ask(7, 3, 256, 0, 0.5, 1024)) for _ in range(2))
    for one, other in zip(vars(batch).values(), vars(again).values(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(batch.inputs, windows.batch(Ask(8, 3, 256, 0, 0.5, 1024)).inputs)
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert batch.inputs.shape == batch.counts.shape == batch.positions.shape == (3, 256)
    steps = batch.positions.diff(dim=1)
    assert steps.min() >= 1 and batch.positions.max() < 1024 and batch.positions[:, 0].eq(0).all()
    assert any(
        (row > 1).any() for row in torch.cat([windows.batch(Ask(s, 3, 256, 0, 0.5, 1024)).positions.diff() for s in range(4)])
    )
    # Of a conversation about keys only the answers are learnt, and each is.
    for row in range(3):
        text = tokenizer.decode(batch.inputs[row].tolist(), skip_special_tokens=False)
        learnt = tokenizer.decode(batch.targets[row][batch.counts[row] > 1].tolist(), skip_special_tokens=False)
        for answer in filter(None, learnt.split("<|im_end|>")):
            assert f"assistant\n{answer}<|im_end|>" in text


def test_echoes_say_the_same_again(tokenizer: Tokenizer, material: Material) -> None:
    windows = Windows(tokenizer, material, Mixture([(find("copying"), 1.0)], [("small talk", 1.0)], 0.1), seed=0)
    batch = windows.batch(Ask(0, 6, 100, 1, 0, 100))
    for row in range(6):
        period = int((batch.counts[row] == 0).sum()) + 1
        whole = torch.cat([batch.inputs[row, :1], batch.targets[row]])
        assert torch.equal(whole[period:], whole[:-period]) and batch.counts[row, period - 1 :].eq(1).all()


def test_running_text_counts_less_than_a_lesson_and_small_talk_like_one(tokenizer: Tokenizer) -> None:
    texts = [Document("essay", "an essay", "They came to the old town and looked around. " * 40)]
    for kind, least in (("essay", 0.4), ("small talk", 1.0)):
        mixture = Mixture([(find("recall:pairs=4"), 1.0)], [(kind, 1.0)], 1.0)
        counts = Windows(tokenizer, Material(len, [*texts, *SMALL_TALK]), mixture, 0).batch(Ask(0, 8, 256, 0, 0, 256)).counts
        assert counts[counts > 0].min() == torch.tensor(least) and counts.max() > 1


def test_little_to_learn_in_a_long_lesson_counts_for_more(tokenizer: Tokenizer, material: Material) -> None:
    for text_share, most in ((0.0, 8.0), (1.0, 1.0)):
        mixture = Mixture([(find("recall:pairs=4"), 1.0)], [("small talk", 1.0)], text_share)
        counts = torch.cat([Windows(tokenizer, material, mixture, 0).batch(Ask(s, 4, 128, 0, 0, 256)).counts for s in range(8)])
        assert 0 < counts.max() <= 8.0
        assert (counts[counts > 0] <= most).float().mean() > 0.5


def test_processes_make_the_batches_that_a_thread_makes(tokenizer: Tokenizer, material: Material) -> None:
    windows = Windows(tokenizer, material, Mixture([(find("recall:pairs=4"), 1.0)], [("small talk", 1.0)], 0.1), seed=3)
    asks = [Ask(step, 2, 64 + 8 * step, 0.2, 0.5, 1024) for step in range(7)]
    for workers in (0, 2):
        batches = list(ahead(windows, asks, workers))
        assert len(batches) == 7
        for ask, batch in zip(asks, batches, strict=True):
            for one, other in zip(vars(batch).values(), vars(windows.batch(ask)).values(), strict=True):
                assert torch.equal(one, other)


ORPHANS = """
import sys
sys.path.insert(0, sys.argv[1])
import multiprocessing, time
from functools import partial
import test_training as t
from hasten.lab.testbed.tokenizer import tokens_of, train_tokenizer

def main():
    tokenizer = train_tokenizer([d.text for d in t.SMALL_TALK], vocab_size=512)
    material = t.Material(partial(tokens_of, tokenizer), t.SMALL_TALK, t.SMALL_TALK[:2])
    windows = t.Windows(tokenizer, material, t.Mixture([(t.find("recall:pairs=4"), 1.0)], [("small talk", 1.0)], 0.1), 0)
    for batch in t.ahead(windows, (t.Ask(s, 1, 64, 0, 0, 64) for s in range(10**9)), 2):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)

if __name__ == "__main__":
    main()
"""


def test_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    with subprocess.Popen([sys.executable, script, Path(__file__).parent], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        children = [int(pid) for pid in run.stdout.readline().split()]
        assert len(children) == 2
        run.kill()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a worker outlives its run"
        time.sleep(0.05)


def test_missing_texts_are_named(tokenizer: Tokenizer, material: Material) -> None:
    with pytest.raises(ValueError, match=r"essay.*HASTEN_DATA"):
        Windows(tokenizer, material, Mixture([(find("copying"), 1.0)], [("essay", 1.0), ("small talk", 1.0)], 0.1), 0)


def test_learning_rate_warms_up_and_follows_a_cosine() -> None:
    recipe = Recipe("base", 1_000_000, 10_000, SHORT_BUDGET, warm_up_steps=10, last_rate=0.1)
    assert [recipe.rate(t, t) for t in (0, 50_000)] == pytest.approx([1e-5, 0.5], rel=0.02)
    assert recipe.rate(500_000, 500_000) == pytest.approx(0.55)
    assert recipe.rate(1_000_000, 1_000_000) == recipe.rate(1_200_000, 1_200_000) == pytest.approx(0.1)
    assert recipe.rate(500_000, 50_000) == pytest.approx(0.275, rel=0.01)  # new optimisers warm up anew


def test_stages_follow_each_other() -> None:
    recipe = Recipe("base", 1000, 1024, (Stage(0.5, 512), Stage(1.0, 2048)))
    assert [recipe.stage(t).length for t in (0, 499, 500, 1000)] == [512, 512, 2048, 2048]
    assert [recipe.rows(stage) for stage in recipe.stages] == [2, 1]


def test_a_gpu_gets_the_longer_recipe() -> None:
    on_cpu, on_gpu = (recipe_for("base", device) for device in ("cpu", "cuda"))
    assert on_gpu.tokens > 5 * on_cpu.tokens and on_gpu.step_tokens > on_cpu.step_tokens
    assert [r.stages[-1].length for r in (on_cpu, on_gpu)] == [8192, 8192]
    with pytest.raises(ValueError, match="'bse'; there are base, draft, moe, large"):
        recipe_for("bse", "cpu")


# States


def test_a_state_comes_back(tmp_path: Path) -> None:
    content = {"net": {"w": torch.randn(3, 4)}, "progress": {"step": 3, "losses": [(1, 2.5)]}}
    path = state.save(tmp_path, 3, content)
    back = state.read(path)
    assert torch.equal(back["net"]["w"], content["net"]["w"]) and back["progress"] == content["progress"]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "other"])
def test_a_damaged_state_is_refused_and_the_one_before_it_used(tmp_path: Path, harm: str) -> None:
    for step in range(4):
        state.save(tmp_path, step, {"step": step})
    assert len(state.states(tmp_path)) == 2
    path = state.states(tmp_path)[0]
    data = path.read_bytes()
    flipped = data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]
    path.write_bytes({"flip": flipped, "cut": data[: len(data) // 2], "empty": b"", "other": b"PK" + data}[harm])
    with pytest.raises(state.StateError, match=path.name):
        state.read(path)
    content, complaints = state.newest(tmp_path)
    assert content == {"step": 2}
    assert len(complaints) == 1 and path.name in complaints[0]


# Runs


def test_a_run_learns_and_leaves_a_checkpoint(
    tmp_path: Path, tokenizer: Tokenizer, material: Material, tiny_recipe: Recipe
) -> None:
    said: list[str] = []
    run = Run(tmp_path, replace(tiny_recipe, tokens=80 * 512), tokenizer, material, say=said.append)
    run.train()
    losses = [loss for _, loss in run.progress.losses]
    assert run.progress.step == len(losses) == 80
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    net, _ = load(tmp_path)
    for ours, exported in zip(run.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(exported, ours, rtol=2**-6, atol=0)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["progress"]["tokens"] == 80 * 512 and record["recipe"]["model"] == "tiny"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="another folder"):
        Run(tmp_path, replace(tiny_recipe, model="base"), tokenizer, material)


def test_a_run_goes_on_from_weights_alone(
    tmp_path: Path, tokenizer: Tokenizer, material: Material, tiny_recipe: Recipe
) -> None:
    """New optimisers and bf16 weights: the loss goes on from where it was, not from the beginning."""
    first = Run(tmp_path / "a", tiny_recipe, tokenizer, material, say=print)
    first.train()
    committed = tmp_path / "committed"
    committed.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "training.json"):
        (committed / name).write_bytes((tmp_path / "a" / name).read_bytes())
    longer = replace(tiny_recipe, tokens=2 * tiny_recipe.tokens)
    second = Run(tmp_path / "b", longer, tokenizer, material, init=committed, say=print)
    assert (second.progress.step, second.progress.tokens) == (first.progress.step, first.progress.tokens)
    second.train()
    losses = [loss for _, loss in second.progress.losses]
    before, after = losses[30:40], losses[40:50]
    assert len(losses) == 80 and losses[:40] == [loss for _, loss in first.progress.losses]
    assert sum(after) / 10 < sum(before) / 10 + 0.3 < sum(losses[:3]) / 3


STEPS = 20

DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
import pytest, torch
torch.set_num_threads(1)
from pathlib import Path
from dataclasses import replace
import test_training as t
from hasten.lab.training import recipe as recipes, train
from hasten.lab.testbed.material import Material
train.SAVE_S, train.picture = 0.05, lambda *shown: b""  # a picture takes longer than some steps
train.SHORT, train.LONG = ("recall:pairs=2",), ()
folder = Path(sys.argv[2])
config = recipes.NetConfig(**eval(sys.argv[3]))
recipes.MODELS["tiny"] = config
stages = (recipes.Stage(1.0, 128),)
recipe = recipes.Recipe("tiny", t.STEPS * 512, 512, stages, warm_up_steps=4, tasks=t.TASKS, texts={"small talk": 1.0})
material = Material(len, t.SMALL_TALK, t.SMALL_TALK[:2])
tokenizer = t.Tokenizer.from_file(sys.argv[4])
print("started", flush=True)
train.Run(folder, recipe, tokenizer, material, say=lambda line: print(line, flush=True)).train()
"""


def test_a_run_killed_twice_has_the_loss_curve_of_one_that_was_not(
    tmp_path: Path,
    tokenizer: Tokenizer,
    material: Material,
    tiny: NetConfig,
    tiny_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rng = random.Random(time.time_ns())  # any moment must do
    resumed, folder = 0, tmp_path / "killed"
    for _ in range(2):
        arguments = [str(Path(__file__).parent), str(folder), repr(vars(tiny)), str(tmp_path / "tokenizer.json")]
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.stdout is not None
        line = next(line for line in process.stdout if "started" in line or "Error" in line)
        assert "started" in line, process.communicate()[0]
        known = state.states(folder / "states")
        while state.states(folder / "states")[:1] == known[:1] and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        resumed += "resumed after" in process.communicate()[0]
    monkeypatch.setattr("hasten.lab.training.train.picture", lambda *shown: b"")
    recipe = replace(tiny_recipe, tokens=STEPS * 512, stages=(Stage(1.0, 128),))
    said: list[str] = []
    last, whole = (Run(tmp_path / name, recipe, tokenizer, material, say=said.append) for name in ("killed", "whole"))
    last.train()
    assert resumed + ("resumed after" in "\n".join(said)) == 2, said
    whole.train()
    assert len(whole.progress.losses) == STEPS
    assert last.progress.losses == whole.progress.losses  # to the last bit: one thread, same batches, weights and optimisers


def test_loss_picture() -> None:
    losses = [(i * 512, 5 / (1 + i)) for i in range(100)]
    drawn = picture(losses, [(100, {"recall": 0.1}), (20_000, {"recall": 0.9, "needle": 0.5})], "tiny")
    assert drawn.startswith(b"\x89PNG")


def test_an_exported_network_can_be_loaded_again(tmp_path: Path, tokenizer: Tokenizer, tiny: NetConfig) -> None:
    net = stirred(Llama(tiny))
    for dtype, error in ((torch.bfloat16, 2**-6), (torch.float32, 0)):
        export(net, tokenizer, tmp_path, dtype)
        again, their_tokenizer = load(tmp_path)
        assert again.config == tiny
        assert their_tokenizer.get_vocab() == tokenizer.get_vocab()
        for parameter, other in zip(net.parameters(), again.parameters(), strict=True):
            assert other.dtype == torch.float32
            torch.testing.assert_close(other, parameter, rtol=error, atol=0)


@pytest.mark.parametrize("bits", range(8))
def test_rounding_keeps_so_many_bits_of_a_mantissa(bits: int) -> None:
    x = torch.cat([torch.randn(1000), torch.randn(1000) * 1e-30, torch.tensor([0.0, 1.0, -2.0, 1.9999])])
    kept = rounded(x, bits)
    assert torch.equal(rounded(kept, bits), kept)
    torch.testing.assert_close(kept, x, rtol=2.0 ** -(bits + 1), atol=0)
    assert torch.equal(kept.bfloat16().float(), kept)
    assert not (kept.bfloat16().view(torch.int16) & ((1 << (7 - bits)) - 1)).any()
    if bits == 7:
        assert torch.equal(kept, x.bfloat16().float())


def test_damaged_weights_are_refused(tmp_path: Path, tokenizer: Tokenizer, tiny: NetConfig) -> None:
    export(Llama(tiny), tokenizer, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"safetensors is damaged"):
        load(tmp_path)


def test_transformers_computes_the_same_logits(tmp_path: Path, tokenizer: Tokenizer, tiny: NetConfig) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    net = stirred(Llama(tiny))
    export(net, tokenizer, tmp_path, dtype=torch.float32)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(0, tiny.vocab_size, (2, 100))
    with torch.no_grad():
        torch.testing.assert_close(net(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    conversation = [{"role": "user", "content": "Hi"}]
    assert their_tokenizer.apply_chat_template(conversation, tokenize=False) == turn("user", "Hi")
    text = SMALL_TALK[0].text
    assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text).ids
    assert theirs.generation_config.eos_token_id == [0, 2]
    assert not list(tmp_path.glob("*.part"))


def stirred(net: Llama) -> Llama:
    """The network with every parameter away from its initial zeros and ones."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net
