"""Ways to ask for a sum: as an expression, or as a story of somebody who gets things and gives some away."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hasten.lab.testbed import words
from hasten.lab.testbed.tasks.base import Split, Wordings

Terms = tuple[int, ...]
"""The numbers to add up, those to be taken away negative; the first is positive."""

EXPRESSIONS = Wordings(
    train=(
        "What is {sum}?",
        "Compute {sum}.",
        "Calculate {sum}.",
        "How much is {sum}?",
        "Work out {sum}.",
        "What does {sum} make?",
        "Find the value of {sum}.",
        "I need the result of {sum}.",
        "{sum} = ?",
        "{sum}",
    ),
    held_out=("What is the result of {sum}?", "Find {sum}.", "Please compute {sum}.", "How much does {sum} make?"),
)
A_STORY = 0.25
THINGS = tuple(
    "apple book button card coin cookie egg flower lemon marble pencil plate ring shell stamp stone ticket".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Story:
    """Sentences about `who`, `things` and a number `n`."""

    start: str
    gain: str
    loss: str
    question: str

    def tell(self, who: str, thing: str, terms: Terms) -> str:
        said = [self.start.format(who=who, n=terms[0], things=thing if terms[0] == 1 else thing + "s")]
        said += [(self.gain if term > 0 else self.loss).format(n=abs(term)) for term in terms[1:]]
        return f"{', '.join(said)}. {self.question.format(who=who, things=thing + 's')}"


STORIES_TO_LEARN = (
    Story("{who} has {n} {things}", "gets {n} more", "gives away {n}", "How many {things} does {who} have?"),
    Story("{who} has {n} {things}", "buys {n} more", "sells {n}", "How many {things} does {who} have now?"),
    Story("{who} owns {n} {things}", "finds {n} more", "loses {n}", "How many {things} are left?"),
    Story("{who} counts {n} {things}", "adds {n}", "takes away {n}", "How many {things} are there now?"),
    Story("There are {n} {things} in a box", "{n} come in", "{n} go out", "How many {things} are in the box?"),
)
STORIES_HELD_OUT = (
    Story("{who} owns {n} {things}", "gets {n} more", "sells {n}", "How many {things} does {who} own now?"),
    Story("{who} has {n} {things} in a box", "adds {n} more", "loses {n}", "How many {things} are there?"),
)


def ask(rng: random.Random, split: Split, terms: Terms) -> str:
    """A question of which the answer is the sum of the terms."""
    if rng.random() < A_STORY:
        story = rng.choice(STORIES_TO_LEARN if split == "train" else STORIES_HELD_OUT)
        return story.tell(rng.choice(words.NAMES), rng.choice(THINGS), terms)
    tight = "".join(f"{term:+}" for term in terms).removeprefix("+")
    spaced = tight.replace("+", " + ").replace("-", " - ")
    return EXPRESSIONS.pick(rng, split).format(sum=rng.choice((tight, spaced)))
