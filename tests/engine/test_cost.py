"""The cost model: what a step takes, alone and in a run, inside its knots and beyond."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.executors.cost import CostModel, StepShape, roofline, span_pairs
from hasten.engine.technique import ConfigError

SECONDS = st.floats(0, 1e3, allow_nan=False)


@st.composite
def models(draw: st.DrawFn) -> CostModel:
    knots = sorted(draw(st.sets(st.integers(1, 5000), min_size=2, max_size=8)))
    knot_s = draw(st.lists(SECONDS, min_size=len(knots), max_size=len(knots)))
    terms = {name: draw(SECONDS) for name in ("row_s", "head_s", "cached_s", "pair_s")}
    return CostModel(knots=tuple(knots), knot_s=tuple(knot_s), **terms)


@given(models(), st.integers(1, 300), st.integers(0, 10**7), st.integers(1, 60))
def test_a_decode_run_is_its_steps_bit_for_bit(model: CostModel, rows: int, cached: int, steps: int) -> None:
    run = model.decode_run(rows, cached, steps)
    shapes = [StepShape(rows, rows, rows, cached + rows * i, cached + rows * i) for i in range(steps)]
    assert run.tolist() == [model.step(shape) for shape in shapes]


@given(models(), st.integers(1, 10**7))
def test_no_step_takes_less_than_nothing(model: CostModel, tokens: int) -> None:
    assert model.tokens(tokens) >= 0


@settings(max_examples=50)
@given(models())
def test_the_line_goes_through_its_knots(model: CostModel) -> None:
    assert [model.tokens(knot) for knot in model.knots] == pytest.approx(list(model.knot_s))
    inside = np.arange(model.knots[0], model.knots[-1] + 1, 7)
    assert [model.tokens(int(n)) for n in inside] == pytest.approx(np.interp(inside, model.knots, model.knot_s).tolist())


def test_beyond_the_knots() -> None:
    model = CostModel(knots=(4, 8, 16), knot_s=(0.1, 0.1, 0.3))
    assert model.tokens(1) == 0.1
    assert model.tokens(32) == pytest.approx(0.3 + 16 * 0.2 / 8)
    falling = CostModel(knots=(4, 8), knot_s=(0.3, 0.1))
    assert falling.tokens(6) == pytest.approx(0.2)
    assert falling.tokens(10**6) == 0.1
    steep = CostModel(knots=(8, 16), knot_s=(0.001, 0.1))
    assert steep.tokens(1) == 0.001


def test_a_step_adds_its_terms() -> None:
    model = CostModel(knots=(1, 3), knot_s=(1.0, 2.0), row_s=10.0, head_s=100.0, cached_s=1e3, pair_s=1e4)
    assert model.step(StepShape(tokens=2, rows=2, heads=1, cached=3, pairs=4)) == 1.5 + 20 + 100 + 3e3 + 4e4
    assert model.step(StepShape(0, 0, 0, 0, 0)) == 0.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"knots": (1,), "knot_s": (1.0,)}, "at least two knots"),
        ({"knots": (1, 2), "knot_s": (1.0,)}, "at least two knots"),
        ({"knots": (2, 2), "knot_s": (1.0, 1.0)}, "must ascend"),
        ({"knots": (1, 2), "knot_s": (1.0, -1.0)}, "from 0 on"),
        ({"knots": (1, 2), "knot_s": (1.0, math.nan)}, "from 0 on"),
        ({"knots": (1, 2), "knot_s": (1.0, 1.0), "pair_s": -1e-12}, "from 0 on"),
        ({"knots": (1, 2), "knot_s": (1.0, 1.0), "copy_s": math.inf}, "from 0 on"),
    ],
)
def test_models_that_cannot_be(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CostModel(**fields)  # type: ignore[arg-type]


@given(st.integers(1, 300), st.integers(0, 300))
def test_pairs_are_those_of_causal_attention(new: int, before: int) -> None:
    assert span_pairs(new, before) == sum(before + i + 1 for i in range(new))


@pytest.mark.parametrize("flops", [1e8, 1e10, 1e12])
def test_a_roofline_follows_the_larger_of_reading_and_multiplying(flops: float) -> None:
    read, bandwidth, rate, overhead = 1.6e10, 3e12, 9e14, 1e-3
    model = roofline(
        read_bytes=lambda tokens: read,
        flops_per_token=flops,
        head_flops=1e9,
        kv_bytes_per_token=1e5,
        attention_flops=1e6,
        overhead_s=overhead,
        bandwidth=bandwidth,
        rate=rate,
    )
    for tokens in (1, 2, 5, 17, 100, 900, 5000, 70_000):
        exact = overhead + max(read / bandwidth, tokens * flops / rate)
        assert model.tokens(tokens) == pytest.approx(exact, rel=0.05)
    assert model.cached_s == 1e5 / bandwidth
    assert model.pair_s == 1e6 / rate


def test_a_model_reads_back(tmp_path: Path) -> None:
    model = CostModel(knots=(1, 3), knot_s=(1.0, 2.0), row_s=10.0, copy_token_s=3e-9)
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"costs": dataclasses.asdict(model), "machine": "any"}))
    assert CostModel.read(str(file)) == model
    assert CostModel.read(str(file)).tokens(2) == 1.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is no calibration"),
        ("[]", "is no calibration"),
        ("{}", "costs"),
        ('{"costs": 3}', "is no cost model"),
        ('{"costs": {"knots": [1, 2]}}', "knot_s"),
        ('{"costs": {"knots": [1, 2], "knot_s": ["a", "b"]}}', "is no cost model"),
        ('{"costs": {"knots": [1, 2], "knot_s": [1, -2]}}', "from 0 on"),
    ],
)
def test_broken_files(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said) as refusal:
        CostModel.read(str(file))
    assert str(file) in str(refusal.value)
    with pytest.raises(ConfigError, match="No such file"):
        CostModel.read(str(tmp_path / "gone.json"))
