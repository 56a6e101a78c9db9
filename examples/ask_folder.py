"""Ask questions about a folder of text files, and see what marking the retrieved pieces saves.

    python examples/ask_folder.py FOLDER "What is the code of the blue harbor?" "Who signed?"
    python examples/ask_folder.py FOLDER --with cache-craft < questions.txt

Files are cut into pieces; for each question those that share its rarest words are put before it, in the order of the files that
they come from. The question is asked twice: of an engine that finds the beginnings of prompts that it read before, which is the
default, and of one that also finds the pieces themselves, wherever they stand. The only difference in the calls is
`Segment(..., cache=True)`, which the first engine takes no notice of.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten import LLM, SamplingParams, Segment

SUFFIXES = (".txt", ".md", ".rst")
USER = "<|im_start|>user\n"
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"
"""The turns of ChatML, as most small models know them; with another template, render with `llm.chat_template`."""


@dataclass(frozen=True)
class Answer:
    """What one engine said: `ttft_s` seconds to its first token, `reused` of the prompt's `tokens` were not computed."""

    text: str
    ttft_s: float
    reused: int
    tokens: int


def pieces_of(folder: Path, words: int) -> list[str]:
    """The folder's files cut at paragraphs into pieces of about so many words, each below the name of its file."""
    found: list[str] = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
        piece: list[str] = []
        for paragraph in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            if piece and len(" ".join([*piece, paragraph]).split()) > words:
                found.append(_titled(path, piece))
                piece = []
            if paragraph.strip():
                piece.append(paragraph.strip())
        if piece:
            found.append(_titled(path, piece))
    return found


def _titled(path: Path, paragraphs: Sequence[str]) -> str:
    return f"{path.stem}\n" + "\n\n".join(paragraphs) + "\n\n"


class Index:
    """Finds the pieces that share the rarest words with a question."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._bags = [Counter(_words(piece)) for piece in pieces]
        known = Counter(word for bag in self._bags for word in bag)
        self._rarity = {word: math.log(1 + len(pieces) / count) for word, count in known.items()}

    def best(self, question: str, count: int) -> list[int]:
        """Numbers of the best pieces, ascending."""
        asked = set(_words(question))
        scores = [sum(self._rarity[word] for word in asked if word in bag) for bag in self._bags]
        return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def ask(llm: LLM, pieces: Iterable[str], question: str, max_tokens: int = 48) -> Answer:
    prompt = [Segment(USER), *(Segment(piece, cache=True) for piece in pieces), Segment(question + ANSWER)]
    (done,) = llm.generate([prompt], SamplingParams(max_tokens=max_tokens, temperature=0))
    return Answer(done.choices[0].text.strip(), done.ttft_s or 0.0, done.reused, len(done.prompt_tokens))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("questions", nargs="*", help="lines of standard input if left out")
    parser.add_argument("--model", help="a folder or a name; the built-in model if left out")
    parser.add_argument("--with", dest="technique", default="mpic", help="what reuses the pieces (default: %(default)s)")
    parser.add_argument("--words", type=int, default=120, help="words of a piece (default: %(default)s)")
    parser.add_argument("--count", type=int, default=6, help="pieces before a question (default: %(default)s)")
    asked = parser.parse_intermixed_args(arguments)
    pieces = pieces_of(asked.folder, asked.words)
    if not pieces:
        parser.error(f"{asked.folder} holds no {', '.join(SUFFIXES)} files")
    index = Index(pieces)
    before, after = LLM(asked.model), LLM(asked.model, with_=[asked.technique])
    sums = [0.0, 0.0]
    questions = asked.questions or [line.strip() for line in sys.stdin if line.strip()]
    for question in questions:
        found = [pieces[number] for number in index.best(question, asked.count)]
        print(f"\n{question}")
        for number, (name, llm) in enumerate((("prefix cache", before), (asked.technique, after))):
            answer = ask(llm, found, question)
            sums[number] += answer.ttft_s
            print(
                f"  {name:>14}: {answer.text}\n{'':>18}first token after {1e3 * answer.ttft_s:.0f} ms, "
                f"{answer.reused} of {answer.tokens} tokens reused"
            )
    if questions:
        means = [1e3 * total / len(questions) for total in sums]
        print(f"\nmean time to first token: {means[0]:.0f} ms with the prefix cache, {means[1]:.0f} ms with {asked.technique}")


if __name__ == "__main__":
    main()
