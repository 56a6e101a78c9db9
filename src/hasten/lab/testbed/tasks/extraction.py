"""Facts in a text, written as JSON for a schema that is drawn anew each time."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hasten.lab.testbed import json_check
from hasten.lab.testbed.document import END_OF_TURN, turn
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import ANSWERING, Example, Lesson, Piece, Split, Task, Wordings, conversation
from hasten.lab.testbed.things import KINDS, Kind, told

MOST_FIELDS = 6
BOOLEAN = {"type": "boolean"}
PLAIN = "is listed with {}: {{}}"
IN_PLAIN_WORDS = 0.4
"""The share of facts that are told with the field's own name, which need no understanding to be found."""
QUESTIONS = 3
"""How many schemas a lesson asks about one text."""
REQUESTS = Wordings(
    train=(
        "{text}\n\nWrite this as JSON for the schema {schema}",
        "{text}\n\nExtract the facts as JSON. Schema: {schema}",
        "{text}\n\nGive the facts as JSON with this schema: {schema}",
        "{text}\n\nFill this JSON schema from the text: {schema}",
        "{text}\n\nAnswer with JSON that fits this schema: {schema}",
        "Read the text and write JSON.\nText: {text}\nSchema: {schema}",
        "Extract JSON from the text.\nSchema: {schema}\nText: {text}",
        "Text: {text}\n\nJSON schema: {schema}\n\nWhat is the JSON?",
        "Schema: {schema}\n\nText: {text}\n\nWrite the JSON.",
    ),
    held_out=(
        "{text}\n\nPut these facts into JSON with the schema {schema}",
        "Give me JSON for the text.\nText: {text}\nSchema: {schema}",
        "Text: {text}\n\nSchema: {schema}\n\nAnswer with the JSON.",
    ),
)
AGAIN = ("And for the schema {schema}", "Now with this schema: {schema}", "Schema: {schema}", "The same for {schema}")


@dataclass(frozen=True)
class Extraction(Task):
    """fields: how many properties the schema has (1 to 6)."""

    name: ClassVar[str] = "json"
    about: ClassVar[str] = "write the facts of a text as JSON for a drawn schema"
    metrics: ClassVar[tuple[str, ...]] = ("exact", "valid")
    fields: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.fields <= MOST_FIELDS:
            raise ValueError(f"json: fields is {self.fields}; it must be from 1 to {MOST_FIELDS}")

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        thing = _Thing.drawn(rng, split, self.fields)
        schema, values = thing.question(rng, self.fields)
        user = REQUESTS.pick(rng, split).format(text=thing.text, schema=json.dumps(schema))
        # Twice the longest answer that six fields can make.
        return conversation(
            user, json.dumps(values), expected={"schema": schema, "values": values}, max_tokens=32 * self.fields
        )

    def score(self, example: Example, output: str) -> dict[str, float]:
        try:
            written = json_check.parse(output.rpartition("</think>")[2].strip())
        except ValueError:
            return {"exact": 0.0, "valid": 0.0}
        exact = json_check.same(written, example.expected["values"])
        return {"exact": float(exact), "valid": float(json_check.conforms(written, example.expected["schema"]))}

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        thing = _Thing.drawn(rng, "train", self.fields)
        pieces: list[Piece] = []
        for number in range(QUESTIONS):
            schema, values = thing.question(rng, self.fields)
            wording = rng.choice(AGAIN) if number else REQUESTS.pick(rng, "train")
            user = wording.format(text=thing.text, schema=json.dumps(schema))
            pieces.append(Piece(("\n" if number else "") + turn("user", user) + ANSWERING, False))
            pieces.append(Piece(json.dumps(values) + END_OF_TURN, True))
        return tuple(pieces)

    def easier(self, rng: random.Random, tokens: int) -> Extraction:
        # A question takes about 40 tokens a field, and the text about as much again as one question.
        return replace(self, fields=rng.randint(1, max(1, min(self.fields, tokens // 128))))


@dataclass(frozen=True)
class _Thing:
    """One thing: its values by field name, their schemas, and the text that tells them."""

    values: Mapping[str, Any]
    schemas: Mapping[str, Mapping[str, Any]]
    text: str

    @classmethod
    def drawn(cls, rng: random.Random, split: Split, fields: int) -> _Thing:
        """With at least one fact more than is asked for, where the kind has so many."""
        kind: Kind = rng.choice(KINDS)
        title = kind.title(rng)
        name = rng.choice(kind.title_names)
        values: dict[str, Any] = {name: title}
        schemas: dict[str, Mapping[str, Any]] = {name: {"type": "string"}}
        predicates: list[str] = []
        for fact in rng.sample(kind.facts, min(len(kind.facts), max(2, fields + rng.randint(0, 1)))):
            name = rng.choice([n for n in fact.names if n not in values])
            values[name], schemas[name] = fact.draw(rng), fact.schema
            wording = (
                PLAIN.format(name) if rng.random() < IN_PLAIN_WORDS and fact.schema != BOOLEAN else fact.told.pick(rng, split)
            )
            predicates.append(wording.format(told(values[name])))
        return cls(values, schemas, _text(rng, kind, title, predicates))

    def question(self, rng: random.Random, fields: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """A schema of so many fields in random order, and the object that answers it."""
        chosen = rng.sample(sorted(self.values), fields)
        properties = {name: self.schemas[name] for name in chosen}
        schema = {"type": "object", "properties": properties, "required": chosen}
        return schema, {name: self.values[name] for name in chosen}


def _text(rng: random.Random, kind: Kind, title: str, predicates: list[str]) -> str:
    """One or two predicates a sentence; only the first says the title in full."""
    later = kind.later.format(first=title.split()[0])
    sentences: list[str] = []
    while predicates:
        count = rng.randint(1, 2)
        taken, predicates = predicates[:count], predicates[count:]
        sentences.append(f"{later if sentences else kind.titled.format(title)} {' and '.join(taken)}.")
    return " ".join(sentences)


TASK = Extraction
