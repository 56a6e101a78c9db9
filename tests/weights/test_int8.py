"""int8: what it rounds, what it leaves, and its knobs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine import tiny

from hasten.engine.executors.step import Linear
from hasten.engine.technique import ConfigError
from hasten.engine.weights.dense import DenseWeights
from hasten.engine.weights.quantized import QuantizedWeights


@pytest.mark.parametrize("tied", [True, False])
def test_every_linear_layer_and_the_head_have_8_bits(tied: bool, tmp_path: Path) -> None:
    path = tiny.folder(tmp_path, tie_word_embeddings=tied, hidden_size=256, intermediate_size=384)
    model, plain = (tiny.engine(path, with_=with_).parts.model for with_ in (("int8",), ()))
    stores = [op.store for block in model.blocks for op in block.ops if isinstance(op, Linear)]
    for store in [*stores, model.head]:
        assert isinstance(store, QuantizedWeights) and store.levels().bits == 8 and store.levels().zeros is None
    assert (model.head.dense() - plain.head.dense()).abs().max() < 0.01 * plain.head.dense().abs().max()
    assert model.weight_bytes < 0.3 * plain.weight_bytes and model.active_weights == plain.active_weights


def test_the_head_can_stay_as_it_is(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path)
    model, plain = (tiny.engine(path, with_=with_).parts.model for with_ in (("int8:head=false",), ()))
    assert isinstance(model.head, DenseWeights) and torch.equal(model.head.dense(), plain.head.dense())


def test_finer_groups_are_nearer_to_the_plain_engine(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path, hidden_size=256)
    plain = tiny.engine(path).parts.model.blocks[0].ops[1].store.dense()  # type: ignore[attr-defined]
    off = []
    for group in (32, 256):
        store = tiny.engine(path, with_=(f"int8:group={group}",)).parts.model.blocks[0].ops[1].store  # type: ignore[attr-defined]
        off.append(float((store.dense() - plain).square().sum()))
    assert 0 < off[0] < 0.9 * off[1]


def test_bad_knobs_are_refused(tmp_path: Path) -> None:
    for knob in ("group=7", "group=x", "head=maybe", "bits=4"):
        with pytest.raises(ConfigError, match="int8"):
            tiny.engine(tiny.folder(tmp_path), with_=(f"int8:{knob}",))
