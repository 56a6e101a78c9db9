"""Evaluation through the engine, its intervals, and comparisons pair by pair."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from tests.engine import tiny
from tests.text import worlds

from hasten import LLM, SamplingParams
from hasten.engine.outputs import Choice
from hasten.engine.request import BadRequest
from hasten.lab.testbed.evaluate import EvaluationFailed, evaluate, in_options, spoken
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.pairwise import compare, newcombe
from hasten.lab.testbed.picture import picture
from hasten.lab.testbed.scores import BITS_PER_BYTE, Outcome, Scores, TaskScores, estimate, estimates
from hasten.lab.testbed.tasks.base import Example, Split, Task
from hasten.lab.testbed.tasks.language import Language

SETTINGS = {"model.load_format": "dummy", "model.dtype": "float32", "kv.memory_bytes": 4 << 20}
MATERIAL = Material(len)


@dataclass(frozen=True)
class Letters(Task):
    """No model knows the answer, but half of all outputs have an even number of letters."""

    name: ClassVar[str] = "letters"
    about: ClassVar[str] = "a fake"
    metrics: ClassVar[tuple[str, ...]] = ("even", "share")

    length: int = 12

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        prompt = f"{split}:" + "".join(rng.choices("abcdefgh", k=self.length))
        return Example(prompt, "even", max_tokens=rng.randint(3, 8))

    def score(self, example: Example, output: str) -> dict[str, float]:
        return {"even": float(len(output) % 2 == 0), "share": 1 / (1 + len(output))}


@dataclass(frozen=True)
class Weighed(Letters):
    name: ClassVar[str] = "weighed"
    likelihood: ClassVar[bool] = True

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        return Example("text: ", "".join(rng.choices("abcdé", k=rng.randint(20, 40))))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("tiny"), eos_token_id=3)


@pytest.fixture(scope="module")
def llm(model: str) -> LLM:
    return LLM(model, set_=SETTINGS)


def test_all_questions_are_asked_and_none_depends_on_the_others(llm: LLM) -> None:
    seen: list[tuple[str, int, int]] = []
    tasks = [Letters(), Letters(30)]
    scores = evaluate(llm, tasks, 6, material=MATERIAL, progress=lambda *told: seen.append(told))
    assert [task.task for task in scores.tasks] == ["letters", "letters:length=30"]
    assert ("letters:length=30", 6, 6) in seen
    few = evaluate(llm, tasks[:1], 3, material=MATERIAL)
    assert few.task("letters").outcomes == scores.task("letters").outcomes[:3]
    assert evaluate(llm, tasks[:1], 3, seed=1, material=MATERIAL).task("letters").outcomes != few.task("letters").outcomes
    for i, outcome in enumerate(few.task("letters").outcomes):
        example = Letters().example(random.Random(f"0/letters/{i}"), "held-out", MATERIAL)
        alone = llm.generate(example.prompt, SamplingParams(max_tokens=example.max_tokens, temperature=0))[0]
        assert outcome.prompt == example.prompt and outcome.output == llm.tokenizer.decode(alone.choices[0].tokens)
        assert outcome.scores == Letters().score(example, outcome.output)
    assert few.tasks[0].prompt_tokens == 3 * len("held-out:" + 12 * "a") and few.tasks[0].output_tokens >= 9


def test_text_is_weighed_by_the_probability_of_every_token(llm: LLM, model: str) -> None:
    """Against decoding with every token forced: another path through the engine, a step a token."""
    found = evaluate(llm, [Weighed()], 3, material=MATERIAL).task("weighed")
    again = evaluate(llm, [Weighed()], 3, material=MATERIAL).task("weighed")  # its prompts are in the prefix cache now
    chunked = LLM(model, with_=["stall-free:chunk=7"], set_={**SETTINGS, "scheduling.max_tokens": 16})
    in_chunks = evaluate(chunked, [Weighed()], 3, material=MATERIAL).task("weighed")
    bits, count = [], []
    for i in range(3):
        example = Weighed().example(random.Random(f"0/weighed/{i}"), "held-out", MATERIAL)
        tokens = list(llm.tokenizer.encode(example.prompt))
        nats = 0.0
        for token in llm.tokenizer.encode(example.answer):
            forced = SamplingParams(max_tokens=1, temperature=0, logprobs=0, logit_bias={token: 100.0})
            (score,) = llm.generate(tokens, forced)[0].choices[0].logprobs
            assert score is not None and score.token == token
            nats -= score.logprob
            tokens.append(token)
        bits.append(nats / math.log(2))
        count.append(len(example.answer.encode()))
    for task in (found, again, in_chunks):
        assert [outcome.weight for outcome in task.outcomes] == count
        np.testing.assert_allclose(task.values(BITS_PER_BYTE) * count, bits, rtol=1e-4)
        assert task.estimates[BITS_PER_BYTE].value == pytest.approx(sum(bits) / sum(count), rel=1e-4)


def test_special_tokens_stay_in_what_is_scored(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "model", vocab_size=worlds.byte_level().get_vocab_size(), eos_token_id=3)
    worlds.byte_level().save(str(tmp_path / "model" / "tokenizer.json"))
    llm = LLM(folder, set_=SETTINGS)
    word = llm.tokenizer.encode("fox", add_special_tokens=False)
    assert spoken(llm, Choice(0, tokens=[2, *word, 3], finish="stop")) == "<|im_start|>fox"
    assert spoken(llm, Choice(0, tokens=[*word, 2], finish="length")) == "fox<|im_start|>"
    # What tokenizer.json puts before any text (here <s>) is not put before a prompt, which has its special tokens already.
    scores = evaluate(llm, [Letters()], 2, material=MATERIAL)
    lengths = [len(llm.tokenizer.encode(o.prompt, add_special_tokens=False)) for o in scores.tasks[0].outcomes]
    assert scores.tasks[0].prompt_tokens == sum(lengths)


def test_what_cannot_be_evaluated_is_refused(model: str) -> None:
    llm = LLM(model, set_=SETTINGS)
    with pytest.raises(ValueError, match="at least two questions"):
        evaluate(llm, [Letters()], 1, material=MATERIAL)
    with pytest.raises(ValueError, match="named once"):
        evaluate(llm, [Letters(), Letters()], 2, material=MATERIAL)
    with pytest.raises(BadRequest, match="letters:length=600: the prompt has 609 tokens"):
        evaluate(llm, [Letters(600)], 2, material=MATERIAL)
    with pytest.raises(EvaluationFailed, match="language: question 0 cannot be drawn: there is no held-out text"):
        evaluate(llm, [Language()], 2, material=MATERIAL)
    (bad,) = llm.tokenizer.encode("h")
    llm.parts.model.embedding.weight[bad] = float("nan")
    with pytest.raises(
        EvaluationFailed, match=r"letters:length=40: the engine failed at \d of 2 questions, first: .*not finite"
    ):
        evaluate(llm, [Letters(40)], 2, material=MATERIAL)


def test_the_configuration_is_told_as_options(model: str) -> None:
    llm = LLM(model, with_=["stall-free:chunk=7"], set_={**SETTINGS, "kv.reuse": None})
    assert in_options(llm.config) == (
        "--with stall-free:chunk=7 --set model.load_format=dummy --set model.dtype=float32 --set kv.memory_bytes=4194304 "
        "--set kv.reuse=None"
    )
    assert in_options(type(llm.config).build("any")) == "the plain engine"
    scores = evaluate(llm, [Letters()], 2, material=MATERIAL)
    assert scores.configuration == in_options(llm.config) and scores.fingerprint == llm.parts.model.fingerprint


def scores(values: list[float], metric: str = "correct", weights: list[float] | None = None, first: int = 0) -> Scores:
    outcomes = [
        Outcome(
            question=str(first + i), answer="a", output="b", scores={metric: value}, weight=(weights or [1.0] * len(values))[i]
        )
        for i, value in enumerate(values)
    ]
    task = TaskScores(
        task="t",
        estimates=estimates(outcomes, [metric]),
        outcomes=outcomes,
        seconds=1,
        prompt_tokens=1,
        output_tokens=1,
    )
    about = dict.fromkeys(("fingerprint", "split", "cpu", "python", "torch", "version", "commit", "date"), "x")
    return Scores(model="m", configuration="c", seed=0, tasks=[task], engine={}, **about)


def test_intervals() -> None:
    z = 1.959964
    none = estimate(np.zeros(10), np.ones(10))
    assert none.value == none.low == 0 and none.high == pytest.approx(z**2 / (10 + z**2), rel=1e-5)
    rng = np.random.default_rng(0)
    values, weights = rng.normal(2, 0.5, 400), rng.uniform(1, 3, 400)
    found = estimate(values, weights)
    assert found.value == pytest.approx((values * weights).sum() / weights.sum())
    error = 0.5 * math.sqrt((weights**2).sum()) / weights.sum()
    assert found.value - found.low == pytest.approx(z * error, rel=0.15)
    assert found.high - found.value == pytest.approx(z * error, rel=0.15)
    assert estimate(values, weights) == found


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    written = scores([1, 0, 1])
    written.tasks[0].outcomes[0].prompt = "long"
    written.write(path)
    read = Scores.read(path)
    assert read.tasks[0].outcomes[0].prompt == "" and read.tasks[0].estimates == written.tasks[0].estimates
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(ValueError, match=r"s\.json holds no scores of `hasten eval`: schema_version"):
        Scores.read(path)
    with pytest.raises(ValueError, match="No such file"):
        Scores.read(tmp_path / "none.json")


def test_right_or_wrong_is_compared_by_the_questions_that_differ() -> None:
    a, b = [1] * 20 + [1] + [0] * 9, [1] * 20 + [0] + [1] * 9
    (one,) = compare(scores(list(map(float, a))), scores(list(map(float, b))))
    assert (one.only_a, one.only_b, one.n) == (1, 9, 30)
    assert one.p == pytest.approx(2 * (1 + 10) / 2**10)
    assert one.difference.value == pytest.approx(8 / 30) and 0 < one.difference.low < 8 / 30 < one.difference.high
    (same,) = compare(scores([1.0, 0.0, 1.0]), scores([1.0, 0.0, 1.0]))
    assert same.p == 1 and same.difference.value == 0 and same.difference.low < 0 < same.difference.high


def test_newcombes_interval() -> None:
    # An example of the paper's table: 36 both right, 12 and 2 one alone, none both wrong.
    a = np.array([1.0] * 36 + [1] * 12 + [0] * 2)
    b = np.array([1.0] * 36 + [0] * 12 + [1] * 2)
    found = newcombe(b, a)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
    mirrored = newcombe(a, b)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    # 95 % of intervals hold the true difference of correlated answers, or a few more.
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        ease = rng.random(60)
        ours, theirs = ((ease + rng.normal(0, 0.2, 60) > 0.3).astype(float) for _ in range(2))
        interval = newcombe(ours, theirs)
        held += interval.low <= 0 <= interval.high
    assert 370 <= held < 400


def test_figures_are_compared_by_bootstrap_and_pairs_count() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(2, 0.5, 100)
    weights = rng.uniform(1, 3, 100).tolist()
    a, b = hard + rng.normal(0, 0.02, 100), hard + 0.02 + rng.normal(0, 0.02, 100)
    (one,) = compare(scores(a.tolist(), BITS_PER_BYTE, weights), scores(b.tolist(), BITS_PER_BYTE, weights))
    assert one.p < 0.01 and 0 < one.difference.low < 0.02 < one.difference.high < 0.04 and one.only_a is None
    assert one.a.low < one.b.value < one.a.high, "without pairs nothing would be seen"
    (same,) = compare(scores(a.tolist(), BITS_PER_BYTE, weights), scores(a.tolist(), BITS_PER_BYTE, weights))
    assert same.p == 1 and same.difference.low == same.difference.high == 0


def test_unlike_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="questions differ"):
        compare(scores([1.0, 0.0]), scores([1.0, 0.0], first=1))
    with pytest.raises(ValueError, match="questions differ"):
        compare(scores([1.0, 0.0]), scores([1.0, 0.0, 0.0]))
    other = scores([1.0, 0.0])
    other.tasks[0].task = "u"
    with pytest.raises(ValueError, match="one alone has t, u"):
        compare(scores([1.0, 0.0]), other)


def test_two_configurations_are_asked_the_same(llm: LLM, model: str) -> None:
    other = LLM(model, with_=["stall-free:chunk=7"], set_={**SETTINGS, "kv.reuse": None})
    both = [evaluate(one, [Letters(), Weighed()], 8, material=MATERIAL) for one in (llm, other)]
    for difference in compare(both[0], both[1]):
        assert abs(difference.difference.value) < 1e-4, f"{difference.metric}: exact techniques change no answer"


def test_pictures() -> None:
    one, two = scores([1.0, 0.0, 1.0]), scores([2.0, 2.5, 1.8], BITS_PER_BYTE)
    assert picture({"a": one, "b": two}).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="1 to 4"):
        picture({})
