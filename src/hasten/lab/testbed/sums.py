"""Word problems with worked answers, as conversations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from hasten.lab.testbed.document import Document, chat

THINK_FIRST = "Think before you answer."


def gsm8k(text: str) -> Iterator[Document]:
    """Lines of {"question", "answer"}; the answer's steps end with `#### result`.

    Every third problem asks for thinking first, and its steps then stand between <think> and </think>.
    """
    for number, line in enumerate(text.splitlines()):
        problem = json.loads(line)
        steps, _, result = problem["answer"].partition("\n#### ")
        steps = re.sub(r"<<.*?>>", "", steps)
        verdict = f"The answer is {result.strip()}."
        question = problem["question"].replace("\u2019", "'")
        if number % 3 == 0:
            conversation = chat(question, f"<think>\n{steps}\n</think>\n\n{verdict}", system=THINK_FIRST)
        else:
            conversation = chat(question, f"{steps}\n{verdict}")
        yield Document("chat: sums", f"sum {number}", conversation)
