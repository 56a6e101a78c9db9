"""Arithmetic, variable tracing, copying and in-context rules: what they ask, what they accept, what is learnt."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from hasten.lab.testbed.document import END_OF_TURN
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.sums import THINK_FIRST
from hasten.lab.testbed.tasks import copying, rules, sum_wordings, tracing
from hasten.lab.testbed.tasks.arithmetic import LESSON_TOKENS, Arithmetic, all_right, written
from hasten.lab.testbed.tasks.base import Example, Lesson, Split, Task, Wordings
from hasten.lab.testbed.tasks.copying import Copying
from hasten.lab.testbed.tasks.rules import Rules
from hasten.lab.testbed.tasks.tracing import Tracing

SEEDS = range(12)
TASKS: list[Task] = [
    Arithmetic(),
    Arithmetic(operands=6, digits=3),
    Arithmetic(steps=False),
    Tracing(),
    Tracing(hops=4, chains=6, length=0, steps=False),
    Copying(),
    Copying(words=40, variant="after"),
    Copying(words=12, variant="reversed"),
    Rules(),
    Rules(shots=30, symbols=10),
]


def pieces_of(text: str) -> int:
    """About a tokenizer: bits of words of four letters, digits, signs and line ends."""
    return len(re.findall(r"<\|?/?\w+\|?>|[^\W\d]{1,4}|\d|[^\w\s]+|\n+", text))


@pytest.fixture(scope="module")
def material() -> Material:
    return Material(pieces_of)


def example(task: Task, seed: int, material: Material, split: Split = "held-out") -> Example:
    return task.example(random.Random(seed), split, material)


def content(drawn: Example) -> str:
    return str(drawn.messages[-1]["content"])


def text_of(lesson: Lesson) -> str:
    return "".join(piece.text for piece in lesson)


def learnt(lesson: Lesson) -> list[str]:
    return [piece.text for piece in lesson if piece.learn]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_the_same_state_draws_the_same_question_and_another_another(task: Task, material: Material) -> None:
    assert [example(task, s, material) for s in SEEDS] == [example(task, s, Material(pieces_of)) for s in SEEDS]
    assert len({example(task, s, material).prompt for s in SEEDS}) > len(SEEDS) // 2
    lessons = [task.lesson(random.Random(s), material) for s in SEEDS]
    assert lessons == [task.lesson(random.Random(s), Material(pieces_of)) for s in SEEDS]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_the_reference_answer_is_right_and_a_changed_one_is_wrong(task: Task, material: Material) -> None:
    for seed in SEEDS:
        drawn = example(task, seed, material)
        assert task.score(drawn, drawn.answer) == dict.fromkeys(task.metrics, 1.0)
        last = drawn.answer[-1]
        changed = drawn.answer[:-1] + ("1" if last != "1" else "2")
        for wrong in (changed, drawn.answer + " 7", drawn.answer[:-1], ""):
            assert task.score(drawn, wrong)["correct"] == 0.0
        assert material.count(drawn.answer) < drawn.max_tokens


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_prompt_is_its_messages_and_a_lesson_ends_answers_with_the_stop_token(task: Task, material: Material) -> None:
    for seed in SEEDS:
        drawn = example(task, seed, material)
        assert all(message["content"] in drawn.prompt for message in drawn.messages)
        assert drawn.prompt.endswith("<|im_start|>assistant\n")
        lesson = task.lesson(random.Random(seed), material)
        assert not lesson[0].learn
        assert learnt(lesson)[-1].endswith(END_OF_TURN)
        assert text_of(lesson).count("<|im_start|>") == text_of(lesson).count(END_OF_TURN)


@pytest.mark.parametrize("tokens", [512, 2048])
@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_lessons_for_training_fit_their_window(task: Task, tokens: int, material: Material) -> None:
    rng = random.Random(5)
    drawn = [task.easier(rng, tokens) for _ in range(40)]
    assert len(set(drawn)) > 2
    assert max(material.count(text_of(one.lesson(rng, material))) for one in drawn) <= tokens


def test_wordings_of_the_splits_differ() -> None:
    modules = (sum_wordings, tracing, copying, rules)
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Wordings)]
    assert len(found) == 8
    for wordings in found:
        assert not set(wordings.train) & set(wordings.held_out)
        assert len(set(wordings.train)) >= 5 and len(set(wordings.held_out)) >= 2
    assert not set(sum_wordings.STORIES_TO_LEARN) & set(sum_wordings.STORIES_HELD_OUT)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Arithmetic(operands=1), "operands must be between 2 and 6, got 1"),
        (lambda: Arithmetic(digits=4), "digits must be between 1 and 3, got 4"),
        (lambda: Tracing(hops=5), "hops must be between 1 and 4, got 5"),
        (lambda: Tracing(chains=-1), "chains must be between 0 and 31, got -1"),
        (lambda: Tracing(length=100), r"need a length of 304 tokens at least \(or 0\), got 100"),
        (lambda: Copying(variant="half"), "variant must be one of whole, after, reversed, got 'half'"),
        (lambda: Copying(words=33, variant="reversed"), "words must be between 3 and 32 for reversed, got 33"),
        (lambda: Rules(symbols=1), "symbols must be between 2 and 20, got 1"),
        (lambda: Rules(shots=6, symbols=3), "3 symbols make 6 pairs; shots must be between 1 and 5, got 6"),
    ],
)
def test_difficulties_that_cannot_be_are_refused(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("operands", [2, 3, 6])
@pytest.mark.parametrize("digits", [1, 2, 3])
def test_sums_have_the_stated_result_and_never_go_below_zero(operands: int, digits: int, material: Material) -> None:
    task = Arithmetic(operands, digits)
    for seed in SEEDS:
        drawn = example(task, seed, material)
        thought = drawn.answer.partition("<think>\n")[2].partition("\n</think>")[0]
        lines = thought.split("\n")
        opened = None
        results = []
        for line in lines:
            left, equals, right = line.partition("=")
            assert (eval(re.sub(r"\b0+(\d)", r"\1", left)) if left else opened) == int(right or eval(left))
            if not equals:
                opened = eval(left)
            elif not left:
                results.append(int(right))
        assert len(results) == operands - 1
        assert min(results) >= 0
        assert str(results[-1]) == drawn.expected
        asked = [int(n) for n in re.findall(r"\d+", content(drawn))]
        assert len(asked) == operands and max(asked) < 10**digits


def test_steps_are_written_column_by_column() -> None:
    assert written((47, 85, -9)).split("\n") == [
        *("47+85", "7+5+0=12", "4+8+1=13", "=132"),
        *("132-9", "2-9-0+10=3", "3-0-1+0=2", "1-0-0+0=1", "=123"),
    ]


@pytest.mark.parametrize("terms", [(99, 1), (5, 999), (100, -1), (7, -7), (2997, 999), (1000, -999), (12, 34)])
def test_columns_spell_the_result(terms: tuple[int, int]) -> None:
    _, *columns, result = written(terms).split("\n")
    assert len(columns) == max(len(str(abs(term))) for term in terms)
    units_first = [column.partition("=")[2] for column in columns]
    digits = units_first[-1] + "".join(value[-1] for value in reversed(units_first[:-1]))
    assert int(digits) == sum(terms) == int(result.removeprefix("="))


@pytest.mark.parametrize(
    "lines",
    ["1+1=3", "47+85 =131", "47+85", "=4", "47+85 47+85 =132", "seven", "4+", "1+1=2 =2", "7=7", "1+1=2 3"],
)
def test_wrong_steps_are_seen(lines: str) -> None:
    assert not all_right(lines.split())


def test_steps_count_only_where_they_are_asked_for(material: Material) -> None:
    drawn = example(Arithmetic(), 1, material)
    assert Arithmetic().score(drawn, drawn.expected) == {"correct": 1.0, "steps": 0.0}
    assert Arithmetic(steps=False).score(drawn, drawn.expected) == {"correct": 1.0, "steps": 1.0}
    wrong = drawn.answer.replace("\n=", "\n=1", 1)
    for task in (Arithmetic(), Arithmetic(steps=False)):
        assert task.score(drawn, wrong) == {"correct": 1.0, "steps": 0.0}
    assert drawn.messages[0] == {"role": "system", "content": THINK_FIRST}


def test_a_lesson_in_arithmetic_holds_several_sums_most_with_steps(material: Material) -> None:
    answers = [a for s in range(30) for a in learnt(Arithmetic().lesson(random.Random(s), material))]
    assert len(answers) > 60
    assert 0.5 < sum("<think>" in answer for answer in answers) / len(answers) < 0.85
    for seed in SEEDS:
        assert material.count(text_of(Arithmetic().lesson(random.Random(seed), material))) <= LESSON_TOKENS


@pytest.mark.parametrize("length", [0, 400, 1024, 4096])
def test_a_traced_value_follows_from_the_statements(length: int, material: Material) -> None:
    task = Tracing(hops=3, chains=2, length=length)
    for seed in SEEDS:
        drawn = example(task, seed, material)
        assert not length or length - 120 < material.count(drawn.prompt) <= length
        thought, _, final = drawn.answer.removeprefix("<think>\nSo ").partition("\n</think>\n\n")
        assert final == drawn.expected
        quotes = thought.split(", ")
        context, _, question = content(drawn).rpartition("\n\n")
        steps = [re.fullmatch(r"(\w+) (?:=|is|equals|has the value|stands for|:=) (\w+)", quote).groups() for quote in quotes]  # type: ignore[union-attr]
        assert len(steps) == 4 and re.search(rf"\b{steps[0][0]}\b", question)
        assert all(source == name for (_, source), (name, _) in itertools.pairwise(steps)) and steps[-1][1] == final
        places = [[m.start() for m in re.finditer(rf"\b{re.escape(quote)}\b", context)] for quote in quotes]
        assert all(len(found) == 1 for found in places)
        assert places == sorted(places, reverse=True)


def test_tracing_without_steps_says_the_number_alone(material: Material) -> None:
    drawn = example(Tracing(steps=False), 3, material)
    assert drawn.answer == drawn.expected and re.fullmatch(r"\d{4}", drawn.answer)
    assert THINK_FIRST not in drawn.prompt


def test_lessons_in_tracing_ask_at_several_distances(material: Material) -> None:
    hops = set()
    thinking = 0
    for seed in range(20):
        lesson = Tracing(length=0).lesson(random.Random(seed), material)
        assert len(learnt(lesson)) == tracing.LEAST_QUESTIONS
        thinks = lesson[0].text.startswith("<|im_start|>system")
        assert all(("<think>" in answer) == thinks for answer in learnt(lesson))
        hops |= {answer.count(", ") + 1 for answer in learnt(lesson)} if thinks else set()
        thinking += thinks
    assert hops == {1, 2, 3}
    assert 0 < thinking < 20


def test_copies_are_of_the_text_that_stands_in_the_prompt(material: Material) -> None:
    for seed in SEEDS:
        whole = example(Copying(), seed, material)
        assert content(whole).endswith("\n\n" + whole.answer) and len(whole.answer.split()) == 32
        turned = example(Copying(9, "reversed"), seed, material)
        assert content(turned).rpartition("\n\n")[2].split() == turned.answer.split()[::-1]
        after = example(Copying(20, "after"), seed, material)
        text, _, question = content(after).rpartition("\n\n")
        assert f" {after.answer} " in f" {text} "
        before = text[: f" {text} ".index(f" {after.answer} ")].split()[-1]
        assert before in question and text.split().count(before) == 1
        assert f" {len(after.answer.split())} " in question


def test_half_of_a_copying_lesson_is_learnt(material: Material) -> None:
    lesson = Copying(200).lesson(random.Random(1), material)
    assert material.count("".join(learnt(lesson))) > 0.45 * material.count(text_of(lesson))


def shots_of(text: str) -> list[tuple[str, str, str]]:
    return re.findall(r"^[-*] (\w+) (\w+) \S+ (\d\d)$", text, re.MULTILINE)


@pytest.mark.parametrize("task", [Rules(), Rules(30, 10), Rules(1, 2), Rules(2, 3)], ids=repr)
def test_a_rule_follows_from_its_examples_and_asks_for_a_new_pair(task: Rules, material: Material) -> None:
    for seed in SEEDS:
        drawn = example(task, seed, material)
        lines, _, question = content(drawn).partition("\n\n")
        shots = shots_of(lines)
        assert len(shots) == task.shots
        digits: dict[str, set[str]] = {}
        for first, second, right in shots:
            digits.setdefault(first, set()).add(right[0])
            digits.setdefault(second, set()).add(right[1])
        assert all(len(known) == 1 for known in digits.values())
        asked = [word for word in re.findall(r"\w+", question) if word in digits]
        assert len(asked) == 2 and tuple(asked) not in {shot[:2] for shot in shots}
        assert drawn.answer == "".join(min(digits[word]) for word in asked)


def test_a_lesson_in_rules_learns_only_what_earlier_lines_show(material: Material) -> None:
    for seed in SEEDS:
        known: dict[str, str] = {}
        words: list[str] = []
        total = 0
        for piece in Rules(12, 5).lesson(random.Random(seed), material):
            if not piece.learn:
                for first, second, right in shots_of("".join(words) + piece.text):
                    known |= {first: right[0], second: right[1]}
            words.append(piece.text)
            if piece.learn and not piece.text.endswith(END_OF_TURN):
                before = "".join(words)
                line = before.rpartition("\n")[2].split()
                symbols = line[1:3][-len(piece.text) :] if len(line[-1]) == 2 else line[1:2]
                assert piece.text == "".join(known[symbol] for symbol in symbols)
                total += len(piece.text)
        assert total >= 12
