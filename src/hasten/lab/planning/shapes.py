"""What a cost model must know of a model, from its config.json alone: bytes, FLOPs, KV. No torch, no weights needed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.engine.config import BUILTINS
from hasten.engine.models import read_json, resolve
from hasten.engine.models.checkpoint import read_config
from hasten.engine.models.config import ModelError, ModelShape
from hasten.lab.planning.known_models import KNOWN

_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFacts:
    """`count` experts in each of `layers` layers, `per_token` of them a token; one weighs `expert_bytes`."""

    count: int
    per_token: int
    layers: int
    expert_bytes: int

    def touched(self, tokens: float) -> float:
        """Expected number of distinct experts of a layer that `tokens` tokens are sent to, when each token draws its
        `per_token` evenly: count × (1 − (1 − per_token / count)^tokens). Real routers are less even and touch fewer."""
        return self.count * (1.0 - (1.0 - self.per_token / self.count) ** tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Sizes of a decoder in one dtype, weights and KV alike. `layers`: those that own KV. `max_length`: context in tokens.

    `parameters`: distinct ones, a tied embedding once. `weight_bytes`: all of them. `active_weight_bytes`: read to compute one
    token: without the embedding's rows (unless the head is tied to them), with the head, and of the experts those of one token.
    `flops_per_token`: 2 × the weights a token is multiplied with, without the head; `head_flops`: of a row that logits are
    wanted of. `kv_bytes_per_token`: keys and values of a token over all layers. `attention_flops`: per pair of a query token
    and a key token, over all layers (4 × heads × head_dim each); a sliding window only limits which pairs there are."""

    name: str
    dtype: str
    vocabulary: int
    max_length: int
    layers: int
    parameters: int
    weight_bytes: int
    active_weight_bytes: int
    flops_per_token: int
    head_flops: int
    kv_bytes_per_token: int
    attention_flops: int
    experts: ExpertFacts | None = None

    def read_bytes(self, tokens: float) -> float:
        """Weight bytes that a step of `tokens` tokens reads: more tokens touch more experts, everything else is read once."""
        if self.experts is None:
            return self.active_weight_bytes
        more = self.experts.touched(tokens) - self.experts.per_token
        return self.active_weight_bytes + more * self.experts.layers * self.experts.expert_bytes


def shape(name: str | Path, dtype: str = "bfloat16") -> ModelFacts:
    """The facts of a model: one of `known()`, a built-in one, a folder that holds a config.json, such a file itself, or a hub
    id (owner/name), whose config.json is downloaded unless it is in the local cache. Raises ModelError."""
    text = str(name)
    if text.lower() in KNOWN:
        return facts(KNOWN[text.lower()], text.lower(), dtype)
    path = Path(text).expanduser()
    if text in BUILTINS or path.is_dir() or (text.count("/") == 1 and not path.exists()):
        return facts(read_config(resolve(text, weights=False)), path.name, dtype)
    if path.suffix == ".gguf" and path.is_file():
        return facts(read_config(path), path.stem, dtype)
    if path.is_file():
        return facts(read_json(path), path.resolve().parent.name if path.name == "config.json" else path.stem, dtype)
    near = difflib.get_close_matches(text.lower(), KNOWN, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known())}"
    others = f"{', '.join(map(repr, BUILTINS))}, a folder with a config.json or such a file, a hub id owner/name"
    raise ModelError(f"no model shape is called {text!r}; {hint}; also accepted: {others}")


def known() -> list[str]:
    """The names that `shape` knows without a file."""
    return list(KNOWN)


def facts(config: Mapping[str, Any], name: str, dtype: str = "bfloat16") -> ModelFacts:
    """The facts of a model from the content of its config.json. Raises ModelError."""
    if dtype not in _ITEM_BYTES:
        raise ModelError(f"dtype {dtype!r} is not known; known: {', '.join(_ITEM_BYTES)}")
    item = _ITEM_BYTES[dtype]
    model = ModelShape.parse(config)
    experts = _experts(model, item)
    sparse = experts.layers if experts is not None else 0
    dense = model.layers - sparse
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim

    # Parameters that multiply, and the others (norms, biases), of the layers without their experts.
    multiplying = model.layers * model.width * (2 * q + 2 * kv) + dense * 3 * model.width * model.inner_width
    multiplying += sparse * model.width * (experts.count if experts is not None else 0)  # the routers
    others = (2 * model.layers + 1) * model.width
    others += model.layers * (q + 2 * kv) if model.qkv_bias else 0
    others += model.layers * model.width if model.out_bias else 0
    others += dense * (2 * model.inner_width + model.width) if model.mlp_bias else 0
    others += model.layers * 2 * model.head_dim if model.head_norm else 0

    head = model.vocabulary * model.width
    always = (multiplying + others + head) * item
    all_experts = active_experts = 0
    if experts is not None:
        all_experts = experts.layers * experts.count * experts.expert_bytes
        active_experts = experts.layers * experts.per_token * experts.expert_bytes
    weight_bytes = always + all_experts + (0 if model.tied else head * item)
    return ModelFacts(
        name=name,
        dtype=dtype,
        vocabulary=model.vocabulary,
        max_length=model.default_length,
        layers=model.layers,
        parameters=weight_bytes // item,
        weight_bytes=weight_bytes,
        active_weight_bytes=always + active_experts,
        flops_per_token=2 * (multiplying + active_experts // item),
        head_flops=2 * head,
        kv_bytes_per_token=model.layers * 2 * kv * item,
        attention_flops=model.layers * 4 * q,
        experts=experts,
    )


def _experts(model: ModelShape, item: int) -> ExpertFacts | None:
    if model.experts is None or not model.experts.layers:
        return None
    return ExpertFacts(
        count=model.experts.count,
        per_token=model.experts.per_token,
        layers=len(model.experts.layers),
        expert_bytes=3 * model.width * model.experts.width * item,
    )
