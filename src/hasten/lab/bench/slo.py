"""Service-level objectives on the command line, and in words."""

from __future__ import annotations

import math

from hasten.engine.request import SLO
from hasten.engine.technique import ConfigError

_NAMES = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "deadline_s"}
_ACCEPTED = "write ttft=0.5,tpot=0.05,e2e=10, any of them, in seconds"


def parse_slo(text: str) -> SLO:
    """`ttft=0.5,tpot=0.05,e2e=10`: seconds to the first token, per further token, and to the end, each above 0. Raises
    ConfigError for anything else."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if name not in _NAMES or not sign:
            raise ConfigError(f"{part.strip()!r} is no objective; {_ACCEPTED}")
        if _NAMES[name] in found:
            raise ConfigError(f"{name} is given twice in {text!r}")
        try:
            seconds = float(value)
        except ValueError:
            raise ConfigError(f"{name}={value!r} is no number of seconds; {_ACCEPTED}") from None
        if not math.isfinite(seconds) or seconds <= 0:
            raise ConfigError(f"{name} must be above 0 seconds, got {value}; {_ACCEPTED}")
        found[_NAMES[name]] = seconds
    return SLO(**found)


def describe(slo: SLO) -> str:
    """As `TTFT <= 500 ms and TPOT <= 50 ms`; empty for an SLO that asks for nothing."""
    parts = [("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s), ("end-to-end", slo.deadline_s)]
    return " and ".join(f"{name} <= {_seconds(value)}" for name, value in parts if value is not None)


def _seconds(value: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"
