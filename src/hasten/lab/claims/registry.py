"""Finding claims by name, without importing the others."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil

from hasten.lab import claims
from hasten.lab.claims.base import Claim


class ClaimError(ValueError):
    """A claim that is not there, that measured less than it says, or whose results cannot be kept or read."""


def find(name: str) -> Claim:
    """The claim called `name`; imports its file only. Raises ClaimError with the nearest names."""
    module = name.replace("-", "_")
    if module.isidentifier():
        path = f"{claims.__name__}.{module}"
        if importlib.util.find_spec(path) is not None:
            claim = getattr(importlib.import_module(path), "CLAIM", None)
            if isinstance(claim, Claim) and claim.name == name:
                return claim
    known = [claim.name for claim in all_claims()]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise ClaimError(f"no claim is called {name!r}; {hint}")


def all_claims() -> list[Claim]:
    """Every claim, by name (imports them all)."""
    found = []
    for module in pkgutil.iter_modules(claims.__path__):
        claim = getattr(importlib.import_module(f"{claims.__name__}.{module.name}"), "CLAIM", None)
        if isinstance(claim, Claim):
            found.append(claim)
    return sorted(found, key=lambda claim: claim.name)
