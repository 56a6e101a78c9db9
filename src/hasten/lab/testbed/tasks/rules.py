"""In-context rules: each word stands for a digit, which only the examples in the prompt tell.

The words' digits are drawn anew for every prompt, so nothing can be known by heart ("Larger language models do in-context
learning differently", Wei et al., 2023, calls them semantically unrelated labels). Asked is a combination never shown.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from hasten.lab.testbed import words
from hasten.lab.testbed.document import END_OF_TURN, turn
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import ANSWERING, Example, Lesson, Piece, Split, Task, Wordings, conversation

SYMBOLS = tuple(dict.fromkeys(words.ADJECTIVES + words.NOUNS))
MOST_SYMBOLS = 20
QUESTIONS_A_LESSON = 4
TOKENS_A_SHOT = 16

# A space stands before every symbol, so that a word is always spelt with the same tokens.
SHOTS = Wordings(
    train=("- {left} -> {right}", "- {left} = {right}", "- {left} : {right}", "* {left} => {right}", "* {left} = {right}"),
    held_out=("- {left} => {right}", "* {left} -> {right}"),
)
QUESTIONS = Wordings(
    train=(
        "What is {left}?",
        "Which digits are {left}?",
        "What does {left} give?",
        "What do we get for {left}?",
        "Write the digits for {left}.",
        "Tell me the digits of {left}.",
        "Do the same with {left}.",
        "Continue with {left}.",
        "And {left}?",
    ),
    held_out=("What are the digits of {left}?", "Which digits do we get for {left}?", "Do the same for {left}."),
)

Pair = tuple[str, str]


@dataclass(frozen=True)
class Rules(Task):
    """shots: examples in the prompt, fewer than there are ordered pairs of symbols. symbols: 2 to 20 words, each with its
    digit; two may have the same."""

    name = "rules"
    about = "a rule that only the prompt's examples tell"

    shots: int = 8
    symbols: int = 6

    def __post_init__(self) -> None:
        if not 2 <= self.symbols <= MOST_SYMBOLS:
            raise ValueError(f"rules: symbols must be between 2 and {MOST_SYMBOLS}, got {self.symbols}")
        pairs = self.symbols * (self.symbols - 1)
        if not 1 <= self.shots < pairs:
            raise ValueError(
                f"rules: {self.symbols} symbols make {pairs} pairs; shots must be between 1 and {pairs - 1}, got {self.shots}"
            )

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        digits, shown, fresh = self._draw(rng)
        shot = SHOTS.pick(rng, split)
        lines = [shot.format(left=" ".join(pair), right=_right(digits, pair)) for pair in shown]
        asked = rng.choice(fresh)
        question = QUESTIONS.pick(rng, split).format(left=" ".join(asked))
        return conversation("\n".join(lines) + f"\n\n{question}", _right(digits, asked), max_tokens=8)

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        """Learnt are the digits of every word that an earlier line has shown, and of new combinations asked for at the end."""
        digits, shown, fresh = self._draw(rng)
        shot = SHOTS.pick(rng, "train").removesuffix("{right}")
        pieces = [Piece(turn("user", "").removesuffix(END_OF_TURN + "\n"), False)]
        known: set[str] = set()
        for pair in shown:
            pieces.append(Piece(shot.format(left=" ".join(pair)), False))
            pieces += [Piece(digits[symbol], symbol in known) for symbol in pair]
            pieces.append(Piece("\n", False))
            known.update(pair)
        for number, pair in enumerate(rng.sample(fresh, min(QUESTIONS_A_LESSON, len(fresh)))):
            question = QUESTIONS.pick(rng, "train").format(left=" ".join(pair))
            asked = f"\n{question}{END_OF_TURN}\n" if number == 0 else "\n" + turn("user", question)
            pieces += [Piece(asked + ANSWERING, False), Piece(_right(digits, pair) + END_OF_TURN, True)]
        return _joined(pieces)

    def easier(self, rng: random.Random, tokens: int) -> Rules:
        """From three symbols to more than this task's, with as many examples as the tokens hold, or fewer."""
        symbols = rng.randint(3, min(MOST_SYMBOLS, self.symbols + 4))
        most = max(1, min(40, tokens // TOKENS_A_SHOT - 8, symbols * (symbols - 1) - 1))
        return Rules(rng.randint(min(symbols, most), most), symbols)

    def _draw(self, rng: random.Random) -> tuple[dict[str, str], list[Pair], list[Pair]]:
        """Each symbol's digit, the pairs to show, and those that are not shown though both their symbols are."""
        symbols = rng.sample(SYMBOLS, self.symbols)
        digits = {symbol: str(rng.randrange(10)) for symbol in symbols}
        pairs = list(itertools.permutations(symbols, 2))
        while True:
            shown = rng.sample(pairs, self.shots)
            seen = set(itertools.chain.from_iterable(shown))
            fresh = sorted(set(itertools.permutations(sorted(seen), 2)) - set(shown))
            if fresh:
                return digits, shown, fresh


def _right(digits: dict[str, str], pair: Pair) -> str:
    return "".join(digits[symbol] for symbol in pair)


def _joined(pieces: list[Piece]) -> Lesson:
    """Neighbours that are both learnt, or both only read, as one piece."""
    groups = itertools.groupby(pieces, key=lambda piece: piece.learn)
    return tuple(Piece("".join(piece.text for piece in group), learn) for learn, group in groups)


TASK = Rules
