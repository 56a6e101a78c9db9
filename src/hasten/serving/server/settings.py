"""What the operator of a server decides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times in seconds; `request_timeout_s` None: no limit. `served_name` None: the model's own name."""

    api_key: str | None = None
    body_limit_bytes: int = 8 << 20
    request_timeout_s: float | None = 600.0
    grace_s: float = 30.0
    served_name: str | None = None
    most_prompts: int = 256
    """Prompts of one request to /v1/completions; each takes a place in the engine's queue."""
