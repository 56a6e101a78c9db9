"""Hardware profiles: published peak rates of accelerators, and our assumptions of what share of them an engine reaches.

Peaks are the manufacturer's, dense: where a datasheet gives a rate with 2:4 sparsity, half of it stands here. What a step gets
of them (the shares, the overhead) was not measured on these machines by us: it is assumed, with the reason, and figures that
come from a profile are always labelled as simulated.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hasten.engine.technique import ConfigError

_GIB = 1 << 30
_SHARES = {
    "bandwidth_share": "assumed: single-device decoding of well-tuned engines reads weights at 60 to 85 % of the peak",
    "matmul_share": "assumed: large bf16 products reach 60 to 75 % of the peak within the power limit, a layer's a little less",
    "attention_share": "assumed: FlashAttention-2 (Dao, 2023) reports 50 to 73 % on an A100 over long prompts, and about 35 % "
    "on an H100 (FlashAttention-3, Shah et al., 2024); ragged batches of shorter ones get less",
    "host_link_share": "assumed: large pinned copies reach about 80 % of a PCIe link",
    "copy_call_s": "assumed: to issue and start one asynchronous copy, not overlapped with the copy before it",
    "overhead_s": "assumed: launches, sampling and the loop's own work, with captured decode steps",
}


class Hardware(BaseModel):
    """One device. `memory_bytes`: nominal (a datasheet's GB are GiB). `memory_bandwidth` in bytes/s; `bf16_flops`,
    `fp8_flops`, `int8_ops`: dense peak operations/s, None where the device has no such units or nothing is published.
    `host_link`: bytes/s to host memory, each way.

    The shares, 0 to 1, say what part of its peak a step reaches: of the bandwidth when reading weights and KV, of the bf16
    rate in matrix products and in attention, of the host link. `copy_call_s`: seconds of one copy to or from host memory beside
    the bytes it moves. `overhead_s`: seconds a step takes whatever is in it.
    `sources`: where each figure comes from, by field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    memory_bytes: int = Field(gt=0)
    memory_bandwidth: float = Field(gt=0, allow_inf_nan=False)
    bf16_flops: float = Field(gt=0, allow_inf_nan=False)
    fp8_flops: float | None = Field(None, gt=0, allow_inf_nan=False)
    int8_ops: float | None = Field(None, gt=0, allow_inf_nan=False)
    host_link: float = Field(gt=0, allow_inf_nan=False)
    bandwidth_share: float = Field(0.8, gt=0, le=1)
    matmul_share: float = Field(0.6, gt=0, le=1)
    attention_share: float = Field(0.35, gt=0, le=1)
    host_link_share: float = Field(0.8, gt=0, le=1)
    copy_call_s: float = Field(2e-6, ge=0, allow_inf_nan=False)
    overhead_s: float = Field(1e-3, ge=0, allow_inf_nan=False)
    sources: dict[str, str] = Field(default_factory=dict)

    @property
    def read_rate(self) -> float:
        """Bytes/s of device memory that a step reads at."""
        return self.memory_bandwidth * self.bandwidth_share

    @property
    def matmul_rate(self) -> float:
        """FLOP/s of a step's bf16 matrix products."""
        return self.bf16_flops * self.matmul_share

    @property
    def attention_rate(self) -> float:
        """FLOP/s of a step's attention when computing limits it."""
        return self.bf16_flops * self.attention_share

    @property
    def host_rate(self) -> float:
        """Bytes/s of a copy to or from host memory."""
        return self.host_link * self.host_link_share


PROFILES = {
    profile.name: profile
    for profile in (
        Hardware(
            name="a100",
            memory_bytes=80 * _GIB,
            memory_bandwidth=2.039e12,
            bf16_flops=312e12,
            int8_ops=624e12,
            host_link=32e9,
            attention_share=0.5,
            sources={
                "peaks": "NVIDIA A100 80GB SXM datasheet; PCIe Gen4 ×16, 32 GB/s each way; it has no fp8 units",
                **_SHARES,
            },
        ),
        Hardware(
            name="h100",
            memory_bytes=80 * _GIB,
            memory_bandwidth=3.35e12,
            bf16_flops=989e12,
            fp8_flops=1979e12,
            int8_ops=1979e12,
            host_link=64e9,
            sources={"peaks": "NVIDIA H100 SXM datasheet, sparse rates halved; PCIe Gen5 ×16, 64 GB/s each way", **_SHARES},
        ),
        Hardware(
            name="h200",
            memory_bytes=141 * _GIB,
            memory_bandwidth=4.8e12,
            bf16_flops=989e12,
            fp8_flops=1979e12,
            int8_ops=1979e12,
            host_link=64e9,
            sources={"peaks": "NVIDIA H200 SXM datasheet, sparse rates halved; PCIe Gen5 ×16, 64 GB/s each way", **_SHARES},
        ),
        Hardware(
            name="l4",
            memory_bytes=24 * _GIB,
            memory_bandwidth=300e9,
            bf16_flops=121e12,
            fp8_flops=242e12,
            int8_ops=242e12,
            host_link=32e9,
            attention_share=0.5,
            sources={"peaks": "NVIDIA L4 datasheet, sparse rates halved; PCIe Gen4 ×16, 32 GB/s each way", **_SHARES},
        ),
    )
}


def profile(name: str | Path) -> Hardware:
    """The profile called `name`, or the one in a JSON or TOML file of one's own with the fields of `Hardware` (`name` may be
    left out: the file's stem). Raises ConfigError."""
    text = str(name)
    if text.lower() in PROFILES:
        return PROFILES[text.lower()]
    path = Path(text).expanduser()
    if path.suffix in (".json", ".toml"):
        return _read(path)
    near = difflib.get_close_matches(text.lower(), PROFILES, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(
        f"no hardware is called {text!r}; {hint}known: {', '.join(PROFILES)}, or a .json or .toml file with the fields of one"
    )


def _read(path: Path) -> Hardware:
    try:
        content = path.read_bytes()
        data = json.loads(content) if path.suffix == ".json" else tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold an object with the fields of a hardware profile, got {type(data).__name__}")
    try:
        return Hardware.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {field}: {first['msg']}; fields: {', '.join(Hardware.model_fields)}") from None
