"""The shape of a model: what config.json says of it, checked and in one vocabulary. No torch is needed to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hasten.engine.technique import ConfigError

RopeKind = Literal["default", "linear", "dynamic", "yarn", "llama3"]
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "dynamic", "yarn", "llama3")


class ModelError(ConfigError):
    """The model cannot be loaded: which file or field is at fault, what was found and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding. `original`: positions the unscaled rotation was trained on. What each kind reads of
    the rest is said in `rope.py`."""

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original: int = 2048
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """Mixture of experts: `count` experts of inner width `width`, `per_token` of them a token, in `layers`.
    `normalise`: the chosen experts' weights are scaled to sum to 1."""

    count: int
    per_token: int
    width: int
    normalise: bool
    layers: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes and switches of a decoder. `windows`: the sliding window of each layer in tokens, None for full attention.
    `dtype`: of the checkpoint, as config.json says, or None where it does not."""

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner_width: int
    vocabulary: int
    eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    positions: int
    activation: Literal["silu", "gelu_tanh"] = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False
    tied: bool = False
    experts: ExpertShape | None = None
    eos: tuple[int, ...] = ()
    dtype: str | None = None

    @property
    def default_length(self) -> int:
        """The context in tokens when none is asked for. YaRN states how far it reaches; `linear` and `dynamic`
        checkpoints disagree on whether max_position_embeddings already counts their factor, so there it is taken as it
        stands."""
        return self.longest if self.rope.kind == "yarn" else self.positions

    @property
    def longest(self) -> int:
        """The longest context in tokens that may be asked for."""
        if self.rope.kind in ("linear", "dynamic", "yarn"):
            return max(self.positions, int(self.rope.original * self.rope.factor))
        return self.positions

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a config.json. Raises ModelError naming the field, what was found and what is accepted."""
        from hasten.engine.models.families import Reader

        return Reader(config).shape()


def token_ids(value: Any, what: str) -> tuple[int, ...]:
    """A token id, a list of them or nothing, as a tuple."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise ModelError(f"{what} must be a token id or a list of them, got {value!r}")
    return tuple(values)
