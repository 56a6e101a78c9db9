"""Reading config.json into a `ModelShape`.

Six families of decoder are understood: Llama, Mistral, Qwen2, Qwen3, Mixtral and Qwen3-MoE. What a config leaves out
takes the family's default in transformers. Anything that would change the result and is not understood is refused by
name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hasten.engine.models.config import ROPE_KINDS, ExpertShape, ModelError, ModelShape, Rope, token_ids

_DTYPES = ("float32", "bfloat16", "float16")
_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class _Family:
    """What a family does unless its config says otherwise. A bias is a field's name, or fixed."""

    name: str
    architecture: str
    qkv_bias: str | bool = False
    out_bias: str | bool = False
    mlp_bias: str | bool = False
    head_norm: bool = False
    head_dim: int | None = None
    positions: int = 32768
    theta: float = 10000.0
    eps: float = 1e-6


_FAMILIES = {
    family.name: family
    for family in (
        _Family(
            "llama",
            "LlamaForCausalLM",
            qkv_bias="attention_bias",
            out_bias="attention_bias",
            mlp_bias="mlp_bias",
            positions=2048,
        ),
        _Family("mistral", "MistralForCausalLM", positions=131072),
        _Family("qwen2", "Qwen2ForCausalLM", qkv_bias=True),
        _Family(
            "qwen3",
            "Qwen3ForCausalLM",
            qkv_bias="attention_bias",
            out_bias="attention_bias",
            head_norm=True,
            head_dim=128,
        ),
        _Family("mixtral", "MixtralForCausalLM", positions=131072, theta=1e6, eps=1e-5),
        _Family(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            qkv_bias="attention_bias",
            out_bias="attention_bias",
            head_norm=True,
        ),
    )
}


class Reader:
    """One config.json on its way to a `ModelShape`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not isinstance(config, Mapping):
            raise ModelError(f"config.json must hold an object, got {type(config).__name__}")
        self.config = config
        self.family = self._family()

    def _family(self) -> _Family:
        found = self.config.get("architectures")
        if found:
            names = [found] if isinstance(found, str) else list(found)
            for family in _FAMILIES.values():
                if family.architecture in names:
                    return family
            what = f"architecture {', '.join(map(str, names))}"
        else:
            kind = self.config.get("model_type")
            if kind in _FAMILIES:
                return _FAMILIES[kind]
            what = f"model_type {kind!r}"
        known = ", ".join(family.architecture for family in _FAMILIES.values())
        raise ModelError(f"config.json: {what} is not supported; supported: {known}")

    # -- fields -------------------------------------------------------------------------------------------------------

    def count(self, name: str, default: int | None = None, low: int = 1) -> int:
        value = self.config.get(name)
        if value is None:
            if default is None:
                raise ModelError(f"config.json: {name} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ModelError(f"config.json: {name} must be an integer of at least {low}, got {value!r}")
        return value

    def flag(self, name: str | bool, default: bool = False) -> bool:
        if isinstance(name, bool):
            return name
        value = self.config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"config.json: {name} must be true or false, got {value!r}")
        return value

    # -- the whole ----------------------------------------------------------------------------------------------------

    def shape(self) -> ModelShape:
        family = self.family
        layers = self.count("num_hidden_layers")
        width = self.count("hidden_size")
        heads = self.count("num_attention_heads")
        kv_heads = self.count("num_key_value_heads", heads)
        head_dim = self.count("head_dim", family.head_dim or width // heads)
        if heads % kv_heads:
            raise ModelError(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads evenly")
        if head_dim % 8:
            raise ModelError(f"config.json: head_dim must be a multiple of 8, got {head_dim}")
        positions = self.count("max_position_embeddings", family.positions)
        activation = self.config.get("hidden_act", "silu")
        if activation not in _ACTIVATIONS:
            raise ModelError(f"config.json: hidden_act {activation!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
        experts = self.experts(layers)
        everywhere = experts is not None and len(experts.layers) == layers
        return ModelShape(
            family=family.name,
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            inner_width=self.count("intermediate_size", experts.width if experts and everywhere else None),
            vocabulary=self.count("vocab_size"),
            eps=_number("config.json: rms_norm_eps", self.config.get("rms_norm_eps", family.eps), 0.0),
            rope=self.rope(positions),
            windows=self.windows(layers),
            positions=positions,
            activation=_ACTIVATIONS[activation],
            qkv_bias=self.flag(family.qkv_bias),
            out_bias=self.flag(family.out_bias),
            mlp_bias=self.flag(family.mlp_bias),
            head_norm=family.head_norm,
            tied=self.flag("tie_word_embeddings"),
            experts=experts,
            eos=token_ids(self.config.get("eos_token_id"), "config.json: eos_token_id"),
            dtype=self.dtype(),
        )

    def dtype(self) -> str | None:
        value = self.config.get("dtype", self.config.get("torch_dtype"))
        if value is None:
            return None
        name = str(value).removeprefix("torch.")
        if name not in _DTYPES:
            raise ModelError(f"config.json: dtype {value!r} is not supported; supported: {', '.join(_DTYPES)}")
        return name

    def windows(self, layers: int) -> tuple[int | None, ...]:
        family, config = self.family.name, self.config
        if family == "llama":
            return (None,) * layers
        if family in ("mistral", "mixtral"):
            absent = 4096 if family == "mistral" and "sliding_window" not in config else 0
            return (self.count("sliding_window", absent, low=0) or None,) * layers
        window = self.count("sliding_window", 4096) if self.flag("use_sliding_window") else None
        if family == "qwen3_moe":
            return (window,) * layers
        kinds = config.get("layer_types")
        if kinds is None:
            first = self.count("max_window_layers", 28, low=0)
            return tuple(window if layer >= first else None for layer in range(layers))
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) < layers or any(kind not in known for kind in kinds):
            raise ModelError(f"config.json: layer_types must name one of {', '.join(known)} for each of {layers} layers")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds[:layers])

    def experts(self, layers: int) -> ExpertShape | None:
        mixtral = self.family.name == "mixtral"
        if not mixtral and self.family.name != "qwen3_moe":
            return None
        default = self.count("num_local_experts", 8 if mixtral else 128)
        count = self.count("num_experts", default)
        per_token = self.count("num_experts_per_tok", 2 if mixtral else 8)
        if per_token > count:
            raise ModelError(f"config.json: num_experts_per_tok {per_token} is more than the {count} experts there are")
        sparse = range(layers)
        if not mixtral:
            dense, step = self.config.get("mlp_only_layers") or [], self.count("decoder_sparse_step", 1)
            sparse = [i for i in range(layers) if i not in dense and (i + 1) % step == 0]  # type: ignore[assignment]
        return ExpertShape(
            count=count,
            per_token=per_token,
            width=self.count("intermediate_size") if mixtral else self.count("moe_intermediate_size", 768),
            normalise=mixtral or self.flag("norm_topk_prob"),
            layers=frozenset(sparse),
        )

    def rope(self, positions: int) -> Rope:
        config = self.config
        name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        given, where = config.get(name) or {}, f"config.json: {name}"
        if not isinstance(given, Mapping):
            raise ModelError(f"{where} must hold an object, got {given!r}")
        if any(isinstance(value, Mapping) for value in given.values()):
            raise ModelError(f"{where}: a rotation of its own for each kind of layer is not supported")
        kind = given.get("rope_type") or given.get("type") or "default"
        if kind not in ROPE_KINDS:
            raise ModelError(f"{where}: rope_type {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}")
        partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            raise ModelError(f"{where}: partial_rotary_factor {partial!r} is not supported; supported: 1.0")

        def number(name: str, default: float | None = None, low: float = 0.0) -> float:
            value = given.get(name)
            if value is None:
                value = default
            if value is None:
                raise ModelError(f"{where}: {name} is missing, which rope_type {kind!r} needs")
            return _number(f"{where}: {name}", value, low)

        theta = given.get("rope_theta") or config.get("rope_theta") or self.family.theta
        theta = _number(f"{where}: rope_theta", theta, 1.0)
        original = positions
        if kind in ("yarn", "llama3"):
            original = self.count("original_max_position_embeddings", 0, low=1) or int(
                number("original_max_position_embeddings", positions, 1.0)
            )
        if kind == "default":
            return Rope(theta=theta, original=original)
        if kind in ("linear", "dynamic"):
            return Rope(kind=kind, theta=theta, original=original, factor=number("factor", low=1.0))
        if kind == "llama3":
            low, high = number("low_freq_factor"), number("high_freq_factor")
            if high <= low:
                raise ModelError(f"{where}: high_freq_factor {high:g} must be greater than low_freq_factor {low:g}")
            return Rope(
                kind=kind,
                theta=theta,
                original=original,
                factor=number("factor", low=1.0),
                low_frequency_factor=low,
                high_frequency_factor=high,
            )
        optional = {
            name: None if given.get(name) is None else number(name) for name in ("attention_factor", "mscale", "mscale_all_dim")
        }
        return Rope(
            kind="yarn",
            theta=theta,
            original=original,
            factor=number("factor", positions / original, 1.0),
            beta_fast=number("beta_fast", 32.0),
            beta_slow=number("beta_slow", 1.0),
            truncate=bool(given.get("truncate", True)),
            attention_factor=optional["attention_factor"],
            mscale=optional["mscale"],
            mscale_all_dim=optional["mscale_all_dim"],
        )


def _number(what: str, value: Any, low: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        raise ModelError(f"{what} must be a number of at least {low:g}, got {value!r}")
    return float(value)
