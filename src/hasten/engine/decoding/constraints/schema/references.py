"""Where a `$ref` leads: pointers, anchors and identifiers inside one document. Nothing is fetched."""

from __future__ import annotations

import re
from urllib.parse import unquote, urldefrag, urljoin

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.schema.places import Json, Place, step

_DATA = frozenset(("enum", "const", "default", "examples", "example"))
"""Keywords whose values are no schemas, whatever they look like."""
_NAMES = frozenset(("$defs", "definitions", "properties", "patternProperties", "dependentSchemas", "dependencies"))
"""Keywords whose values have schemas by names, whatever these look like."""
_INDEX = re.compile("0|[1-9][0-9]{0,8}")


def draft_of(root: Json) -> int:
    """4, 6, 7, 2019 or 2020 (also where `$schema` names none of them; 3 is read as 4)."""
    name = str(root.get("$schema", "")) if isinstance(root, dict) else ""
    for mark, draft in (("draft-03", 4), ("draft-04", 4), ("draft-06", 6), ("draft-07", 7), ("2019-09", 2019)):
        if mark in name:
            return draft
    return 2020


def _absolute(base: str, name: str) -> tuple[str, str]:
    """(address, fragment) of what is called `name` where `base` is the address."""
    try:
        address, fragment = urldefrag(urljoin(base, name))
    except ValueError:
        return name, ""  # no address, and so nobody's
    return address, fragment


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
        return _absolute(base, name)[0]

    def follow(self, reference: str, at: Place) -> tuple[Json, str, str]:
        """(schema, pointer, base of what it stands in) of what `reference`, which stands in `at`, means."""
        address, fragment = (at.base, reference[1:]) if reference.startswith("#") else _absolute(at.base, reference)
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
            if isinstance(value, list) and _INDEX.fullmatch(name) and int(name) < len(value):
                value = value[int(name)]
            elif isinstance(value, dict) and name in value:
                value = value[name]
            else:
                raise GrammarError(f"{reference!r} leads nowhere", "$ref", at.where)
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
            for key, one in value.items():
                if key in _NAMES and isinstance(one, dict):
                    todo += [(schema, step(where, key, name), inner) for name, schema in one.items()]
                elif key not in _DATA:
                    todo.append((one, step(where, key), inner))
        return named
