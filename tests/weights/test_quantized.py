"""Weights in levels: stores, published checkpoints, and the checkpoint that `hasten quantize` writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine import tiny

from hasten import kernels as kernel_library
from hasten.engine.models import ModelError
from hasten.engine.models.published import _AWQ_ORDER, format_of, packed_words, unpacked
from hasten.engine.request import Request, SamplingParams
from hasten.engine.weights.dense import DenseWeights, WeightContext
from hasten.engine.weights.quantized import Form, MakeQuantized, QuantizedWeights
from hasten.kernels.quantized import QuantizedWeight, round_to_nearest, stacked
from hasten.lab.quantize.checkpoint import words_of
from hasten.lab.quantize.gptq import gptq, output_error

CONTEXT = WeightContext(kernel_library.load(), False)
FORMS = [Form(bits=8, group=128), Form(bits=4, group=32), Form(bits=4, group=64, symmetric=False)]


def store(form: Form, rows: int = 128, columns: int = 256) -> tuple[QuantizedWeights, torch.Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(rows, columns)
    made = MakeQuantized(form, form, None, CONTEXT)(weight, torch.randn(rows))
    assert isinstance(made, QuantizedWeights)
    return made, weight


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_store_multiplies_by_what_it_says_it_holds(form: Form) -> None:
    made, weight = store(form)
    assert made.shape == (128, 256) and made.nbytes < weight.nbytes * (form.bits + 1) / 32
    assert (made.dense() - weight).abs().mean() < 0.12
    x = torch.randn(5, 256)
    product = made.apply(x)
    assert torch.equal(product, made.apply(x, torch.empty(5, 128)))
    plain = x @ made.dense().T + made._bias
    assert (product - plain).norm() < 0.02 * plain.norm()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_patches_are_undone_bit_for_bit_and_slices_hold_their_part(form: Form) -> None:
    made, _ = store(form)
    before, x = made.dense().clone(), torch.randn(3, 256)
    product = made.apply(x)
    undo = made.patch((torch.tensor([3, 50]), torch.tensor([7, 100])), torch.tensor([2.0, -2.0]))
    assert abs(float(made.dense()[3, 7]) - 2.0) < 0.5 and not torch.equal(made.apply(x), product)
    undo()
    assert torch.equal(made.dense(), before) and torch.equal(made.apply(x), product)
    rows = torch.tensor([5, 90, 6])
    assert torch.equal(made.slice(None, rows).dense(), before[rows])
    assert torch.equal(made.slice(None, rows).apply(x), product[:, rows])
    columns = torch.arange(0, 256, 3)
    narrow = made.slice(columns, rows)
    assert isinstance(narrow, DenseWeights) and torch.equal(narrow.dense(), before[rows][:, columns])
    assert not made.fold(torch.zeros(128, 256))


def test_stacked_weights_keep_their_values() -> None:
    torch.manual_seed(1)
    parts = [
        round_to_nearest(scale * torch.randn(8, 64), 4, 32, symmetric=symmetric)
        for scale, symmetric in ((1, True), (64, False))
    ]
    torch.testing.assert_close(stacked(parts).dense(), torch.cat([p.dense() for p in parts]), rtol=1e-3, atol=1e-7)


def test_gptq_changes_outputs_less_than_plain_rounding() -> None:
    torch.manual_seed(2)
    inputs = torch.randn(2000, 192) @ torch.randn(192, 192) * 0.1 + torch.randn(2000, 192) * 0.1
    inputs[:, 7] = 0
    weight, hessian = torch.randn(64, 192), inputs.T @ inputs
    for symmetric in (True, False):
        plain = output_error(weight, round_to_nearest(weight, 4, 32, symmetric=symmetric), hessian)
        better = output_error(weight, gptq(weight, hessian, 4, 32, symmetric=symmetric), hessian)
        assert better < 0.8 * plain
    # With inputs that say nothing of each other there is nothing to gain, and nothing is lost.
    torch.testing.assert_close(
        gptq(weight, torch.eye(192), 8, 64, symmetric=True).dense(), round_to_nearest(weight, 8, 64).dense()
    )


# Published formats


class Tensors(dict):
    def raw(self, name: str) -> torch.Tensor:
        return self[name]


@pytest.mark.parametrize("bits", [4, 8])
def test_words_hold_levels(bits: int) -> None:
    levels = torch.randint(0, 1 << bits, (6, 64), dtype=torch.uint8)
    assert torch.equal(unpacked(packed_words(levels, bits), bits), levels)


def close(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    return torch.equal(one.levels, other.levels) and torch.allclose(one.dense(), other.dense(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, False)])
def test_gptq_tensors_are_read_as_they_were_written(bits: int, symmetric: bool) -> None:
    weight = round_to_nearest(torch.randn(48, 128), bits, 32, symmetric=symmetric)
    form = format_of({"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": 32}})
    tensors = Tensors({f"a.{part}": value for part, value in words_of(weight).items()})
    assert form is not None and form.holds(tensors, "a") and not form.holds(tensors, "b")
    assert close(form.read(tensors, "a", 48, 128), weight)
    tensors["a.g_idx"] = tensors["a.g_idx"].flip(0)
    with pytest.raises(ModelError, match="out of order"):
        form.read(tensors, "a", 48, 128)
    with pytest.raises(ModelError, match="its scales are"):
        form.read(Tensors({**tensors, "a.g_idx": tensors["a.g_idx"].flip(0), "a.scales": torch.ones(3, 48)}), "a", 48, 128)


def test_awq_tensors_are_read() -> None:
    weight = round_to_nearest(torch.randn(48, 128), 4, 64, symmetric=False)

    def words(values: torch.Tensor) -> torch.Tensor:
        """[n, out] with the columns of a word in AWQ's order: the first four bits hold column 0, the next column 2, ..."""
        shuffled = torch.empty_like(values).unflatten(1, (-1, 8))
        for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            shuffled[..., place] = values.unflatten(1, (-1, 8))[..., column]
        return packed_words(shuffled.flatten(1), 4)

    assert sorted(_AWQ_ORDER) == list(range(8)) and weight.zeros is not None
    scales = (weight.scales.float() * weight.unit).half().T
    tensors = Tensors({"a.qweight": words(weight.levels.T), "a.qzeros": words(weight.zeros.T), "a.scales": scales})
    form = format_of({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}})
    assert form is not None and close(form.read(tensors, "a", 48, 128), weight)


def test_compressed_tensors_are_read() -> None:
    def form(bits: int, strategy: str, group: int | None):
        weights = {"num_bits": bits, "type": "int", "strategy": strategy, "group_size": group, "symmetric": True}
        return format_of(
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}}}
        )

    weight = round_to_nearest(torch.randn(48, 128), 4, 32)
    tensors = Tensors(
        {"a.weight_packed": packed_words(weight.levels, 4), "a.weight_scale": weight.scales.float() * weight.unit}
    )
    assert close(form(4, "group", 32).read(tensors, "a", 48, 128), weight)
    whole = torch.randn(48, 200)
    scale = whole.abs().amax(1, keepdim=True) / 127
    tensors = Tensors({"a.weight": (whole / scale).round().to(torch.int8), "a.weight_scale": scale.bfloat16()})
    read = form(8, "channel", None).read(tensors, "a", 48, 200)
    torch.testing.assert_close(read.dense(), whole, rtol=0.01, atol=0.02)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"quant_method": "fp8"}, "gptq, awq and compressed-tensors"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "bits is 3"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "group_size is -1"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, "out of order"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "one group of settings"),
    ],
)
def test_what_cannot_be_read_is_refused(said: dict, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        format_of({"quantization_config": said})


def test_a_quantised_checkpoint_runs_with_its_own_levels(tmp_path: Path) -> None:
    """Written as a user would have it, loaded, and equal to the model whose weights are the rounded ones."""
    from hasten.lab.quantize.checkpoint import Settings, quantize

    torch.manual_seed(3)
    folder = Path(tiny.folder(tmp_path / "plain"))
    shapes = {
        "self_attn.q_proj": (64, 64),
        "self_attn.k_proj": (32, 64),
        "self_attn.v_proj": (32, 64),
        "self_attn.o_proj": (64, 64),
    }
    shapes |= {"mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}
    tensors = {
        "model.embed_tokens.weight": torch.randn(256, 64),
        "lm_head.weight": torch.randn(256, 64) * 0.1,
        "model.norm.weight": torch.ones(64),
    }
    for layer in range(2):
        tensors |= {f"model.layers.{layer}.{name}.weight": torch.randn(shape) * 0.1 for name, shape in shapes.items()}
        tensors |= {f"model.layers.{layer}.{n}.weight": torch.ones(64) for n in ("input_layernorm", "post_attention_layernorm")}
    save_file(tensors, folder / "model.safetensors")
    quantize(str(folder), tmp_path / "small", Settings(4, 32, False, "nearest"), {}, lambda done, total: None)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "gptq"
    written = load_file(tmp_path / "small" / "model.safetensors")
    assert "model.layers.1.mlp.down_proj.qweight" in written and "model.layers.1.mlp.down_proj.weight" not in written
    sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=5)
    answers = []
    for path, with_ in (
        (folder, ()),
        (tmp_path / "small", ()),
        (folder, ("int4:group=32:head=16:embedding=false",)),
        (tmp_path / "small", ("int8",)),
    ):
        built = tiny.engine(str(path), with_=with_, model__load_format="auto")
        deltas = tiny.run(built, [Request(id="a", prompt=np.arange(1, 30), sampling=sampling)])["a", 0]
        answers.append([round(p, 3) for p in (lp.logprob for _, lp in [(0, deltas[0].logprobs[0])])])
    plain, small, rounded_at_load, _ = answers
    assert small == rounded_at_load and small != plain
    with pytest.raises(ModelError, match="quantised already"):
        quantize(str(tmp_path / "small"), tmp_path / "again", Settings(4, 32, False, "nearest"), {}, lambda done, total: None)
