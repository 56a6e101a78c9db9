"""Similar prompts have similar outputs: the sketch, the neighbours, the background, the ring."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.scheduling.learning import ask, make, teach

from hasten.engine.scheduling.lengths.sketch import WIDTH, sketch


def template(kind: int, random: np.random.Generator, own: int = 40) -> np.ndarray:
    shared = np.random.default_rng(kind).integers(0, 30_000, 200)
    return np.concatenate([shared, random.integers(0, 30_000, own)])


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=60))
def test_a_sketch_is_a_direction(tokens: list[int]) -> None:
    vector = sketch(np.array(tokens, dtype=np.int32))
    norm = float(np.linalg.norm(vector))
    assert vector.shape == (WIDTH,) and (abs(norm - 1) < 1e-5 or norm == 0)
    assert np.array_equal(vector, sketch(np.array(tokens, dtype=np.int32)))


def test_prompts_with_pieces_in_common_point_the_same_way() -> None:
    random = np.random.default_rng(0)
    alike = [float(sketch(template(1, random)) @ sketch(template(1, random))) for _ in range(20)]
    unlike = [float(sketch(template(1, random)) @ sketch(template(2, random))) for _ in range(20)]
    assert min(alike) > 0.6 and max(np.abs(unlike)) < 0.35
    long = random.integers(0, 30_000, 100_000)
    changed = long.copy()
    changed[50_000] += 1
    assert np.allclose(sketch(long), sketch(changed)), "the middle of a long prompt is not looked at"


def test_the_outputs_of_the_same_template_decide() -> None:
    random = np.random.default_rng(1)
    predictor = make("length-similarity")
    for number in range(300):
        kind = number % 3
        output = int(random.integers(40, 60) * 10**kind / 10)
        predictor.observe(ask(f"t{number}", prompt=template(kind, random)), output, ended=True)
    for kind, about in enumerate((5, 50, 500)):
        found = np.median(predictor.predict(ask(f"new{kind}", prompt=template(kind, random)), 0))  # type: ignore[arg-type]
        assert 0.6 * about < found < 1.6 * about


def test_where_nothing_is_alike_all_outputs_have_a_say() -> None:
    random = np.random.default_rng(2)
    outputs = random.integers(1, 1000, 1000)
    predictor = make("length-similarity")
    teach(predictor, outputs)
    found = predictor.predict(ask("new", prompt=random.integers(0, 30_000, 20)), 0)
    assert found is not None
    assert np.abs(np.quantile(found, [0.25, 0.5, 0.75]) - np.quantile(outputs, [0.25, 0.5, 0.75])).max() < 110


def test_the_oldest_output_makes_room() -> None:
    predictor = make("length-similarity", memory=50)
    teach(predictor, [900] * 200)
    teach(predictor, [7] * 50)
    found = predictor.predict(ask("new"), 0)
    assert found is not None and found.max() == 7


def test_an_application_that_is_new_borrows_from_the_last_one() -> None:
    predictor = make("length-similarity")
    teach(predictor, [30] * 50, app="a")
    found = predictor.predict(ask("new", app="b"), 0)
    assert found is not None and 25 < np.median(found) < 35
