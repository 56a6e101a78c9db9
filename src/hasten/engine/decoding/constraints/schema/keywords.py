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
from hasten.engine.decoding.constraints.languages import SURROGATE, Expr
from hasten.engine.decoding.constraints.schema.conditions import TYPES, type_of
from hasten.engine.decoding.constraints.schema.formulas import Formula, Formulas
from hasten.engine.decoding.constraints.schema.places import Json, Place, count_of, get, number, shown, step
from hasten.engine.decoding.constraints.schema.references import References, draft_of
from hasten.engine.decoding.constraints.schema.unevaluated import evaluated

DEEPEST = 200
"""Of a value in `enum` and `const`."""


class Keywords:
    def __init__(self, root: Json, formulas: Formulas, limits: Limits, lenient: bool) -> None:
        self.draft = draft_of(root)
        self.warnings: list[str] = []
        self._all, self.limits, self._lenient = formulas, limits, lenient
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
            raise GrammarError(f"a schema is an object, true or false, not {shown(value)}", where=where)
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
            self.limits.check(len(self._definitions))
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
                self._patterns[pattern] = regex.parse(pattern, search=True, limits=self.limits)
            except GrammarError as error:
                raise GrammarError(str(error).removeprefix("pattern: "), word, where) from None
        return self._patterns[pattern]

    def equal(self, value: Json, where: str, word: str, depth: int = 0) -> Formula:
        if depth > DEEPEST:
            raise GrammarError(f"a value nested more than {DEEPEST} deep", word, where)
        self.limits.check()
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
            if not isinstance(value, str) or not SURROGATE.search(value):
                by_type.setdefault(type_of(value), set()).add(value)
        return self._all.among(by_type.items())

    def place(self, place: Place, *path: str | int) -> Place | None:
        """Of the schema at `path`, or, if that is "$ref", of the one that it leads to; None if that has no keywords."""
        value: Any
        if path == ("$ref",):
            value, where, base = self._references.follow(get(place, "$ref", str), place)
        else:
            value, where, base = place.schema, step(place.where, *path), place.base
            for name in path:
                value = value[name]
        return self._references.place(value, where, base) if isinstance(value, dict) else None

    def positions(self, place: Place) -> tuple[str, int, str]:
        """The keyword with a schema for each of the first items, how many these are, and the keyword about those after them."""
        listed = isinstance(place.schema.get("items"), list)
        if self.draft < 2020 or listed:
            # Without positions, "items" is about all of them, and "additionalItems" means nothing.
            return ("items", len(place.schema["items"]), "additionalItems") if listed else ("", 0, "items")
        return "prefixItems", len(get(place, "prefixItems", list, [])), "items"

    # Rules, one a keyword or a group of keywords that mean something together only.

    def _reference(self, place: Place) -> Iterator[Formula]:
        yield self.schema(*self._references.follow(get(place, "$ref", str), place))

    def _type(self, place: Place) -> Iterator[Formula]:
        names = get(place, "type", str | list)
        found = []
        for name in [names] if isinstance(names, str) else names:
            if name == "integer":
                found.append(self._all.literal(("integer",)))
            elif name in TYPES:
                found.append(self.types(name))
            else:
                self.warnings.append(f"type: no value is of type {shown(name)} (at {place.where or '/'})")
        yield self._all.any(found)

    def _enum(self, place: Place) -> Iterator[Formula]:
        values, where = get(place, "enum", list), step(place.where, "enum")
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
        yield self.only("string", "text", self.pattern(get(place, "pattern", str), "pattern", place.where))

    def _format(self, place: Place) -> Iterator[Formula]:
        language = formats.language(get(place, "format", str))
        if language is not None:
            yield self.only("string", "text", language)

    def _counts(self, place: Place) -> Iterator[Formula]:
        for type_, kind, least, most in _COUNTS:
            if least in place.schema:
                yield self.only(type_, kind, count_of(place, least), None)
            if most in place.schema:
                yield self.only(type_, kind, 0, count_of(place, most))

    def _items(self, place: Place) -> Iterator[Formula]:
        first, count, rest = self.positions(place)
        prefix = tuple(self.inner(place, first, at) for at in range(count))
        following = self.inner(place, rest) if rest in place.schema else self._all.true
        yield self.only("array", "items", prefix, following)

    def _unique(self, place: Place) -> Iterator[Formula]:
        if get(place, "uniqueItems", bool):
            yield self.only("array", "unique")

    def _contains(self, place: Place) -> Iterator[Formula]:
        least, most = 1, None
        if self.draft >= 2019:
            least = count_of(place, "minContains") if "minContains" in place.schema else 1
            most = count_of(place, "maxContains") if "maxContains" in place.schema else None
        if "contains" not in place.schema:
            return
        wanted = self.inner(place, "contains")
        if most is not None and least > most:
            yield self._all.negate(self.types("array"))
        elif most == 0:
            yield self.only("array", "items", (), self._all.negate(wanted))
        elif most is not None or least > 1:
            yield self.only("array", "matching", wanted, least, most)
        elif least:
            yield self.only("array", "some item", 0, wanted)

    def _properties(self, place: Place) -> Iterator[Formula]:
        schema = place.schema
        named = tuple((key, self.inner(place, "properties", key)) for key in get(place, "properties", dict, {}))
        patterns = tuple(
            (self.pattern(key, "patternProperties", place.where), self.inner(place, "patternProperties", key))
            for key in get(place, "patternProperties", dict, {})
        )
        closed = "additionalProperties" in schema
        yield self.only(
            "object", "part", named, patterns, self.inner(place, "additionalProperties") if closed else self._all.true
        )

    def _required(self, place: Place) -> Iterator[Formula]:
        yield from self._has(get(place, "required", list), "required", place)

    def _has(self, keys: list[Json], word: str, place: Place) -> Iterator[Formula]:
        for key in keys:
            if not isinstance(key, str):
                raise GrammarError(f"names are strings, not {shown(key)}", word, place.where)
            yield self.only("object", "has", key)

    def _names(self, place: Place) -> Iterator[Formula]:
        yield self.only("object", "names", self.inner(place, "propertyNames"))

    def _dependencies(self, place: Place) -> Iterator[Formula]:
        for word in ("dependencies", "dependentRequired", "dependentSchemas") if self.draft >= 2019 else ("dependencies",):
            for key, value in get(place, word, dict, {}).items():
                if word != "dependentSchemas" and isinstance(value, list | str):
                    then = self._all.all(self._has([value] if isinstance(value, str) else value, word, place))
                else:
                    then = self.inner(place, word, key)
                present = self._all.all([self.types("object"), self.only("object", "has", key)])
                yield self._all.any([self._all.negate(present), then])

    def _branches(self, place: Place) -> Iterator[Formula]:
        for word, join in (("allOf", self._all.all), ("anyOf", self._all.any), ("oneOf", self._one)):
            if word in place.schema:
                if not (branches := get(place, word, list)):
                    raise GrammarError("it is empty", word, place.where)
                yield join([self.inner(place, word, at) for at in range(len(branches))])

    def _one(self, parts: list[Formula]) -> Formula:
        """Exactly one of them. Lists of scalars that have nothing in common are one list: values with titles are written so."""
        lists = [part for part in parts if part.says("among")]
        values = [(name, value) for part in lists for name, among in part.payload[1] for value in among]
        if len(lists) < 2 or len(set(values)) < len(values):
            return self._all.one(parts)
        return self._all.one([self._all.any(lists), *(part for part in parts if not part.says("among"))])

    def _not(self, place: Place) -> Iterator[Formula]:
        yield self._all.negate(self.inner(place, "not"))

    def _if(self, place: Place) -> Iterator[Formula]:
        if "if" in place.schema:
            test = self.inner(place, "if")
            then, other = (self.inner(place, word) if word in place.schema else self._all.true for word in ("then", "else"))
            yield self._all.any([self._all.all([test, then]), self._all.all([self._all.negate(test), other])])

    def _unevaluated(self, place: Place) -> Iterator[Formula]:
        """As "additionalProperties" and "items", where no value changes what the schemas beside them are about."""
        true = self._all.true
        for word in ("unevaluatedProperties", "unevaluatedItems"):
            if word not in place.schema or (wanted := self.inner(place, word)) is true:
                continue
            of = evaluated(self, place, word)
            if of.everything:
                continue
            if word == "unevaluatedItems":
                yield self.only("array", "items", (true,) * of.items, wanted)
            else:
                patterns = tuple((self.pattern(one, word, place.where), true) for one in of.patterns)
                yield self.only("object", "part", tuple((key, true) for key in of.names), patterns, wanted)

    def _dynamic(self, place: Place) -> Iterator[Formula]:
        word = "$dynamicRef" if "$dynamicRef" in place.schema else "$recursiveRef"
        raise GrammarError("references that depend on where they are used from are not supported", word, place.where)


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
