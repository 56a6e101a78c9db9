"""Functions that a model may be offered as tools: their parameters, and how people ask for what they do."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hasten.lab.testbed import words
from hasten.lab.testbed.tasks.base import Wordings

FOODS = "apples bread butter cheese coffee eggs fish flour honey lemons milk nuts onions rice soap sugar tea".split()  # noqa: SIM905
ROOMS = "attic bathroom bedroom cellar garage garden hall kitchen office".split()  # noqa: SIM905
SUBJECTS = "budget contract dinner holiday invoice meeting order party plan report travel visit".split()  # noqa: SIM905
CHORES = ["call the bank", "feed the cat", "buy bread", "pay the rent", "clean the house", "water the garden", "wash the car"]
LANGUAGES = "Dutch English French German Greek Italian Polish Russian Spanish".split()  # noqa: SIM905


@dataclass(frozen=True)
class Parameter:
    """One parameter: the names it may have, its JSON schema, and its values."""

    names: tuple[str, ...]
    schema: Mapping[str, Any]
    draw: Callable[[random.Random], Any]


@dataclass(frozen=True)
class Function:
    """A function under one of several names; its parameters are keyed by the word that stands for them in `requests`."""

    names: tuple[str, ...]
    about: str
    parameters: Mapping[str, Parameter]
    requests: Wordings


def _text(names: str, draw: Callable[[random.Random], str]) -> Parameter:
    return Parameter(tuple(names.split()), {"type": "string"}, draw)


def _pick(names: str, values: list[str]) -> Parameter:
    return _text(names, lambda rng: rng.choice(values))


def _enum(names: str, values: str) -> Parameter:
    choices = values.split()
    return Parameter(tuple(names.split()), {"enum": choices}, lambda rng: rng.choice(choices))


def _integer(names: str, low: int, high: int) -> Parameter:
    return Parameter(tuple(names.split()), {"type": "integer"}, lambda rng: rng.randint(low, high))


def _function(names: str, about: str, requests: str, held_out: str, **parameters: Parameter) -> Function:
    return Function(tuple(names.split()), about, parameters, Wordings(tuple(requests.split("; ")), tuple(held_out.split("; "))))


_NAME = _text("name person contact", lambda rng: rng.choice(words.NAMES))
_CITY = _text("city town place", lambda rng: rng.choice(words.CITIES))
_NOUN = _text("item thing object", lambda rng: rng.choice(words.NOUNS))

FUNCTIONS = (
    _function(
        "get_weather weather_for lookup_weather", "Get the weather of a city",
        "What is the weather in {city} in {unit}?; Tell me the weather in {city} in {unit}.; "
        "How warm is it in {city}, in {unit}?; "
        "Use {unit} and tell me how the weather is in {city}.; Is it cold in {city}? Use {unit}.",
        "Give me the weather of {city} in {unit}.; How cold is it in {city} in {unit}?",
        city=_CITY, unit=_enum("unit scale degrees", "celsius fahrenheit"),
    ),
    _function(
        "send_email write_mail send_message", "Send a message to a person",
        "Send {name} a message about the {subject}.; Write to {name} about the {subject}.; "
        "Send a mail to {name}, subject {subject}.; "
        "I must write to {name}. The subject is {subject}.; Let {name} know about the {subject}.",
        "Write {name} a mail on the {subject}.; Please tell {name} about the {subject} in a message.",
        name=_text("to receiver recipient", lambda rng: rng.choice(words.NAMES)),
        subject=_pick("subject title about", SUBJECTS),
    ),
    _function(
        "set_timer start_timer new_timer", "Start a timer",
        "Set a timer of {minutes} minutes for the {label}.; Start a {label} timer for {minutes} minutes.; "
        "The {label} needs {minutes} minutes, start a timer.; I need a timer called {label} of {minutes} minutes.",
        "Start a timer of {minutes} minutes called {label}.; Time {minutes} minutes for the {label}.",
        minutes=_integer("minutes time duration", 1, 90), label=_pick("label name title", FOODS),
    ),
    _function(
        "add_reminder remind_me set_reminder", "Add a reminder",
        "Remind me to {task} at {hour}.; At {hour} I have to {task}, remind me.; Add a reminder at {hour}: {task}.; "
        "I must not forget to {task} at {hour}.; Make me {task} at {hour}.",
        "Remind me at {hour} to {task}.; Please do not let me forget to {task} at {hour}.",
        task=_pick("task text what", CHORES), hour=_integer("hour time at", 6, 22),
    ),
    _function(
        "play_music start_song play_song", "Play music",
        "Play {song} at volume {volume}.; I want to hear {song} at volume {volume}.; Put on {song}, volume {volume}.; "
        "Set the volume to {volume} and play {song}.",
        "Let me hear {song} at volume {volume}.; Start {song} with the volume at {volume}.",
        song=_text("song title track", lambda rng: words.pair(rng).title()), volume=_integer("volume level loudness", 1, 10),
    ),
    _function(
        "translate_text translate say_in", "Translate a word",
        'Translate "{text}" to {language}.; What is "{text}" in {language}?; How do you say "{text}" in {language}?; '
        'Say "{text}" in {language}.; I need the {language} word for "{text}".',
        'Put "{text}" into {language}.; What do they call "{text}" in {language}?',
        text=_text("text word phrase", words.pair), language=_pick("language target to", LANGUAGES),
    ),
    _function(
        "book_table reserve_table get_table", "Book a table in a restaurant",
        "Book a table for {people} people in {city}.; We are {people} people and want to eat in {city}.; "
        "Get me a table in {city} for {people}.; I need a table for {people} in {city}.",
        "Reserve a table in {city} for {people} people.; Find us a table in {city}, we are {people}.",
        people=_integer("people guests seats", 2, 12), city=_CITY,
    ),
    _function(
        "find_train search_trains train_to", "Find a train between cities",
        "Find a train from {start} to {end}.; I want to go from {start} to {end} by train.; "
        "Which train goes from {start} to {end}?; "
        "I am in {start} and need a train to {end}.",
        "Is there a train from {start} to {end}?; Look for a train that goes from {start} to {end}.",
        start=_text("start from origin", lambda rng: rng.choice(words.CITIES[:20])),
        end=_text("end to destination", lambda rng: rng.choice(words.CITIES[20:])),
    ),
    _function(
        "add_to_cart buy_item order_item", "Buy things in the shop",
        "Order {count} times {item}.; Buy {count} of {item}.; Put {count} times {item} in the cart.; "
        "I want {count} times {item}.; "
        "I need {item}, {count} of it.",
        "Please get me {count} times {item}.; Add {count} of {item} to the order.",
        item=_pick("item product thing", FOODS), count=_integer("count quantity number", 2, 20),
    ),
    _function(
        "set_light switch_light change_light", "Set the light of a room",
        "Turn the light in the {room} {state}.; Switch the {room} light {state}.; Make the light in the {room} go {state}.; "
        "The {room} light should be {state}.",
        "Turn {state} the light in the {room}.; Put the {room} light {state}.",
        room=_pick("room place where", ROOMS), state=_enum("state mode switch", "on off"),
    ),
    _function(
        "set_heating heat_room set_temperature", "Set the temperature of a room",
        "Heat the {room} to {degrees} degrees.; Make it {degrees} degrees in the {room}.; "
        "The {room} should have {degrees} degrees.; "
        "Set the heating of the {room} to {degrees}.; I want {degrees} degrees in the {room}.",
        "Set the {room} to {degrees} degrees.; Warm the {room} up to {degrees} degrees.",
        room=_pick("room place where", ROOMS), degrees=_integer("degrees temperature value", 15, 28),
    ),
    _function(
        "convert_money exchange change_money", "Convert an amount of money",
        "How much is {amount} euros in {currency}?; Convert {amount} euros to {currency}.; "
        "Change {amount} euros into {currency}.; "
        "I have {amount} euros and want {currency}.",
        "What are {amount} euros in {currency}?; Give me {currency} for {amount} euros.",
        amount=_integer("amount euros sum", 5, 900), currency=_enum("currency target to", "dollars pounds yen francs"),
    ),
    _function(
        "call_contact phone_call call", "Call a person by phone",
        "Call {name} on the {line} phone.; Phone {name} at the {line} number.; I want to talk to {name} on the {line} phone.; "
        "Use the {line} number to call {name}.",
        "Ring {name} on the {line} phone.; Give {name} a call at the {line} number.",
        name=_NAME, line=_enum("line number phone", "home work mobile"),
    ),
    _function(
        "create_note save_note write_note", "Save a note",
        'Make a {color} note: "{text}".; Write "{text}" on a {color} note.; Save the note "{text}" in {color}.; '
        'I need a {color} note that says "{text}".; Note "{text}", in {color}.',
        'Put "{text}" on a {color} note.; Keep "{text}" as a {color} note.',
        text=_text("text content words", words.pair), color=_enum("color colour paint", "red blue green yellow"),
    ),
    _function(
        "find_object where_is search_home", "Find where a thing is",
        "Where in the {room} is the {item}?; Look for the {item} in the {room}.; I have lost the {item}, search the {room}.; "
        "Is the {item} in the {room}?; Find the {item} in the {room}.",
        "Search the {room} for the {item}.; Can you see the {item} in the {room}?",
        item=_NOUN, room=_pick("room place where", ROOMS),
    ),
    _function(
        "roll_dice throw_dice random_dice", "Roll dice",
        "Roll {count} dice with {sides} sides.; Throw {count} dice that have {sides} sides.; "
        "I want to roll {count} dice of {sides} sides.; "
        "Give me {count} dice with {sides} sides each and roll them.",
        "Throw {count} dice of {sides} sides.; Let {count} dice with {sides} sides roll.",
        count=_integer("count number dice", 2, 9), sides=_integer("sides faces size", 4, 20),
    ),
)  # fmt: skip
