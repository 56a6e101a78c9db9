"""GPTQ's rounding, and what it is calibrated on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.engine.technique import ConfigError
from hasten.engine.text import Tokenizer
from hasten.kernels.quantized import round_to_nearest
from hasten.lab.quantize import texts
from hasten.lab.quantize.gptq import gptq, output_error
from hasten.lab.testbed.document import Document

FORMS = st.tuples(st.sampled_from((4, 8)), st.sampled_from((32, 64, 128, 256)), st.booleans())


def layer(seed: int, rows: int, columns: int, directions: int, noise: float) -> tuple[Tensor, Tensor]:
    """A weight and the sums of products of inputs that lie near a space of so many directions."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(400, directions, generator=draw) @ torch.randn(directions, columns, generator=draw)
    inputs += noise * directions**0.5 * torch.randn(400, columns, generator=draw)
    return torch.randn(rows, columns, generator=draw), inputs.T @ inputs


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(8, 24), st.integers(33, 200), st.floats(0.001, 1.0), FORMS, st.data())
def test_outputs_change_no_more_than_with_the_nearest_levels(
    seed: int, rows: int, columns: int, noise: float, form: tuple[int, int, bool], data: st.DataObject
) -> None:
    """Of a whole layer: one correction may be unlucky for one row of few columns."""
    bits, group, symmetric = form
    weight, hessian = layer(seed, rows, columns, data.draw(st.integers(1, columns)), noise)
    rounded = gptq(weight, hessian, bits, group, symmetric=symmetric)
    nearest = round_to_nearest(weight, bits, group, symmetric=symmetric)
    assert output_error(weight, rounded, hessian) <= 1.05 * output_error(weight, nearest, hessian) + 1e-6


@pytest.mark.parametrize(("bits", "group", "columns"), [(4, 32, 100), (4, 64, 130), (8, 128, 129), (4, 256, 300), (8, 32, 7)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_shapes_are_the_weights_own_and_the_last_group_may_be_narrow(
    bits: int, group: int, columns: int, symmetric: bool
) -> None:
    weight, hessian = layer(1, 5, columns, 3, 0.1)
    before = weight.clone()
    rounded = gptq(weight, hessian, bits, group, symmetric=symmetric)
    groups = -(-columns // group)
    assert rounded.levels.shape == weight.shape and rounded.levels.dtype == torch.uint8
    assert rounded.scales.shape == (5, groups) and (rounded.zeros is None) is symmetric
    assert rounded.zeros is None or rounded.zeros.shape == (5, groups)
    assert int(rounded.levels.max()) < 1 << bits
    assert rounded.dense().shape == weight.shape and torch.equal(weight, before)
    # Corrections may move a weight further than to its nearest level, but not without bound.
    assert (rounded.dense() - weight).norm() < (0.5 if bits == 4 else 0.05) * weight.norm()


def test_inputs_that_say_nothing_of_each_other_give_the_nearest_levels() -> None:
    weight, _ = layer(2, 6, 96, 4, 0.1)
    alike = gptq(weight, torch.eye(96), 4, 32, symmetric=True)
    torch.testing.assert_close(alike.dense(), round_to_nearest(weight, 4, 32).dense())


def test_columns_that_never_get_an_input_do_not_matter() -> None:
    weight, hessian = layer(3, 6, 96, 4, 0.1)
    hessian[:, 40] = hessian[40] = 0
    other = weight.clone()
    other[:, 40] = 1000
    one, two = (gptq(w, hessian, 4, 32, symmetric=False) for w in (weight, other))
    assert torch.equal(one.levels, two.levels) and torch.isfinite(one.dense()).all()
    nothing = gptq(weight, torch.zeros(96, 96), 4, 32, symmetric=False)
    assert torch.isfinite(nothing.dense()).all(), "an op that saw nothing at all"


# What it is calibrated on


def test_stretches_are_drawn_from_long_documents_more_often_and_by_the_seed() -> None:
    documents = [Document("a", "a", "a" * 9000), Document("b", "b", "b" * 1000), Document("chat", "c", "<|im_end|>" * 9000)]
    found = texts._stretches([d.text for d in documents[:2]], Tokenizer.of_bytes(), 40, 50, 0)
    assert [len(stretch) for stretch in found] == [50] * 40
    firsts = [stretch[0] for stretch in found]
    assert len(set(firsts)) == 2 and max(map(firsts.count, firsts)) > 25
    assert texts.of_documents("builtin-draft", documents, 3, 0) != texts.of_documents("builtin-draft", documents, 3, 1)


def test_a_foreign_tokenizer_reads_no_marks_of_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document("a", "a", "a" * 100), Document("chat", "c", "<|im_end|>" * 1000)]
    monkeypatch.setattr(texts, "_of_model", lambda model: (Tokenizer.of_bytes(), 20))
    assert set(map(tuple, texts.of_documents("x", documents, 9, 0))) == {tuple(Tokenizer.of_bytes().encode("a" * 20))}


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one two three four five six seven " * 200)
    found = texts.of_file("builtin-draft", file, 3, 0)
    assert [len(stretch) for stretch in found] == [texts.TOKENS] * 3 and found == texts.of_file("builtin-draft", file, 3, 0)
    file.write_text("too short")
    with pytest.raises(ConfigError, match=r"a\.txt is shorter than one stretch of 512 tokens"):
        texts.of_file("builtin-draft", file)
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"a\.txt cannot be read: it is no UTF-8 text"):
        texts.of_file("builtin-draft", file)
