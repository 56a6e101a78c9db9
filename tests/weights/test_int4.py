"""int4: what it rounds to how many bits, and its knobs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine import tiny

from hasten.engine.executors.local import generic_cost
from hasten.engine.executors.step import Linear
from hasten.engine.technique import ConfigError
from hasten.engine.weights.dense import DenseWeights
from hasten.engine.weights.quantized import QuantizedWeights


@pytest.mark.parametrize(("knob", "bits"), [("", 8), (":head=8", 8), (":head=4", 4), (":head=16", 16)])
def test_layers_have_4_bits_and_the_head_as_many_as_said(knob: str, bits: int, tmp_path: Path) -> None:
    path = tiny.folder(tmp_path)
    model, plain = (tiny.engine(path, with_=with_).parts.model for with_ in ((f"int4{knob}",), ()))
    for op in (op for block in model.blocks for op in block.ops if isinstance(op, Linear)):
        assert isinstance(op.store, QuantizedWeights) and op.store.levels().bits == 4 and op.store.levels().zeros is not None
    if bits == 16:
        assert isinstance(model.head, DenseWeights) and torch.equal(model.head.dense(), plain.head.dense())
    else:
        assert isinstance(model.head, QuantizedWeights) and model.head.levels().bits == bits


def test_symmetric_has_no_zero_points(tmp_path: Path) -> None:
    built = tiny.engine(tiny.folder(tmp_path), with_=("int4:symmetric=true:group=64",))
    levels = built.parts.model.blocks[0].ops[1].store.levels()  # type: ignore[attr-defined]
    assert levels.zeros is None and levels.group == 64


def test_the_cost_of_computing_is_that_of_the_weights_not_of_their_bytes(tmp_path: Path) -> None:
    """A head of more bits than the layers once made their arithmetic negative."""
    path = tiny.folder(tmp_path, vocab_size=4096, tie_word_embeddings=True)
    small, plain = (generic_cost(tiny.engine(path, with_=with_).parts.memory) for with_ in (("int4",), ()))
    a_token = [(c.knot_s[-1] - c.knot_s[-2]) / (c.knots[-1] - c.knots[-2]) for c in (small, plain)]
    assert a_token[0] == pytest.approx(a_token[1], rel=0.01) and small.head_s == plain.head_s > 0


def test_bad_knobs_are_refused(tmp_path: Path) -> None:
    for knob in ("group=7", "group=x", "head=5", "bits=3"):
        with pytest.raises(ConfigError, match="int4"):
            tiny.engine(tiny.folder(tmp_path), with_=(f"int4:{knob}",))
