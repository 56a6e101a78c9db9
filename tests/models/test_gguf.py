"""GGUF files: levels and values as the `gguf` package reads them, models equal to the same weights in safetensors, tokenizers,
and an error for everything else."""

from __future__ import annotations

import json
import struct
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import save_file
from tests.engine import tiny
from tests.models.harness import KERNELS, Runner
from tests.text import worlds
from torch import Tensor

from hasten.engine import models
from hasten.engine.config import ModelConfig
from hasten.engine.models import ModelError, ModelShape, read_config, resolve
from hasten.engine.models.gguf import READABLE, GgufCheckpoint
from hasten.engine.request import Request, SamplingParams
from hasten.engine.text import load_text
from hasten.engine.weights.dense import DenseWeights, WeightContext
from hasten.engine.weights.quantized import QuantizedWeights
from hasten.kernels.quantized import QuantizedWeight

gguf = pytest.importorskip("gguf")

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 20000.0,
}
MATRICES = {"attn_q": 256, "attn_k": 128, "attn_v": 128, "attn_output": 256, "ffn_gate": 256, "ffn_up": 256, "ffn_down": 256}
THEIRS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def random_tensors(arch: str = "llama", head: bool = True) -> dict[str, Tensor]:
    """By their names in GGUF, in Hugging Face's layout."""
    torch.manual_seed(0)
    found = {"token_embd.weight": torch.randn(96, 256), "output_norm.weight": torch.rand(256) + 0.5}
    found |= {"output.weight": torch.randn(96, 256) * 0.1} if head else {}
    for layer in range(2):
        blk = f"blk.{layer}"
        found |= {f"{blk}.{name}.weight": torch.randn(rows, 256) * 0.1 for name, rows in MATRICES.items()}
        found |= {f"{blk}.{name}.weight": torch.rand(256) + 0.5 for name in ("attn_norm", "ffn_norm")}
        if arch == "qwen2":
            found |= {f"{blk}.attn_{name}.bias": torch.randn(MATRICES[f"attn_{name}"]) for name in "qkv"}
        if arch == "qwen3":
            found |= {f"{blk}.attn_{name}_norm.weight": torch.rand(64) + 0.5 for name in "qk"}
    return found


def theirs(name: str) -> str:
    *blk, stem, kind = name.split(".")
    return ".".join([*(["model.layers", blk[1]] if blk else []), THEIRS[stem], kind])


def permuted(tensor: Tensor, heads: int) -> Tensor:
    """As llama.cpp's converter does it: Hugging Face's rows of a query or key projection -> GGUF's."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def q4_k(values: Tensor) -> np.ndarray:
    """The package cannot round to Q4_K: 8 groups of 32 share two float16; a group has a scale and a minimum of 6 bits."""
    groups = values.reshape(-1, 8, 32)
    step, least = (groups.amax(-1) - groups.amin(-1).clamp(max=0)) / 15, -groups.amin(-1).clamp(max=0)
    d, dmin = ((of.amax(-1, keepdim=True) / 63).half() for of in (step, least))
    scale, minimum = ((of / unit.float()).round().clamp(1, 63) for of, unit in ((step, d), (least, dmin)))
    levels = (groups + (dmin.float() * minimum)[..., None]) / (d.float() * scale)[..., None]
    q, sc, m = (part.round().clamp(0, top).to(torch.uint8) for part, top in ((levels, 15), (scale, 63), (minimum, 63)))
    low = [(part[:, :4] | (part[:, 4:] >> 4) << 6) for part in (sc, m)]
    packed = [*low, (sc[:, 4:] & 15) | (m[:, 4:] & 15) << 4]
    pairs = q.view(len(q), 4, 2, 32)
    parts = [d.view(torch.uint8), dmin.view(torch.uint8), *packed, (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)]
    return torch.cat(parts, 1).numpy().reshape(values.shape[0], -1)


def k_blocks(values: Tensor, kind: str) -> np.ndarray:
    """Any bits make a block of Q5_K and Q6_K, if its factors are finite and small."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    blocks = torch.randint(0, 256, (values.numel() // 256, size), dtype=torch.uint8)
    factor = torch.tensor([1e-4], dtype=torch.float16).view(torch.uint8)
    for at in (0, 2) if kind == "Q5_K" else (size - 2,):
        blocks[:, at : at + 2] = factor
    return blocks.numpy().reshape(values.shape[0], -1)


def stored(values: Tensor, kind: str) -> np.ndarray:
    if kind == "Q4_K":
        return q4_k(values)
    if kind in ("Q5_K", "Q6_K"):
        return k_blocks(values, kind)
    return gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType[kind])


def write(
    file: Path,
    kind: str | Callable[[str], str] = "F32",
    arch: str = "llama",
    *,
    head: bool = True,
    more: Callable[[Any], None] = lambda writer: None,
) -> dict[str, Tensor]:
    """Write a random model whose matrices are stored as `kind`. Returns its values by Hugging Face's names."""
    writer = gguf.GGUFWriter(file, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(20000.0)
    writer.add_rope_dimension_count(64)
    values = {}
    for name, tensor in random_tensors(arch, head).items():
        this = "F32" if tensor.ndim == 1 else kind if isinstance(kind, str) else kind(name)
        heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2], 0) if arch == "llama" else 0
        data = stored(permuted(tensor, heads) if heads else tensor, this)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[this])
        plain = torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[this]).copy()).view(tensor.shape)
        if heads:  # the other way round: [heads, half, 2] -> [heads, 2, half]
            plain = plain.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        values[theirs(name)] = plain.contiguous()
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def as_safetensors(folder: Path, values: dict[str, Tensor], arch: str = "llama") -> Path:
    folder.mkdir()
    save_file(values, folder / "model.safetensors")
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[arch]
    tied = "lm_head.weight" not in values
    config = {**CONFIG, "architectures": [f"{name}ForCausalLM"], "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(path: Path, **config: Any) -> Any:
    """With every weight put back into plain numbers."""

    def store(weight: Tensor | QuantizedWeight, bias: Tensor | None = None, *, name: str = "") -> DenseWeights:
        dense = weight.dense() if isinstance(weight, QuantizedWeight) else weight
        return DenseWeights(dense, bias, WeightContext(KERNELS, False))

    return models.load(ModelConfig(path=str(path), **{"dtype": "float32", **config}), store, torch.device("cpu"))


# -- levels -----------------------------------------------------------------------------------------------------------


def test_the_permutation_of_heads_is_undone() -> None:
    rows = torch.arange(2 * 8)[:, None].expand(-1, 3)
    # Head 0: a rotation turns rows 0 and 4, 1 and 5, ... of Hugging Face's layout; in GGUF they are neighbours.
    assert permuted(rows, 2)[:8, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8), ("Q4_0", 4)])
def test_levels_and_scales_are_those_of_the_file(kind: str, bits: int, tmp_path: Path) -> None:
    values = write(tmp_path / "m.gguf", kind)
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    assert not checkpoint.holds(checkpoint, "model.norm") and not checkpoint.holds(checkpoint, "nothing")
    for name, value in values.items():
        if value.ndim == 2 and "embed" not in name:
            stem = name.removesuffix(".weight")
            assert checkpoint.holds(checkpoint, stem)
            weight = checkpoint.read(checkpoint, stem, *value.shape)
            assert (weight.bits, weight.group, weight.zeros) == (bits, 32, None)
            assert torch.equal(weight.dense(), value)
            assert torch.equal(checkpoint.raw(name), value)
    raw = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    blocks = torch.from_numpy(next(t.data for t in raw if t.name == "blk.1.ffn_down.weight").copy())
    weight = checkpoint.read(checkpoint, "model.layers.1.mlp.down_proj", 256, 256)
    blocks = blocks.view(256, 8, -1)
    scales = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    assert torch.equal(weight.scales.float() * weight.unit, scales.float())
    first = blocks[:, :, 2].int() if bits == 4 else blocks[:, :, 2].view(torch.int8).int() + 128
    assert torch.equal(weight.levels.view(256, 8, 32)[..., 0].int(), first & (2**bits - 1))


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q4_1", "Q5_0", "Q5_1"])
def test_other_types_are_rounded_to_eight_bits(kind: str, tmp_path: Path) -> None:
    values = write(tmp_path / "m.gguf", kind)
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    plain = random_tensors()
    for name, value in values.items():
        if value.ndim == 2 and "embed" not in name:
            weight = checkpoint.read(checkpoint, name.removesuffix(".weight"), *value.shape)
            assert (weight.bits, weight.group, weight.zeros) == (8, 32, None)
            step, off = (of.view(len(value), -1, 32).abs().amax(-1) for of in (value / 128, weight.dense() - value))
            assert bool((off <= 1.07 * step).all())  # half a step, a whole one at the range's short end; scales in float16
            assert torch.equal(checkpoint.raw(name), value)
    if kind == "Q4_K":  # what the second rounding adds to the error of the first
        name, original = "model.layers.0.mlp.up_proj.weight", plain["blk.0.ffn_up.weight"]
        again = checkpoint.read(checkpoint, name.removesuffix(".weight"), 256, 256).dense()
        first, both = ((of - original).square().mean() for of in (values[name], again))
        assert first > 1e-6 and both < 1.01 * first


def test_stacked_weights_take_one_form(tmp_path: Path) -> None:
    kinds = {"attn_q": "Q4_0", "attn_k": "Q8_0", "attn_v": "Q6_K", "ffn_gate": "F16", "ffn_up": "Q4_0", "ffn_down": "Q4_0"}
    values = write(tmp_path / "m.gguf", lambda name: kinds.get(name.split(".")[-2], "Q4_0"))
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    prefix = "model.layers.0"
    q, k, v = (
        checkpoint.read(checkpoint, f"{prefix}.self_attn.{name}_proj", rows, 256)
        for name, rows in zip("qkv", (256, 128, 128), strict=True)
    )
    assert q.bits == k.bits == v.bits == 8
    assert torch.equal(q.dense(), values[f"{prefix}.self_attn.q_proj.weight"])  # the levels of Q4_0, 4 bits higher
    assert not checkpoint.holds(checkpoint, f"{prefix}.mlp.up_proj")
    assert checkpoint.read(checkpoint, f"{prefix}.mlp.down_proj", 256, 256).bits == 4
    expected = Runner(load(as_safetensors(tmp_path / "plain", values))).forward(PROMPT)
    torch.testing.assert_close(Runner(load(tmp_path / "m.gguf")).forward(PROMPT), expected, rtol=0, atol=0.05)


# -- whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K"])
@pytest.mark.parametrize("head", [True, False])
def test_a_model_equals_the_same_weights_in_safetensors(arch: str, kind: str, head: bool, tmp_path: Path) -> None:
    values = write(tmp_path / "m.gguf", kind, arch, head=head)
    expected, wanted = Runner(load(as_safetensors(tmp_path / "plain", values, arch))).generate(PROMPT, 12)
    model = load(tmp_path)  # a folder that holds one file
    shape = ModelShape.parse(read_config(resolve(str(tmp_path))))
    assert shape.tied != head and shape.qkv_bias == (arch == "qwen2")
    tokens, logits = Runner(model).generate(PROMPT, 12)
    if kind == "Q4_K":
        assert (logits - wanted).square().mean().sqrt() < 0.04 * wanted.std()
    else:
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
        assert tokens == expected


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_an_engine_multiplies_in_levels(kind: str, tmp_path: Path) -> None:
    values = write(tmp_path / "m.gguf", kind, head=False)
    sampling = SamplingParams(max_tokens=8, temperature=0, logprobs=1, ignore_eos=True)
    deltas = []
    for path in (as_safetensors(tmp_path / "plain", values), tmp_path / "m.gguf"):
        built = tiny.engine(str(path), model__load_format="auto")
        deltas.append(tiny.run(built, [Request(id="a", prompt=np.array(PROMPT), sampling=sampling)])["a", 0])
        nbytes = built.parts.model.weight_bytes
    count = 96 * 256 + 2 * 256 * sum(MATRICES.values())
    assert nbytes < count * (34 if kind == "Q8_0" else 18) / 32 + 20_000  # norms; padding of the head to whole panels
    plain, ours = deltas
    assert tiny.tokens(plain)[0] == tiny.tokens(ours)[0]
    assert abs(plain[0].logprobs[0].logprob - ours[0].logprobs[0].logprob) < 0.1


@pytest.mark.parametrize("with_", [(), ("int8",)])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8), ("Q4_0", 4), ("Q6_K", 8)])
def test_tokens_are_looked_up_in_levels(kind: str, bits: int, head: bool, with_: tuple[str, ...], tmp_path: Path) -> None:
    values = write(tmp_path / "m.gguf", kind, head=head)["model.embed_tokens.weight"]
    model = tiny.engine(str(tmp_path), with_=with_, model__load_format="auto").parts.model
    assert isinstance(model.embedding, QuantizedWeights) and (model.embedding is model.head) != head
    assert model.embedding.levels().bits == bits
    rows = model.embedding.rows(torch.tensor([95, 0, 64, 95]))
    if kind == "Q6_K":
        torch.testing.assert_close(rows, values[[95, 0, 64, 95]], rtol=0, atol=float(values.abs().max()) / 128)
    else:
        assert torch.equal(rows, values[[95, 0, 64, 95]])


def test_what_the_metadata_say(tmp_path: Path) -> None:
    def shape(arch: str = "llama", **values: Any) -> ModelShape:
        def more(writer: Any) -> None:
            for key, value in values.items():
                if isinstance(value, np.ndarray):
                    writer.add_tensor(key.replace("__", "."), value)
                elif isinstance(value, str):
                    writer.add_string(f"{arch}.{key.replace('__', '.')}", value)
                elif isinstance(value, float):
                    writer.add_float32(f"{arch}.{key.replace('__', '.')}", value)
                else:
                    writer.add_uint32(f"{arch}.{key.replace('__', '.')}", value)

        write(tmp_path / "m.gguf", arch=arch, more=more)
        return ModelShape.parse(read_config(tmp_path / "m.gguf"))

    plain = shape()
    assert plain.rope.kind == "default" and abs(plain.rope.theta - 20000) < 1 and plain.head_dim == 64
    assert plain == ModelShape.parse({**CONFIG, "rms_norm_eps": plain.eps})
    linear = shape(rope__scaling__type="linear", rope__scaling__factor=4.0).rope
    assert (linear.kind, linear.factor) == ("linear", 4.0)
    yarn = shape(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=16).rope
    assert (yarn.kind, yarn.factor, yarn.original, yarn.beta_fast) == ("yarn", 4.0, 16, 32.0)
    assert shape(attention__sliding_window=16).windows == (16, 16) and shape(attention__sliding_window=64).family == "llama"
    turns = 8192 * 20000.0 ** (-np.arange(32) / 32) / (2 * np.pi)
    share = np.clip((turns - 1) / 3, 0, 1)
    divisors = (1 / ((1 - share) / 8 + share)).astype(np.float32)
    llama3 = shape(rope_freqs__weight=divisors).rope
    assert (llama3.kind, llama3.factor, llama3.original, llama3.high_frequency_factor) == ("llama3", 8.0, 8192, 4.0)
    for bad, arch, message in (
        ({"rope__scaling__type": "longrope", "rope__scaling__factor": 4.0}, "llama", "longrope' is not supported"),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__attn_factor": 0.5}, "llama", "attn_fac"),
        ({"attention__sliding_window": 16}, "qwen3", "a sliding window .16. is not supported for qwen3"),
        ({"attention__value_length": 32}, "llama", "values of 32 beside keys of 64"),
        ({"expert_count": 8}, "llama", "models with experts are not read from GGUF"),
        ({"rope_freqs__weight": np.linspace(1, 2, 32, dtype=np.float32)}, "llama", "not the frequency scaling of Llama 3.1"),
        ({"rope_freqs__weight": np.ones(8, dtype=np.float32)}, "llama", r"rope_freqs.weight is F32 \[8\], not F32 \[32\]"),
    ):
        with pytest.raises(ModelError, match=message):
            shape(arch, **bad)


def test_dense_tensors_are_mapped_not_copied(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    table = load(tmp_path / "m.gguf").embedding.weight
    entry = GgufCheckpoint(tmp_path / "m.gguf").entries["model.embed_tokens.weight"]
    with (tmp_path / "m.gguf").open("r+b") as stream:
        stream.seek(entry.start)
        stream.write(struct.pack("<f", 1234.0))
    assert float(table[0, 0]) == 1234.0


def test_run_dtypes_progress_and_fingerprints(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    prints = set()
    for kind in ("BF16", "Q8_0"):
        values = write(tmp_path / "m.gguf", kind, head=False)
        config = ModelConfig(path=str(tmp_path / "m.gguf"), dtype="bfloat16")
        make = lambda weight, bias=None, *, name="": DenseWeights(  # noqa: E731
            weight.dense(torch.bfloat16) if isinstance(weight, QuantizedWeight) else weight,
            bias,
            WeightContext(KERNELS, False),
        )
        model = models.load(config, make, torch.device("cpu"), progress=lambda done, total: seen.append((done, total)))
        assert model.dtype is model.embedding.weight.dtype is torch.bfloat16 and seen[-1][0] == seen[-1][1]
        assert torch.equal(model.embedding.weight, values["model.embed_tokens.weight"].bfloat16())
        prints |= {model.fingerprint, load(tmp_path / "m.gguf").fingerprint}
    assert len(prints) == 4


# -- files that cannot be loaded --------------------------------------------------------------------------------------


def test_broken_files(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write(file, "Q8_0")
    whole = file.read_bytes()
    for content, message in (
        (b"", "is no GGUF file"),
        (b"PK" + whole[2:], "is no GGUF file"),
        (whole[:6], "is cut short: its header"),
        (whole[:300], "is cut short: its header"),
        (whole[:4000], "is cut short: its header"),
        (whole[: len(whole) // 2], f"is cut short: its header calls for {len(whole)} bytes, it has {len(whole) // 2}"),
        (whole[:4] + struct.pack("<I", 1) + whole[8:], r"another version \(1\)"),
        (whole[:4] + struct.pack(">I", 3) + whole[8:], "big-endian"),
        (whole[:16] + struct.pack("<Q", 1 << 60) + whole[24:], "is broken|is cut short"),
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=message) as caught:
            load(file)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "kind", "message"),
    [
        ("gemma2", "F32", "architecture 'gemma2' is not supported in GGUF; supported: llama, qwen2, qwen3"),
        ("llama", "TQ1_0", "token_embd.weight is stored as TQ1_0; readable: F32, F16, BF16, Q8_0, Q4_0"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(arch: str, kind: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", kind, arch)
    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)
    assert all(kind in gguf.GGMLQuantizationType.__members__ for kind in READABLE)


def test_tensors_that_are_missing_or_unknown(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", more=lambda writer: writer.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32)))
    with pytest.raises(ModelError, match=r"the tensor blk\.0\.attn_sinks\.weight belongs to no model"):
        load(tmp_path / "m.gguf")
    write(tmp_path / "m.gguf", more=lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.ones(256, np.float32)))
    with pytest.raises(ModelError, match=r"no tensor model\.layers\.0\.self_attn\.k_proj\.bias"):
        load(tmp_path / "m.gguf")
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"lm_head\.weight has the shape \[96, 256\], its metadata call for \[97, 256\]"):
        checkpoint.take("lm_head.weight", (97, 256), torch.float32, torch.device("cpu"))


def test_folders(tmp_path: Path) -> None:
    values = write(tmp_path / "a.gguf")
    assert resolve(str(tmp_path)) == resolve(str(tmp_path / "a.gguf")) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds 2 models \(a\.gguf, b\.gguf.*name one"):
        resolve(str(tmp_path))
    save_file(values, tmp_path / "model.safetensors")
    assert resolve(str(tmp_path)) == tmp_path


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"need the package gguf: pip install 'hasten\[gguf\]'"):
        load(tmp_path / "m.gguf")


# -- text -------------------------------------------------------------------------------------------------------------

TEXTS = [*worlds.TEXT, "It's 1234 o'clock,  isn't it?\n\n  <|im_start|>user\nhi<|im_end|>", ""]


def write_text(file: Path, tokenizer: tokenizers.Tokenizer, kind: str, pre: str | None, **more: Any) -> None:
    state = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    texts = sorted(vocabulary, key=vocabulary.__getitem__)
    added = {token["content"]: 3 if token["special"] else 4 for token in state["added_tokens"]}
    ranks = {left + right: -float(i) for i, (left, right) in enumerate(state["model"]["merges"])}

    def add(writer: Any) -> None:
        writer.add_tokenizer_model(kind)
        if pre:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(texts)
        byte = {text: 6 for text in texts if kind == "llama" and text.startswith("<0x")}
        writer.add_token_types([{**byte, **added}.get(text, 1) for text in texts])
        if kind == "llama":
            writer.add_token_scores([ranks.get(text, -1e6) for text in texts])
        else:
            writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
        for name, value in more.items():
            getattr(writer, f"add_{name}")(value)

    write(file, more=add)


def test_a_byte_level_tokenizer_is_the_one_it_came_from(tmp_path: Path) -> None:
    theirs = worlds.byte_level()
    plain = {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}
    ends = dict(bos_token_id=0, eos_token_id=1, add_bos_token=True)
    templates = [plain, {"name": "tool_use", "template": "x"}]
    write_text(tmp_path / "m.gguf", theirs, "gpt2", "gpt-2", **ends, chat_template=templates)
    ours, template = load_text(ModelConfig(path=str(tmp_path)))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text).ids)
        assert b"".join(map(ours.token_bytes, ours.encode(text, False))).decode() == text
    assert ours.eos_ids == {1, 3} and ours.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert template is not None and template.render([{"role": "user", "content": "hi"}]) == "<s>hi"
    assert template.render([{"role": "user", "content": "hi"}], tools=[{}]) == "x"


def test_the_rule_of_qwen_is_the_builtin_models(tmp_path: Path) -> None:
    folder = resolve("builtin")
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    write_text(tmp_path / "m.gguf", theirs, "gpt2", "qwen2", eos_token_id=2)
    ours, template = load_text(ModelConfig(path=str(tmp_path / "m.gguf")))
    assert template is None and ours.eos_ids == {0, 2}
    for text in [*TEXTS, (folder / "README.md").read_text()]:
        assert ours.encode(text) == theirs.encode(unicodedata.normalize("NFC", text)).ids
    three = tmp_path / "three.gguf"
    write_text(three, theirs, "gpt2", "llama-bpe", bos_token_id=0)
    llama, _ = load_text(ModelConfig(path=str(three)))
    assert llama.encode("12345") == [0, *(theirs.token_to_id(digit) for digit in "12345")]


def test_a_sentencepiece_tokenizer_is_the_one_it_came_from(tmp_path: Path) -> None:
    theirs = worlds.sentencepiece()
    write_text(tmp_path / "m.gguf", theirs, "llama", None, bos_token_id=1, eos_token_id=2, unk_token_id=0)
    ours, _ = load_text(ModelConfig(path=str(tmp_path / "m.gguf")))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text).ids)


def test_other_tokenizers_come_from_a_file_or_not_at_all(tmp_path: Path) -> None:
    theirs = worlds.byte_level()
    write_text(tmp_path / "m.gguf", theirs, "gpt2", "tekken", eos_token_id=1)
    config = ModelConfig(path=str(tmp_path / "m.gguf"))
    with pytest.raises(ModelError, match=r"tokenizer 'gpt2' .pre-tokenizer 'tekken'. is not supported; .* put the model's"):
        load_text(config)
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}")
    ours, template = load_text(config)
    assert ours.encode(TEXTS[0]) == theirs.encode(TEXTS[0]).ids and ours.eos_ids == {1, 3}
    assert template is not None and template.render([{"role": "user"}]) == "</s>"
    whole = tmp_path / "whole.gguf"
    write(whole, more=lambda writer: writer.add_string("tokenizer.huggingface.json", theirs.to_str()))
    assert load_text(ModelConfig(path=str(whole)))[0].encode("fox") == theirs.encode("fox").ids
    write_text(tmp_path / "bad.gguf", theirs, "gpt2", "gpt-2", token_merges=["no such"])
    with pytest.raises(ModelError, match=r"bad\.gguf: its tokenizer cannot be read"):
        load_text(ModelConfig(path=str(tmp_path / "bad.gguf")))
