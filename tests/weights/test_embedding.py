"""What tokens are looked up in: levels where the weights are rounded, of a tied model the head's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.engine import tiny
from torch import Tensor

from hasten import kernels
from hasten.engine import build
from hasten.engine.config import EngineConfig
from hasten.engine.executors.step import Model
from hasten.engine.models import Checkpoint
from hasten.engine.request import Request, SamplingParams
from hasten.engine.weights import kept
from hasten.engine.weights.dense import DenseEmbedding, DenseWeights
from hasten.engine.weights.kept import KeptWeights
from hasten.engine.weights.quantized import QuantizedWeights
from hasten.kernels.quantized import round_to_nearest

VOCABULARY, WIDTH = 200, 96
"""Neither fills its last panel or group."""
ROWS = torch.tensor([199, 0, 64, 199])
MATRICES = {"q_proj": (96, 96), "k_proj": (48, 96), "v_proj": (48, 96), "o_proj": (96, 96)}


def checkpoint(where: Path, *, tied: bool = False, **changed: Tensor) -> str:
    """A model of random weights, the same every time but for those that are given by the first word of their names."""
    path = tiny.folder(where, hidden_size=WIDTH, vocab_size=VOCABULARY, num_hidden_layers=1, tie_word_embeddings=tied)
    random = torch.Generator().manual_seed(0)
    tensors = {"model.embed_tokens.weight": changed.get("embed", torch.randn(VOCABULARY, WIDTH, generator=random) * 0.2)}
    layer = "model.layers.0"
    for name, shape in MATRICES.items():
        tensors[f"{layer}.self_attn.{name}.weight"] = torch.randn(shape, generator=random) * 0.2
    for name in ("gate_proj", "up_proj", "down_proj"):
        tensors[f"{layer}.mlp.{name}.weight"] = torch.randn(96, 96, generator=random) * 0.2
    for name in (f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm", "model.norm"):
        tensors[f"{name}.weight"] = torch.ones(WIDTH)
    if not tied:
        tensors["lm_head.weight"] = changed.get("head", torch.randn(VOCABULARY, WIDTH, generator=random) * 0.2)
    save_file(tensors, where / "model.safetensors")
    return path


def table_of(path: str) -> Tensor:
    return Checkpoint(Path(path)).raw("model.embed_tokens.weight")


def loaded(path: str, *with_: str) -> Model:
    return tiny.engine(path, with_=with_, model__load_format="auto").parts.model


def answer(path: str, *with_: str) -> list[Any]:
    """Greedy tokens and their log-probabilities."""
    built = tiny.engine(path, with_=with_, model__load_format="auto")
    sampling = SamplingParams(max_tokens=10, temperature=0, logprobs=1, ignore_eos=True)
    deltas = tiny.run(built, [Request(id="a", prompt=np.arange(150, 199), sampling=sampling)])["a", 0]
    return [(score.token, score.logprob) for delta in deltas for score in delta.logprobs]


@pytest.mark.parametrize(
    ("technique", "own", "head"),
    [
        ("int8", 128, True),
        ("int8:group=32", 32, True),
        ("int8:head=false", 128, False),
        ("int4", 32, True),
        ("int4:head=4:group=64", 64, True),
        ("int4:head=16", 32, False),
    ],
)
def test_a_tied_embedding_is_the_head_and_any_other_has_8_bits(technique: str, own: int, head: bool, tmp_path: Path) -> None:
    for tied in (True, False):
        path = checkpoint(tmp_path / str(tied), tied=tied)
        model, plain = loaded(path, technique), loaded(path, f"{technique}:embedding=false")
        assert isinstance(model.head, QuantizedWeights if head else DenseWeights)
        assert model.embedding.shape == (VOCABULARY, WIDTH) and model.width == WIDTH
        if tied and not head:  # the plain table is in memory anyway
            assert isinstance(model.embedding, DenseEmbedding)
        else:
            assert isinstance(model.embedding, QuantizedWeights) and (model.embedding is model.head) == tied
            assert torch.equal(model.embedding.rows(ROWS), model.embedding.dense()[ROWS])
        if not tied:
            expected = round_to_nearest(table_of(path), 8, own).dense()
            assert torch.equal(model.embedding.rows(ROWS), expected[ROWS])
        assert isinstance(plain.embedding, DenseEmbedding) and torch.equal(plain.embedding.rows(ROWS), table_of(path)[ROWS])
        for count in ("weight_bytes", "active_weight_bytes", "active_weights"):
            assert getattr(model, count) == getattr(plain, count)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("technique", ["int8", "int4"])
def test_answers_are_those_of_an_embedding_rounded_beforehand(technique: str, tied: bool, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "plain", tied=tied)
    table = table_of(path)
    head = {"head": table.clone()} if tied else {}
    rounded = round_to_nearest(table, 8, 32 if technique == "int4" and not tied else 128).dense()
    before = checkpoint(tmp_path / "rounded", embed=rounded, **head)
    same = checkpoint(tmp_path / "same", embed=table, **head)
    assert answer(path, technique) == answer(before, f"{technique}:embedding=false")
    assert answer(path, technique) != answer(same, f"{technique}:embedding=false")


def test_rows_are_scaled_in_memory_of_their_own(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    for model in (loaded(path), loaded(path, "int8")):
        before = model.embed(ROWS)
        model.embedding_scale = 3.0
        assert torch.equal(model.embed(ROWS), 3 * before) and torch.equal(model.embedding.rows(ROWS), before)


@pytest.mark.skipif(kernels.load().name == "reference", reason="only the native kernels' weights are packed")
@pytest.mark.parametrize("tied", [True, False])
def test_a_second_start_neither_reads_nor_rounds_it(tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "LEAST_BYTES", 0)
    config = EngineConfig.build(
        checkpoint(tmp_path / "model", tied=tied), with_=("int8",), set_={"model.dtype": "float32", "kv.memory_bytes": 4 << 20}
    )
    write = KeptWeights.write
    monkeypatch.setattr(KeptWeights, "write", lambda self: (write(self), self.wait()))
    first = build.build(config).parts.model

    def never(*args: object, **options: object) -> None:
        raise AssertionError("rounded again")

    take = Checkpoint.take

    def watched(self: Checkpoint, name: str, *args: Any) -> Tensor:
        assert name not in ("model.embed_tokens.weight", "lm_head.weight")
        return take(self, name, *args)

    monkeypatch.setattr("hasten.engine.weights.quantized.round_to_nearest", never)
    monkeypatch.setattr(Checkpoint, "take", watched)
    done: list[tuple[float, float]] = []
    second = build.build(config, progress=lambda *counts: done.append(counts)).parts.model
    assert (second.embedding is second.head) == tied and done[-1][0] == done[-1][1]
    every = torch.arange(VOCABULARY)
    assert torch.equal(second.embedding.rows(every), first.embedding.rows(every))
    assert second.weight_bytes == first.weight_bytes
