"""Where a `$ref` leads: pointers, anchors and identifiers inside one document. Nothing is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from hasten.engine.decoding.constraints.base import GrammarError, Limits

Json = Any
"""A value as `json.loads` gives it, numbers as int or Decimal."""

_DATA = frozenset(("enum", "const", "default", "examples", "example"))
"""Keywords whose values are no schemas, whatever they look like."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A schema in the document. `where`: its JSON pointer. `base`: the identifier of the resource that it belongs to."""

    schema: dict[str, Json]
    where: str
    base: str


def draft_of(root: Json) -> int:
    """4, 6, 7, 2019 or 2020 (also where `$schema` names none of them; 3 is read as 4)."""
    name = str(root.get("$schema", "")) if isinstance(root, dict) else ""
    for mark, draft in (("draft-03", 4), ("draft-04", 4), ("draft-06", 6), ("draft-07", 7), ("2019-09", 2019)):
        if mark in name:
            return draft
    return 2020


def step(where: str, *names: str | int) -> str:
    """The pointer `where`, further down."""
    return where + "".join("/" + str(name).replace("~", "~0").replace("/", "~1") for name in names)


class References:
    def __init__(self, root: Json, draft: int, limits: Limits) -> None:
        self._root, self._draft, self._limits = root, draft, limits
        self._places: dict[int, Place] = {}
        self._named: dict[str, tuple[Json, str, str]] | None = None
        """By absolute identifier, the anchor after "#": as `follow` returns them."""
        self._base = self._identifier(root, "") if isinstance(root, dict) else ""

    def place(self, schema: dict[str, Json], where: str, base: str) -> Place:
        """The one of this schema; what it was first found as stays. `base`: of what the schema stands in."""
        found = self._places.get(id(schema))
        if found is None:
            found = self._places[id(schema)] = Place(schema, where, self._identifier(schema, base))
        return found

    def _identifier(self, schema: dict[str, Json], base: str) -> str:
        name = schema.get("id" if self._draft == 4 else "$id")
        if not isinstance(name, str) or name.startswith("#") or (self._draft <= 7 and "$ref" in schema):
            return base
        return urldefrag(urljoin(base, name)).url

    def follow(self, reference: str, at: Place) -> tuple[Json, str, str]:
        """(schema, pointer, base of what it stands in) of what `reference`, which stands in `at`, means."""
        address, fragment = urldefrag(urljoin(at.base, reference) if not reference.startswith("#") else at.base + reference)
        fragment = unquote(fragment)
        pointer = not fragment or fragment.startswith("/")
        if address == self._base and pointer:
            return self._walk((self._root, "", ""), fragment, reference, at)
        if self._named is None:
            self._named = self._collect()
        found = self._named.get(address if pointer else f"{address}#{fragment}")
        if found is None:
            kind = (
                "anchor of that name is"
                if address == self._base
                else "such schema is in the document, and none is fetched; it is"
            )
            raise GrammarError(f"no {kind} there: {reference!r}", "$ref", at.where)
        return self._walk(found, fragment if pointer else "", reference, at)

    def _walk(self, start: tuple[Json, str, str], pointer: str, reference: str, at: Place) -> tuple[Json, str, str]:
        value, where, base = start
        for name in pointer.split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict):
                base = self._identifier(value, base)
            try:
                value = value[int(name)] if isinstance(value, list) else value[name]
            except (KeyError, IndexError, TypeError, ValueError):
                raise GrammarError(f"{reference!r} leads nowhere", "$ref", at.where) from None
            where = step(where, name)
        return value, where, base

    def _collect(self) -> dict[str, tuple[Json, str, str]]:
        """Every resource and anchor. Not recursive: a schema may be nested as deep as its writer likes."""
        named: dict[str, tuple[Json, str, str]] = {}
        todo: list[tuple[Json, str, str]] = [(self._root, "", "")]
        while todo:
            self._limits.check()
            value, where, base = todo.pop()
            if isinstance(value, list):
                todo += [(one, step(where, at), base) for at, one in enumerate(value)]
            if not isinstance(value, dict):
                continue
            inner = self._identifier(value, base)
            if inner != base or not where:
                named.setdefault(inner, (value, where, base))
            for key in ("$id", "id", "$anchor", "$dynamicAnchor"):
                anchor = value.get(key)
                if isinstance(anchor, str) and (anchor.startswith("#") or key.endswith("nchor")):
                    named.setdefault(f"{inner}#{anchor.lstrip('#')}", (value, where, base))
            todo += [(one, step(where, key), inner) for key, one in value.items() if key not in _DATA]
        return named
