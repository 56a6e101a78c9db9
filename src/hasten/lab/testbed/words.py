"""Words that tasks draw their keys, values, names and filler sentences from."""

from __future__ import annotations

import random
from collections.abc import Callable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    """
    amber ancient bitter blue bold brave brief bright broken calm clever cold crimson curly damp dark deep distant dry
    dusty early eager empty faint fast fierce flat fresh frozen gentle giant golden grand green grey hidden hollow honest hot
    humble iron ivory jolly keen large late lazy light little lively lonely long loud lucky mellow mighty misty modern narrow
    neat noble odd old open orange pale patient plain polite proud purple quick quiet rapid rare red rough round royal rusty
    scarlet secret sharp short shy silent silver simple slow small smooth soft solid sour spare steady steep still strange
    strong sunny sweet swift tall tame thin tidy tiny tired velvet violet warm weak white wide wild wise wooden yellow young
    """
)
NOUNS = _words(
    """
    acorn anchor apple arrow badge banner barn basket beacon bell bench bird blanket boat book bottle bowl branch bridge brush
    bucket button cabin camel candle canyon carpet castle cat chain chair cheese circle cliff clock cloud coin compass copper
    cottage cradle crown crystal cup curtain desert desk dog dolphin door dragon drum eagle engine falcon feather fence field
    finger fire flag flame flower flute forest fountain fox garden gate glass glove goose grain hammer harbor hat hawk helmet
    hill honey horn horse house island jacket jar jewel kettle key kitten knife ladder lake lamp lantern leaf lemon letter
    lion lizard lock magnet maple market marble meadow melon mirror monkey moon mountain mouse needle nest oak ocean olive
    onion otter owl paddle page palace panther paper pebble pencil pepper piano pigeon pillow pine pirate planet plate pocket
    pony potato prism pumpkin puzzle queen rabbit raven ribbon ring river robin rocket roof root rope rose saddle sailor
    salmon sand scarf school shadow shell shield ship shoe shovel sister snake soap sparrow spider spoon spring star stone
    storm stove street sugar summer sword table temple thread thunder ticket tiger tower train tree trumpet tulip tunnel
    turtle umbrella valley vase village violin wagon wall walnut water wheel whistle window winter wolf wood zebra
    """
)
NAMES = _words(
    """
    Alice Amir Anna Boris Carla Chen Clara Daniel David Diego Elena Emma Erik Fatima Felix Grace Hanna Hugo Ines Ivan Jack
    James Jana Julia Kofi Lars Laura Leo Lina Louis Lucy Maria Marta Max Mei Mia Milan Nadia Nina Noah Nora Olga Omar Oscar
    Paula Pedro Peter Priya Rafael Rosa Ruth Sam Sara Simon Sofia Stefan Tara Thomas Tom Uma Vera Victor Wendy Yuki Zoe
    """
)
CITIES = _words(
    """
    Athens Bergen Berlin Bogota Boston Cairo Chicago Dakar Delhi Dublin Geneva Hamburg Havana Helsinki Istanbul Kyoto Lagos
    Lima Lisbon London Madrid Manila Milan Moscow Mumbai Munich Nairobi Naples Oslo Paris Prague Quito Rome Seattle Seoul
    Sydney Tokyo Toronto Vienna Warsaw Zurich
    """
)
VERBS = _words("built carried cleaned drew found followed kept left moved opened painted passed saw sold watched wrote")
PLACES = _words("across behind beside inside near outside past under")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


def number(rng: random.Random, digits: int) -> str:
    """A number of exactly so many digits."""
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def pair(rng: random.Random) -> str:
    """Two words, as in `amber falcon`."""
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def code(rng: random.Random) -> str:
    """Letters and digits, as in `QX-381`."""
    return f"{rng.choice(LETTERS)}{rng.choice(LETTERS)}-{number(rng, 3)}"


def sentence(rng: random.Random) -> str:
    """A plain sentence that means nothing much."""
    subject = rng.choice((f"The {pair(rng)}", rng.choice(NAMES), f"The {rng.choice(NOUNS)}"))
    return f"{subject} {rng.choice(VERBS)} the {pair(rng)} {rng.choice(PLACES)} the {rng.choice(NOUNS)}."


def distinct(rng: random.Random, count: int, draw: Callable[[random.Random], str]) -> list[str]:
    """`count` different results of `draw(rng)`."""
    seen: dict[str, None] = {}
    while len(seen) < count:
        seen[draw(rng)] = None
    return list(seen)
