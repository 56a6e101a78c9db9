"""What can be wrong with a checkpoint, each with an error that says so; dummy weights; bytes, progress and fingerprints."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.harness import Runner, load

from hasten.engine import models
from hasten.engine.models import ModelError, ModelShape, resolve
from hasten.engine.models.checkpoint import Checkpoint
from hasten.engine.models.config import ROPE_KINDS
from hasten.engine.models.moe import Experts
from hasten.engine.models.rope import cos_sin

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "eos_token_id": [1, 2],
    "dtype": "float32",
}
MOE = {
    **CONFIG,
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 8,
}


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"model.embed_tokens": (96, 32), "model.norm": (32,), "lm_head": (96, 32)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.input_layernorm": (32,), f"{prefix}.post_attention_layernorm": (32,)}
        shapes |= {f"{prefix}.self_attn.{p}_proj": (rows, 32) for p, rows in [("q", 32), ("k", 16), ("v", 16), ("o", 32)]}
        shapes |= {f"{prefix}.mlp.{p}_proj": (48, 32) for p in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj": (32, 48)}
    return {f"{name}.weight": torch.randn(shape).to(dtype) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "model.safetensors")
    return write_config(tmp_path, CONFIG)


# -- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported; supported: LlamaFor"),
        ({"architectures": None, "model_type": "bert"}, "model_type 'bert' is not supported"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers must be an integer of at least 1, got 'two'"),
        ({"vocab_size": -1}, "vocab_size must be an integer of at least 1, got -1"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads"),
        ({"head_dim": 10}, "head_dim must be a multiple of 8, got 10"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported; supported: silu"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number of at least 0, got 'small'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
        ({"dtype": "int8"}, "dtype 'int8' is not supported; supported: float32, bfloat16, float16"),
        ({"eos_token_id": "end"}, "eos_token_id must be a token id or a list of them, got 'end'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type 'longrope' is not supported; supported: default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing, which rope_type 'linear' needs"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a number of at least 1, got 0"),
        ({"rope_parameters": 4}, "rope_parameters must hold an object, got 4"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "a rotation of its own for each kind of layer"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is not supported"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
            "high_freq_factor 1 must be greater than low_freq_factor 4",
        ),
        (
            {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention", "linear_attention"]},
            "layer_types must name one of full_attention, sliding_attention for each of 2 layers",
        ),
        (
            {"architectures": ["MixtralForCausalLM"], "num_local_experts": 2, "num_experts_per_tok": 3},
            "num_experts_per_tok 3 is more than the 2 experts there are",
        ),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelShape.parse({**CONFIG, **change})


@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_the_old_and_the_new_spelling_of_rope_mean_the_same(kind: str) -> None:
    scaling = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    old = {**CONFIG, "rope_theta": 5e5, "rope_scaling": {"type": kind, **scaling}}
    new = {**CONFIG, "rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **scaling}}
    rope = ModelShape.parse(new).rope
    assert ModelShape.parse(old).rope == rope and (rope.kind, rope.theta) == (kind, 5e5)
    table = cos_sin(rope, 16, 40)
    assert table.shape == (40, 2, 8) and table.dtype == torch.float32 and table.is_contiguous()


def test_context_lengths() -> None:
    scaled = {"type": "linear", "factor": 4.0}
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    lengths = [
        (shape.default_length, shape.longest)
        for given in (None, scaled, {**scaled, "type": "dynamic"}, yarn)
        for shape in [ModelShape.parse({**CONFIG, "rope_scaling": given})]
    ]
    assert lengths == [(64, 64), (64, 256), (64, 256), (256, 256)]
    shape = ModelShape.parse(CONFIG)
    assert models.context_length(shape, None) == 64 and models.context_length(shape, 10) == 10
    with pytest.raises(ModelError, match=r"model.max_length=65 is more than the 64 positions this model has"):
        models.context_length(shape, 65)


def test_windows_by_family() -> None:
    def windows(architecture: str, **change: Any) -> tuple[int | None, ...]:
        return ModelShape.parse({**CONFIG, "architectures": [f"{architecture}ForCausalLM"], **change}).windows

    assert windows("Llama", sliding_window=8) == (None, None)
    assert windows("Mistral") == (4096, 4096) and windows("Mistral", sliding_window=None) == (None, None)
    assert windows("Qwen2", sliding_window=8) == (None, None)
    assert windows("Qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=1) == (None, 8)


# -- finding the model ------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nothing"), "./nothing", "a/b/c", "two words"):
        with pytest.raises(ModelError, match=r"there is no folder .*; a model is a local folder, a hub id"):
            resolve(name)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file; a model is a folder"):
        resolve(str(tmp_path / "file"))


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("we are offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"no model called 'owner/name'.*the Hugging Face hub did not .*we are offline"):
        resolve("owner/name")


def test_a_hub_id_is_downloaded_without_what_is_not_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def snapshot(name: str, **kwargs: Any) -> str:
        asked.append((name, kwargs["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert resolve("owner/name") == tmp_path and resolve("name", weights=False) == tmp_path
    assert asked == [("owner/name", ["*.json", "*.jinja", "*.safetensors"]), ("name", ["*.json", "*.jinja"])]


# -- broken folders ---------------------------------------------------------------------------------------------------


def test_a_folder_without_config_or_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json must hold an object, got list"):
        load(tmp_path)
    write_config(tmp_path, CONFIG)
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors \(it has pytorch_model\.bin: convert"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is broken or cut short"),
        (b"\xff" * 8, "is broken or cut short"),
        (struct.pack("<Q", 3) + b"{x}", "its header cannot be read"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "its header cannot be read"),
        (struct.pack("<Q", 2) + b"[]", "its header cannot be read"),
    ],
)
def test_broken_safetensors(content: bytes, message: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=rf"model\.safetensors .*{message}|model\.safetensors {message}"):
        load(folder)


def test_safetensors_cut_short(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=rf"model\.safetensors is cut short: its header calls for {len(whole)} bytes"):
        load(folder)


@pytest.mark.parametrize(
    "name, tensor, message",
    [
        ("model.layers.1.mlp.up_proj.weight", None, "no tensor model.layers.1.mlp.up_proj.weight, which config.json"),
        ("lm_head.weight", None, "no tensor lm_head.weight"),
        (
            "model.layers.0.self_attn.k_proj.weight",
            torch.zeros(32, 32),
            r"model.layers.0.self_attn.k_proj.weight has the shape \[32, 32\], config.json calls for \[16, 32\]",
        ),
        ("model.norm.weight", torch.zeros(32, dtype=torch.int8), "model.norm.weight is stored as I8; readable: F32"),
    ],
)
def test_a_tensor_that_is_missing_or_wrong(name: str, tensor: torch.Tensor | None, message: str, folder: Path) -> None:
    changed = tensors()
    del changed[name]
    if tensor is not None:
        changed[name] = tensor
    save_file(changed, folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_several_files_and_an_index(folder: Path) -> None:
    whole = load(folder)
    expected = Runner(whole).forward([3, 1, 4])
    all_of = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(all_of)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: all_of[name] for name in names if places[name] == file}, folder / file)
    assert torch.equal(Runner(load(folder)).forward([3, 1, 4]), expected)  # also without an index
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert torch.equal(Runner(load(folder)).forward([3, 1, 4]), expected)
    (folder / places[names[0]]).unlink()
    with pytest.raises(ModelError, match=rf"lacks {places[names[0]]}, which model\.safetensors\.index\.json names"):
        load(folder)
    index.write_text("{}")
    with pytest.raises(ModelError, match="holds no weight_map"):
        load(folder)


# -- what a loaded model says of itself -------------------------------------------------------------------------------


def test_bytes_progress_and_sites(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = load(folder, progress=lambda done, total: seen.append((done, total)), sites=lambda blocks: blocks + 1)
    stored = sum(t.nbytes for t in tensors().values())
    assert seen[-1] == (stored, stored) and [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert model.weight_bytes == model.active_weight_bytes == stored - 96 * 32 * 4  # the lookup reads one row only
    assert len(model.blocks) == 2 and [site.index for site in model.sites] == [0, 1, 2]
    assert all(not site.planes for site in model.sites)
    assert model.max_length == 64 and model.sites[0].cos_sin.shape == (64, 2, 4)
    assert load(folder, max_length=16).sites[0].cos_sin.shape == (16, 2, 4)


def test_a_tied_head_counts_once(folder: Path) -> None:
    untied = load(folder)
    write_config(folder, {**CONFIG, "tie_word_embeddings": True})
    tied = load(folder)
    assert tied.weight_bytes == untied.weight_bytes
    assert torch.equal(tied.head.dense(), tied.embedding.weight)


def test_experts_are_active_by_their_share(tmp_path: Path) -> None:
    model = load(write_config(tmp_path, MOE), load_format="dummy")
    experts = 2 * 8 * 3 * 16 * 32 * 4
    assert model.weight_bytes - model.active_weight_bytes == experts * 6 // 8
    assert isinstance(model.blocks[0].ops[-2], Experts)


def test_run_dtypes(tmp_path: Path) -> None:
    cpu, native = torch.device("cpu"), models._cpu_has_bfloat16()
    assert models.run_dtype("auto", "bfloat16", cpu) is (torch.bfloat16 if native else torch.float32)
    assert models.run_dtype("auto", "float16", cpu) is torch.float32
    assert models.run_dtype("bfloat16", "float32", cpu) is torch.bfloat16
    for stored in (torch.bfloat16, torch.float16):
        save_file(tensors(stored), tmp_path / "model.safetensors")
        model = load(write_config(tmp_path, CONFIG))
        assert torch.equal(model.embedding.weight, tensors(stored)["model.embed_tokens.weight"].float())
    low = load(tmp_path, dtype="bfloat16")
    assert low.dtype is low.embedding.weight.dtype is low.norm.weight.dtype is torch.bfloat16
    assert Runner(low).forward([1, 2, 3]).dtype is torch.bfloat16


def test_the_fingerprint_changes_with_weights_config_and_dtype(folder: Path) -> None:
    first = load(folder).fingerprint
    assert load(folder, max_length=16).fingerprint == first
    prints = {first, load(folder, dtype="bfloat16").fingerprint, load(folder, load_format="dummy").fingerprint}
    write_config(folder, {**CONFIG, "rope_theta": 2e4})
    prints.add(load(folder).fingerprint)
    write_config(folder, CONFIG)
    torch.manual_seed(1)
    save_file({n: t + 0.01 * torch.randn(t.shape) for n, t in tensors().items()}, folder / "model.safetensors")
    prints.add(load(folder).fingerprint)
    assert len(prints) == 5


def test_the_embedding_is_mapped_not_copied(folder: Path) -> None:
    """A view of the file: changing the file's bytes in place shows through."""
    table = load(folder).embedding.weight
    entry = Checkpoint(folder).entries["model.embed_tokens.weight"]
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(entry.start)
        stream.write(struct.pack("<f", 1234.0))
    assert float(table[0, 0]) == 1234.0


def test_dummy_weights_are_random_and_the_same_every_time(tmp_path: Path) -> None:
    config = {**CONFIG, "architectures": ["Qwen3ForCausalLM"], "attention_bias": True, "head_dim": 8}
    one, two = (load(write_config(tmp_path, config), load_format="dummy", dtype="bfloat16") for _ in range(2))
    logits = Runner(one).forward([5, 6, 7])
    assert torch.equal(logits, Runner(two).forward([5, 6, 7])) and logits.isfinite().all()
    assert one.dtype is torch.bfloat16 and 0.015 < float(one.embedding.weight.float().std()) < 0.025
    assert not torch.equal(*one.embedding.weight[:2]) and bool((one.norm.weight == 1).all())
    seen: list[tuple[int, int]] = []
    load(tmp_path, load_format="dummy", progress=lambda done, total: seen.append((done, total)))
    assert 0.95 < seen[-1][0] / seen[-1][1] < 1.05


def test_the_built_in_draft_reads_the_tokens_of_the_built_in_model() -> None:
    model, draft = resolve("builtin"), resolve("builtin-draft")
    assert (model / "tokenizer.json").read_bytes() == (draft / "tokenizer.json").read_bytes()
    assert (draft / "model.safetensors").stat().st_size < (model / "model.safetensors").stat().st_size / 4
