"""What each keyword of a schema says, as a formula.

Keywords are dated: a schema is read by the draft that its `$schema` names, and what that draft does not know is an annotation,
like every unknown keyword and unknown format. Values are checked when the schema that holds them is first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from hasten.engine.decoding.constraints import formats, regex
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.languages import Expr
from hasten.engine.decoding.constraints.schema.conditions import TYPES, type_of
from hasten.engine.decoding.constraints.schema.formulas import Formula, Formulas
from hasten.engine.decoding.constraints.schema.references import Json, Place, References, draft_of, step

DEEPEST = 200
"""Of a value in `enum` and `const`."""


class Keywords:
    def __init__(self, root: Json, formulas: Formulas, limits: Limits, lenient: bool) -> None:
        self.draft = draft_of(root)
        self.warnings: list[str] = []
        self._all, self._limits, self._lenient = formulas, limits, lenient
        self._references = References(root, self.draft, limits)
        self._definitions: dict[Place, Formula] = {}
        self._patterns: dict[str, Expr] = {}
        self._rules = [rule for rule in _RULES if rule.first <= self.draft]
        self._words = frozenset(word for rule in self._rules for word in rule.words)
        self._outer = frozenset(word for rule in self._rules if rule.outer for word in rule.words)
        self.root = self.schema(root, "", "")

    def schema(self, value: Json, where: str, base: str) -> Formula:
        if isinstance(value, bool):
            return self._all.true if value else self._all.false
        if not isinstance(value, dict):
            raise GrammarError(f"a schema is an object, true or false, not {_shown(value)}", where=where)
        # Most schemas inside others have a keyword; one that has none is worth knowing as "anything".
        if self._words.isdisjoint(value):
            return self._all.true
        place = self._references.place(value, where, base)
        # Where no other schema is inside there is nothing to put off, and what says the same becomes the same.
        return self.definition(place) if self._outer.isdisjoint(value) else self._all.reference(place)

    def definition(self, place: Place) -> Formula:
        """The conjunction of the keywords that stand in `place`."""
        found = self._definitions.get(place)
        if found is None:
            self._limits.check(len(self._definitions))
            found = self._definitions[place] = self._all.all(self._read(place))
        return found

    def _read(self, place: Place) -> Iterator[Formula]:
        alone = "$ref" in place.schema and self.draft <= 7
        for rule in self._rules:
            if (rule.words[0] == "$ref" or not alone) and not place.schema.keys().isdisjoint(rule.words):
                try:
                    yield from rule.read(self, place)
                except GrammarError as error:
                    if not self._lenient or error.part not in rule.words:
                        raise
                    self.warnings.append(str(error))

    # What the rules below are made of.

    def inner(self, place: Place, *path: str | int) -> Formula:
        value: Any = place.schema
        for name in path:
            value = value[name]
        return self.schema(value, step(place.where, *path), place.base)

    def only(self, type_: str, kind: str, *data: Any) -> Formula:
        """Values of other types satisfy it."""
        return self._all.literal(("if", type_, (kind, *data)))

    def types(self, *names: str) -> Formula:
        return self._all.literal(("types", frozenset(names)))

    def pattern(self, pattern: str, word: str, where: str) -> Expr:
        if pattern not in self._patterns:
            try:
                self._patterns[pattern] = regex.parse(pattern, search=True)
            except GrammarError as error:
                raise GrammarError(str(error).removeprefix("pattern: "), word, where) from None
        return self._patterns[pattern]

    def equal(self, value: Json, where: str, word: str, depth: int = 0) -> Formula:
        if depth > DEEPEST:
            raise GrammarError(f"a value nested more than {DEEPEST} deep", word, where)
        self._limits.check()
        if isinstance(value, list):
            items = tuple(self.equal(item, where, word, depth + 1) for item in value)
            count = self.only("array", "count", len(value), len(value))
            return self._all.all([self.types("array"), self.only("array", "items", items, self._all.false), count])
        if isinstance(value, dict):
            properties = tuple((key, self.equal(item, where, word, depth + 1)) for key, item in value.items())
            has = [self.only("object", "has", key) for key in value]
            part = self.only("object", "part", properties, (), self._all.false)
            return self._all.all([self.types("object"), part, *has])
        return self._among([value], where, word)

    def _among(self, scalars: list[Json], where: str, word: str) -> Formula:
        by_type: dict[str, set[Json]] = {}
        for value in scalars:
            if not isinstance(value, bool) and isinstance(value, int | float | Decimal):
                value = number(value, word, where)
            # What is no text cannot be written, so nothing equals it.
            if not isinstance(value, str) or not _SURROGATES.intersection(value):
                by_type.setdefault(type_of(value), set()).add(value)
        if not by_type:
            return self._all.false
        return self._all.literal(("among", tuple((name, frozenset(by_type[name])) for name in TYPES if name in by_type)))

    def follow(self, reference: str, place: Place) -> Formula:
        return self.schema(*self._references.follow(reference, place))

    # Rules, one a keyword or a group of keywords that mean something together only.

    def _reference(self, place: Place) -> Iterator[Formula]:
        yield self.follow(_get(place, "$ref", str), place)

    def _type(self, place: Place) -> Iterator[Formula]:
        names = _get(place, "type", str | list)
        found = []
        for name in [names] if isinstance(names, str) else names:
            if name == "integer":
                found.append(self._all.literal(("integer",)))
            elif name in TYPES:
                found.append(self.types(name))
            else:
                self.warnings.append(f"type: no value is of type {_shown(name)} (at {place.where or '/'})")
        yield self._all.any(found)

    def _enum(self, place: Place) -> Iterator[Formula]:
        values, where = _get(place, "enum", list), step(place.where, "enum")
        containers = [self.equal(value, where, "enum") for value in values if isinstance(value, dict | list)]
        scalars = [value for value in values if not isinstance(value, dict | list)]
        yield self._all.any([*containers, self._among(scalars, where, "enum")])

    def _const(self, place: Place) -> Iterator[Formula]:
        yield self.equal(place.schema["const"], step(place.where, "const"), "const")

    def _bounds(self, place: Place) -> Iterator[Formula]:
        for side, bound, exclusive in (("low", "minimum", "exclusiveMinimum"), ("high", "maximum", "exclusiveMaximum")):
            beyond = place.schema.get(exclusive)
            if bound in place.schema:
                open_ = beyond is True
                yield self.only("number", side, number(place.schema[bound], bound, place.where), open_)
            if exclusive in place.schema and not isinstance(beyond, bool):
                yield self.only("number", side, number(beyond, exclusive, place.where), True)

    def _multiple(self, place: Place) -> Iterator[Formula]:
        factor = number(place.schema["multipleOf"], "multipleOf", place.where)
        if factor <= 0:
            raise GrammarError("it must be above zero", "multipleOf", place.where)
        yield self.only("number", "multiple", factor, True)

    def _pattern(self, place: Place) -> Iterator[Formula]:
        yield self.only("string", "text", self.pattern(_get(place, "pattern", str), "pattern", place.where))

    def _format(self, place: Place) -> Iterator[Formula]:
        language = formats.language(_get(place, "format", str))
        if language is not None:
            yield self.only("string", "text", language)

    def _counts(self, place: Place) -> Iterator[Formula]:
        for type_, kind, least, most in _COUNTS:
            if least in place.schema:
                yield self.only(type_, kind, _count(place, least), None)
            if most in place.schema:
                yield self.only(type_, kind, 0, _count(place, most))

    def _items(self, place: Place) -> Iterator[Formula]:
        schema, first, rest = place.schema, "prefixItems", "items"
        if self.draft < 2020 or isinstance(schema.get("items"), list):
            first, rest = "items", "additionalItems"
        if first == "items" and not isinstance(schema.get("items"), list):
            # Without positions, "items" is about all of them, and "additionalItems" means nothing.
            first, rest = "", "items"
        count = len(_get(place, first, list)) if first in schema else 0
        prefix = tuple(self.inner(place, first, at) for at in range(count))
        following = self.inner(place, rest) if rest in schema else self._all.true
        yield self.only("array", "items", prefix, following)

    def _unique(self, place: Place) -> Iterator[Formula]:
        if _get(place, "uniqueItems", bool):
            yield self.only("array", "unique")

    def _contains(self, place: Place) -> Iterator[Formula]:
        least, dated = 1, self.draft >= 2019
        if dated and "minContains" in place.schema:
            least = _count(place, "minContains")
        for word, given in (("minContains", least > 1), ("maxContains", dated and "maxContains" in place.schema)):
            if given and "contains" in place.schema:
                raise GrammarError("counting the items that match is not supported", word, place.where)
        if "contains" in place.schema and least == 1:
            yield self.only("array", "some item", 0, self.inner(place, "contains"))

    def _properties(self, place: Place) -> Iterator[Formula]:
        schema = place.schema
        named = tuple((key, self.inner(place, "properties", key)) for key in _get(place, "properties", dict, {}))
        patterns = tuple(
            (self.pattern(key, "patternProperties", place.where), self.inner(place, "patternProperties", key))
            for key in _get(place, "patternProperties", dict, {})
        )
        closed = "additionalProperties" in schema
        yield self.only(
            "object", "part", named, patterns, self.inner(place, "additionalProperties") if closed else self._all.true
        )

    def _required(self, place: Place) -> Iterator[Formula]:
        yield from self._has(_get(place, "required", list), "required", place)

    def _has(self, keys: list[Json], word: str, place: Place) -> Iterator[Formula]:
        for key in keys:
            if not isinstance(key, str):
                raise GrammarError(f"names are strings, not {_shown(key)}", word, place.where)
            yield self.only("object", "has", key)

    def _names(self, place: Place) -> Iterator[Formula]:
        yield self.only("object", "names", self.inner(place, "propertyNames"))

    def _dependencies(self, place: Place) -> Iterator[Formula]:
        for word in ("dependencies", "dependentRequired", "dependentSchemas"):
            for key, value in _get(place, word, dict, {}).items():
                if word != "dependentSchemas" and isinstance(value, list | str):
                    then = self._all.all(self._has([value] if isinstance(value, str) else value, word, place))
                else:
                    then = self.inner(place, word, key)
                present = self._all.all([self.types("object"), self.only("object", "has", key)])
                yield self._all.any([self._all.negate(present), then])

    def _branches(self, place: Place) -> Iterator[Formula]:
        for word, join in (("allOf", self._all.all), ("anyOf", self._all.any), ("oneOf", self._all.one)):
            if word in place.schema:
                if not (branches := _get(place, word, list)):
                    raise GrammarError("it is empty", word, place.where)
                yield join([self.inner(place, word, at) for at in range(len(branches))])

    def _not(self, place: Place) -> Iterator[Formula]:
        yield self._all.negate(self.inner(place, "not"))

    def _if(self, place: Place) -> Iterator[Formula]:
        if "if" in place.schema:
            test = self.inner(place, "if")
            then, other = (self.inner(place, word) if word in place.schema else self._all.true for word in ("then", "else"))
            yield self._all.any([self._all.all([test, then]), self._all.all([self._all.negate(test), other])])

    def _unevaluated(self, place: Place) -> Iterator[Formula]:
        for word in ("unevaluatedProperties", "unevaluatedItems"):
            if word in place.schema and self.inner(place, word) is not self._all.true:
                raise GrammarError("it depends on which other schemas apply, which is not supported", word, place.where)
        yield from ()

    def _dynamic(self, place: Place) -> Iterator[Formula]:
        word = "$dynamicRef" if "$dynamicRef" in place.schema else "$recursiveRef"
        raise GrammarError("references that depend on where they are used from are not supported", word, place.where)


_SURROGATES = frozenset(map(chr, range(0xD800, 0xE000)))
_COUNTS = (
    ("string", "length", "minLength", "maxLength"),
    ("array", "count", "minItems", "maxItems"),
    ("object", "count", "minProperties", "maxProperties"),
)


class _Rule:
    """`words`: the keywords that it reads, known from draft `first` on. `outer`: there are schemas inside."""

    def __init__(
        self, read: Callable[[Keywords, Place], Iterator[Formula]], *words: str, first: int = 4, outer: bool = False
    ) -> None:
        self.read, self.words, self.first, self.outer = read, words, first, outer


_RULES = [
    _Rule(Keywords._reference, "$ref", outer=True),
    _Rule(Keywords._type, "type"),
    _Rule(Keywords._enum, "enum"),
    _Rule(Keywords._const, "const", first=6),
    _Rule(Keywords._bounds, "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    _Rule(Keywords._multiple, "multipleOf"),
    _Rule(Keywords._pattern, "pattern"),
    _Rule(Keywords._format, "format"),
    _Rule(Keywords._counts, *(word for line in _COUNTS for word in line[2:])),
    _Rule(Keywords._items, "items", "prefixItems", "additionalItems", outer=True),
    _Rule(Keywords._unique, "uniqueItems"),
    _Rule(Keywords._contains, "contains", "minContains", "maxContains", first=6, outer=True),
    _Rule(Keywords._properties, "properties", "patternProperties", "additionalProperties", outer=True),
    _Rule(Keywords._required, "required"),
    _Rule(Keywords._names, "propertyNames", first=6, outer=True),
    _Rule(Keywords._dependencies, "dependencies", "dependentRequired", "dependentSchemas", outer=True),
    _Rule(Keywords._branches, "allOf", "anyOf", "oneOf", outer=True),
    _Rule(Keywords._not, "not", outer=True),
    _Rule(Keywords._if, "if", "then", "else", first=7, outer=True),
    _Rule(Keywords._unevaluated, "unevaluatedProperties", "unevaluatedItems", first=2019, outer=True),
    _Rule(Keywords._dynamic, "$dynamicRef", "$recursiveRef", first=2019),
]


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _get(place: Place, word: str, kind: Any, default: Any = None) -> Any:
    value = place.schema.get(word, default)
    if not isinstance(value, kind):
        raise GrammarError(f"it cannot be {_shown(value)}", word, place.where)
    return value


def _count(place: Place, word: str) -> int:
    value = number(place.schema[word], word, place.where)
    if value < 0 or value % 1:
        raise GrammarError(f"it counts, and cannot be {_shown(place.schema[word])}", word, place.where)
    return int(min(value, 2**31 - 2))


def number(value: Json, word: str, where: str) -> int | Decimal:
    """Exact."""
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        raise GrammarError(f"it is a number, not {_shown(value)}", word, where)
    exact = value if isinstance(value, int | Decimal) else Decimal(repr(value))
    if isinstance(exact, int):
        return exact
    if not exact.is_finite() or abs(exact.adjusted()) > 1000 or len(exact.as_tuple().digits) > 1000:
        raise GrammarError(f"{_shown(str(value))} is no number that can be told apart", word, where)
    return exact
