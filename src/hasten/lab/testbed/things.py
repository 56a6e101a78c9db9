"""Kinds of things with facts about them that can be said in a sentence and written in JSON."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hasten.lab.testbed import words
from hasten.lab.testbed.tasks.base import Wordings

Draw = Callable[[random.Random], Any]

LAST_NAMES = "Adams Baker Brown Cooper Costa Fischer Garcia Hall Jensen Khan Lopez Meyer Novak Rossi Silva Smith Wood Young"
JOBS = "baker, carpenter, chemist, cook, dentist, doctor, driver, farmer, nurse, painter, pilot, singer, teacher, writer"
LANGUAGES = (
    "Arabic, Chinese, Dutch, English, French, German, Greek, Hindi, Italian, Japanese, Polish, Russian, Spanish, Turkish"
)
ANIMALS = "cat, dog, goose, hawk, horse, monkey, pony, rabbit, snake, turtle"
FOODS = "apples, beans, bread, butter, carrots, cheese, eggs, fish, honey, lemons, milk, nuts, onions, rice, salt, sugar"
COLOURS = "black, blue, brown, green, grey, orange, pink, purple, red, white, yellow"
MATERIALS = "brass, cotton, glass, gold, iron, leather, paper, plastic, silk, silver, steel, wood, wool"
TOPICS = "art, film, food, health, history, music, nature, politics, science, sport, travel, war"


@dataclass(frozen=True)
class Fact:
    """One field: the names it may have, its JSON schema, its values, and predicates that tell it (`{}` is the value)."""

    names: tuple[str, ...]
    schema: Mapping[str, Any]
    draw: Draw
    told: Wordings


@dataclass(frozen=True)
class Kind:
    """A sort of thing. `title` draws what it is called, `titled` says it, `later` is the subject of later sentences."""

    title_names: tuple[str, ...]
    title: Draw
    titled: str
    later: str
    facts: tuple[Fact, ...]


def told(value: Any) -> str:
    """A value as a predicate says it; of a boolean, only whether a ` not` is put in."""
    if isinstance(value, bool):
        return "" if value else " not"
    if isinstance(value, list):
        return f"{', '.join(value[:-1])} and {value[-1]}"
    return str(value)


def _fact(names: str, schema: Mapping[str, Any], draw: Draw, train: str, held_out: str) -> Fact:
    return Fact(tuple(names.split("/")), schema, draw, Wordings(tuple(train.split("; ")), tuple(held_out.split("; "))))


def _text(names: str, values: str | Draw, train: str, held_out: str) -> Fact:
    pool = values.split(", ") if isinstance(values, str) else None
    draw = values if not isinstance(values, str) else lambda rng: rng.choice(pool)
    return _fact(names, {"type": "string"}, draw, train, held_out)


def _integer(names: str, low: int, high: int, train: str, held_out: str, step: int = 1) -> Fact:
    return _fact(names, {"type": "integer"}, lambda rng: rng.randrange(low, high, step), train, held_out)


def _boolean(names: str, train: str, held_out: str) -> Fact:
    return _fact(names, {"type": "boolean"}, lambda rng: rng.random() < 0.5, train, held_out)


def _enum(names: str, values: str, train: str, held_out: str) -> Fact:
    choices = values.split(", ")
    return _fact(names, {"enum": choices}, lambda rng: rng.choice(choices), train, held_out)


def _array(names: str, values: str, train: str, held_out: str) -> Fact:
    pool = values.split(", ")
    schema = {"type": "array", "items": {"type": "string"}}
    return _fact(names, schema, lambda rng: rng.sample(pool, rng.randint(2, 3)), train, held_out)


def _person(rng: random.Random) -> str:
    return f"{rng.choice(words.NAMES)} {rng.choice(LAST_NAMES.split())}"


def _heading(rng: random.Random) -> str:
    return words.pair(rng).title()


def _city(rng: random.Random) -> str:
    return rng.choice(words.CITIES)


PERSON = Kind(
    ("name", "person"), _person, "{}", "{first}",
    (
        _integer("age/years", 18, 90, "is {} years old; turned {} this year; is aged {}", "is now {} years old"),
        _text("city/home", _city, "lives in {}; has a home in {}; is living in {}", "has a house in {}; now lives in {}"),
        _text("job/work", JOBS, "works as a {}; is a {}; has a job as a {}", "earns money as a {}; is working as a {}"),
        _boolean("married", "is{} married; has{} been married", "is{} a married person"),
        _array("languages/speaks", LANGUAGES, "speaks {}; can speak {}; knows {}", "talks in {}; speaks the languages {}"),
        _enum("level/skill", "beginner, expert, student", "is at the level of {}; has the level {}", "counts as {} level"),
        _integer("room", 100, 500, "sits in room {}; has room {}; can be found in room {}", "is found in room {}"),
    ),
)  # fmt: skip
ORDER = Kind(
    ("order", "id"), words.code, "Order {}", "It",
    (
        _text("customer/buyer", _person, "was placed by {}; came from {}; belongs to {}", "was made by {}; comes from {}"),
        _integer("quantity/count", 2, 60, "has {} pieces; is for {} pieces; contains {} pieces", "holds {} pieces"),
        _integer("price/total", 5, 900, "costs {} euros; has a price of {} euros; comes to {} euros", "is worth {} euros"),
        _enum("status/state", "open, sent, lost, returned", "is marked as {}; has the status {}; is now {}", "is listed as {}"),
        _boolean("paid", "is{} paid; has{} been paid; was{} paid", "is{} yet paid"),
        _text("city/address", _city, "goes to {}; will be sent to {}; is going to {}", "travels to {}; must go to {}"),
        _array("colors/colours", COLOURS, "comes in {}; is wanted in {}; is for the colors {}", "should be in {}"),
    ),
)  # fmt: skip
BOOK = Kind(
    ("title", "book"), _heading, "The book {}", "It",
    (
        _text("author/writer", _person, "was written by {}; is by {}; is the work of {}", "is a work by {}"),
        _integer("pages/length", 60, 900, "has {} pages; is {} pages long; runs to {} pages", "fills {} pages"),
        _integer("year/published", 1900, 2025, "came out in {}; appeared in {}; was published in {}", "was printed in {}"),
        _enum("genre/type", "crime, drama, poetry, fantasy", "belongs to {}; is read as {}; counts as {}", "is sold as {}"),
        _boolean("translated", "was{} translated; has{} been translated; is{} translated", "is{} a translated work"),
        _array("topics/subjects", TOPICS, "is about {}; deals with {}; talks about {}", "tells of {}; treats {}"),
    ),
)  # fmt: skip
COMPANY = Kind(
    ("company", "name"), _heading, "The company {}", "It",
    (
        _text("city/location", _city, "has its office in {}; is based in {}; sits in {}", "has its seat in {}; works from {}"),
        _integer("founded/since", 1900, 2025, "was founded in {}; began in {}; was started in {}", "dates from {}"),
        _integer("employees/staff", 10, 5000, "has {} employees; employs {} people; has a staff of {}", "gives work to {}"),
        _text("director/head", _person, "is led by {}; is run by {}; has {} as its head", "is headed by {}; is directed by {}"),
        _enum("field/sector", "energy, finance, health, travel", "works in {}; is active in {}; does {}", "is busy in {}"),
        _boolean("public/listed", "is{} listed; has{} been listed", "was{} listed"),
        _array("materials/products", MATERIALS, "sells {}; makes things of {}; trades in {}", "deals in {}; offers {}"),
    ),
)  # fmt: skip
PRODUCT = Kind(
    ("product", "item"), words.pair, "The {}", "It",
    (
        _integer("price/cost", 2, 900, "costs {} euros; sells for {} euros; has a price of {} euros", "is worth {} euros"),
        _integer("weight/grams", 20, 5000, "weighs {} grams; has a weight of {} grams", "comes to {} grams", step=10),
        _text("color/colour", COLOURS, "is {}; comes in {}; is painted {}", "is sold in {}; has the color {}"),
        _enum("size", "small, medium, large", "has the size {}; comes in size {}; is of size {}", "is sold in size {}"),
        _boolean("available/stock", "is{} in stock; is{} available; was{} in stock", "is{} there to buy"),
        _array("materials/parts", MATERIALS, "is made of {}; contains {}; was built from {}", "is put together from {}"),
        _text("maker/designer", _person, "was made by {}; is made by {}; was designed by {}", "was built by {}; comes from {}"),
    ),
)  # fmt: skip
EVENT = Kind(
    ("event", "name"), _heading, "The event {}", "It",
    (
        _text("city/place", _city, "takes place in {}; will be held in {}; is in {}", "happens in {}; can be seen in {}"),
        _enum("day/date", "Monday, Tuesday, Thursday, Friday, Sunday", "is on {}; starts on {}; begins on {}", "opens on {}"),
        _integer("guests/visitors", 20, 2000, "expects {} guests; has {} guests; is for {}", "awaits {} guests", step=10),
        _text("host/speaker", _person, "is hosted by {}; is led by {}; has {} as its host", "will be hosted by {}"),
        _boolean("free", "is{} free; will{} be free; was{} free", "is{} open for free"),
        _array("topics/themes", TOPICS, "is about {}; deals with {}; covers {}", "turns on {}; treats {}"),
        _integer("hours/length", 2, 30, "lasts {} hours; goes on for {} hours; takes {} hours", "runs for {} hours"),
    ),
)  # fmt: skip
PET = Kind(
    ("pet", "name"), lambda rng: rng.choice(words.NAMES), "The pet {}", "{first}",
    (
        _text("animal/species", ANIMALS, "is a {}; was born a {}; belongs to the {} family", "looks like a {}; is called a {}"),
        _integer("age/years", 2, 30, "is {} years old; turned {} this year; is aged {}", "is now {} years old"),
        _text("owner/keeper", _person, "belongs to {}; lives with {}; is kept by {}", "is owned by {}; stays with {}"),
        _boolean("trained/tame", "is{} trained; has{} been trained; was{} trained", "is{} well trained"),
        _array("food/eats", FOODS, "eats {}; likes {}; is fed with {}", "lives on {}; enjoys {}"),
        _enum("mood/state", "calm, happy, sick, tired", "seems {}; feels {} today; is often {}", "looks {}; was {} today"),
        _text("color/colour", COLOURS, "has {} hair; wears a {} band", "carries a {} band; has a {} band"),
    ),
)  # fmt: skip
RECIPE = Kind(
    ("recipe", "dish"), _heading, "The recipe {}", "It",
    (
        _integer("servings/people", 2, 20, "serves {} people; is for {} people; feeds {} people", "is enough for {} people"),
        _integer("minutes/time", 5, 180, "takes {} minutes; is ready in {} minutes; needs {} minutes", "is done in {} minutes"),
        _enum("difficulty/level", "easy, normal, hard", "is rated {}; has the level {}; is {} to make", "is {} to cook"),
        _boolean("sweet", "is{} sweet; was{} sweet", "is{} a sweet dish"),
        _array("ingredients/contains", FOODS, "uses {}; contains {}; is made with {}", "calls for {}; is cooked with {}"),
        _text("cook/author", _person, "comes from {}; was written by {}; is by {}", "was sent by {}; is a work by {}"),
    ),
)  # fmt: skip
KINDS = (PERSON, ORDER, BOOK, COMPANY, PRODUCT, EVENT, PET, RECIPE)
