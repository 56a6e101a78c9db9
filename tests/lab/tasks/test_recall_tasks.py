"""Recall, needles and dialogues: what is asked was stated, lengths hold, splits do not share wordings."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import Split, Task
from hasten.lab.testbed.tasks.dialogue import Dialogue
from hasten.lab.testbed.tasks.facts import LINES, QUESTIONS, SENTENCES, values
from hasten.lab.testbed.tasks.needle import SEVERAL, Needle
from hasten.lab.testbed.tasks.recall import Recall
from hasten.lab.testbed.tasks.registry import all_tasks, find, notation

SPLITS: tuple[Split, ...] = ("train", "held-out")
TASKS: tuple[Task, ...] = (
    Recall(1), Recall(64), Recall(16, 1200), Needle(400), Needle(900, needles=4), Needle(900, needles=8, queries=3),
    Needle(600, depth=0.5), Dialogue(), Dialogue(6, 2, 1500),
)  # fmt: skip


def count(text: str) -> int:
    """About as many as a tokenizer says."""
    return len(re.findall(r"\w+|\S", text)) + len(re.findall(r"\d", text))


MATERIAL = Material(count)


@pytest.mark.parametrize("task", TASKS, ids=notation)
@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_is_stated_once_and_scores(task: Task, split: Split) -> None:
    for seed in range(8):
        example = task.example(random.Random(seed), split, MATERIAL)
        assert example == task.example(random.Random(seed), split, MATERIAL)
        assert set(task.score(example, example.answer).values()) == {1.0}
        assert set(task.score(example, f"<think>\nhm\n</think>\n\n{example.answer}.").values()) == {1.0}
        assert task.score(example, "nothing of the sort")[task.metrics[0]] == 0.0
        assert task.score(example, "")[task.metrics[0]] == 0.0
        for value, quote in zip(values(example.answer), example.answer.split("; "), strict=True):
            assert quote.startswith("The ") and quote.endswith(value) and quote.removeprefix("The ") in example.prompt
            assert task.score(example, example.answer.replace(value, "nothing"))[task.metrics[0]] == 0.0
        assert example.prompt.endswith("<|im_start|>assistant\n") and example.messages[-1]["role"] == "user"


def test_another_key_has_another_answer() -> None:
    """Otherwise a model could answer without reading the question."""
    example = Recall(32).example(random.Random(0), "held-out", MATERIAL)
    others = {Recall(32).example(random.Random(seed), "held-out", MATERIAL).expected for seed in range(30)}
    assert len(others) > 20 and example.expected in others


@pytest.mark.parametrize("length", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("make", [lambda n: Recall(16, n), lambda n: Needle(n), lambda n: Needle(n, 4, 2)])
def test_prompts_are_as_long_as_asked(make: Callable[[int], Task], length: int) -> None:
    for seed in range(4):
        found = count(make(length).example(random.Random(seed), "held-out", MATERIAL).prompt)
        assert length - 120 < found <= length


def test_a_needle_lies_where_it_is_put() -> None:
    for depth in (0.0, 0.5, 1.0):
        example = Needle(1000, depth=depth).example(random.Random(1), "train", MATERIAL)
        context = example.prompt.rpartition("\n\n")[0]
        assert context.find(example.expected[0]) / len(context) == pytest.approx(depth, abs=0.1)


def test_found_counts_the_values_in_their_places() -> None:
    task = Needle(900, needles=8, queries=3)
    drawn = (task.example(random.Random(seed), "train", MATERIAL) for seed in range(9))
    example = next(e for e in drawn if len(set(e.expected)) == 3)
    a, b, c = example.expected
    assert task.score(example, f"{a}; it is {b}; x") == {"correct": 0.0, "found": pytest.approx(2 / 3)}
    assert task.score(example, f"{b}; {a}; {c}.") == {"correct": 0.0, "found": pytest.approx(1 / 3)}
    assert task.score(example, a)["found"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("wordings", [SENTENCES, LINES, QUESTIONS, SEVERAL])
def test_wordings_are_not_shared(wordings: object) -> None:
    assert not set(wordings.train) & set(wordings.held_out)  # type: ignore[attr-defined]


def test_a_dialogue_asks_about_an_earlier_topic() -> None:
    for seed in range(10):
        example = Dialogue(3, 2).example(random.Random(seed), "held-out", MATERIAL)
        turns = [m["content"] for m in example.messages]
        assert len(turns) == 7 and turns[1::2] == ["Noted."] * 3
        assert example.answer.removeprefix("The ") in turns[0] + turns[2] and example.expected in example.answer


def test_a_short_window_meets_longer_lists() -> None:
    rng = random.Random(0)
    tasks = [Recall().easier(rng, 440) for _ in range(200)]
    assert sum(task.pairs > 6 for task in tasks) > 40
    lengths = [sum(count(piece.text) for piece in task.lesson(rng, MATERIAL)) for task in tasks]
    assert sum(length <= 440 for length in lengths) > 0.8 * len(tasks)


@pytest.mark.parametrize("name", ["recall", "needle", "dialogue"])
@pytest.mark.parametrize("room", [80, 300, 512, 2048])
def test_lessons_fit_and_ask_what_was_said(name: str, room: int) -> None:
    rng = random.Random(room)
    fits = 0
    for _ in range(60):
        lesson = find(name).easier(rng, room).lesson(rng, MATERIAL)
        text = "".join(piece.text for piece in lesson)
        fits += count(text) <= room + 40
        learnt = [piece.text.removesuffix("<|im_end|>") for piece in lesson if piece.learn]
        said = "".join(piece.text for piece in lesson if not piece.learn)
        assert learnt and all(value in said for answer in learnt if answer != "Noted." for value in values(answer))
    assert fits >= 40 or room < 512  # what does not fit is drawn again


def test_notation_goes_both_ways() -> None:
    for task in TASKS:
        assert find(notation(task)) == task
    assert notation(Recall()) == "recall" and notation(Recall(8)) == "recall:pairs=8"
    assert {"recall", "needle", "dialogue", "tracing", "arithmetic", "json", "calls", "sql"} <= all_tasks().keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recal", "did you mean recall"),
        ("recall:pear=3", "pairs, length"),
        ("recall:pairs=two", "whole number"),
        ("recall:pairs=65", "between 1 and 64"),
        ("recall:pairs", "with a value"),
        ("tracing:steps=yes", "true or false"),
        ("needle:length=50", "at least"),
        ("needle:needles=2,queries=3", "queries"),
        ("needle:depth=2", "depth"),
        ("dialogue:topics=1", "topics"),
        ("recall:pairs=16,length=100", "at least"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(text)
