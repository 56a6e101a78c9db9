"""The base of all bodies that clients send."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Types are strict (a bool is no integer); unknown fields are kept, to be told."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
