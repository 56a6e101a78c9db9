"""What holds for every learned predictor of lengths: calibration, refinement, censoring, bounds, files, and its place in an
engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.engine.fake import make_engine
from tests.scheduling.learning import NAMES, ask, make, teach

from hasten.engine.config import EngineConfig
from hasten.engine.events import Event, Kind
from hasten.engine.request import Request, SamplingParams
from hasten.engine.sequence import Finish
from hasten.engine.technique import ConfigError

QUARTERS = np.array([0.25, 0.5, 0.75])


def quantiles(predictor: object, request: Request, produced: int = 0) -> np.ndarray:
    found = predictor.predict(request, produced)  # type: ignore[attr-defined]
    assert 1 <= len(found) <= 64 and (found >= 1).all() and (np.diff(found) >= 0).all()
    return np.quantile(found, QUARTERS)


@pytest.mark.parametrize("name", NAMES)
def test_quantiles_are_those_of_outputs_not_learned_from(name: str) -> None:
    random = np.random.default_rng(1)
    predictor = make(name)
    teach(predictor, np.rint(random.lognormal(4.5, 0.8, 1500)) + 1)
    test = np.rint(random.lognormal(4.5, 0.8, 4000)) + 1
    below = [(test[:, None] <= quantiles(predictor, ask(f"new{number}"))).mean(0) for number in range(40)]
    assert np.abs(np.mean(below, axis=0) - QUARTERS).max() < 0.06


@pytest.mark.parametrize("name", NAMES)
def test_what_was_produced_conditions_the_answer(name: str) -> None:
    random = np.random.default_rng(2)
    outputs = np.where(random.random(2000) < 0.7, random.integers(5, 20, 2000), random.integers(300, 500, 2000))
    predictor = make(name)
    teach(predictor, outputs)
    assert quantiles(predictor, ask("new"))[1] < 40
    later = quantiles(predictor, ask("new"), 60) + 60
    assert 230 < later[1] < 520, "whoever is past the short ones is one of the long ones"
    beyond = quantiles(predictor, ask("new"), 5000)
    assert beyond[0] >= 1 and np.isfinite(beyond).all()


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_told_apart(name: str) -> None:
    random = np.random.default_rng(3)
    predictor = make(name)
    for _ in range(40):
        teach(predictor, random.integers(8, 12, 10), app="sql", stage="check")
        teach(predictor, random.integers(300, 400, 10), app="sql", stage="write")
    short, long = (quantiles(predictor, ask("new", app="sql", stage=stage))[1] for stage in ("check", "write"))
    assert short < 25 and 200 < long < 500


@pytest.mark.parametrize("name", NAMES)
def test_drift_is_followed(name: str) -> None:
    predictor = make(name)
    random = np.random.default_rng(4)
    teach(predictor, random.integers(10, 20, 1500))
    teach(predictor, random.integers(400, 800, 2500))
    assert quantiles(predictor, ask("new"))[1] > 300


@pytest.mark.parametrize("name", NAMES)
def test_outputs_cut_short_are_no_samples_but_say_something(name: str) -> None:
    random = np.random.default_rng(5)
    true = random.geometric(0.01, 4000)
    limit = random.geometric(0.01, 4000)
    counted, dropped = make(name), make(name)
    for number, (length, cut) in enumerate(zip(true.tolist(), limit.tolist(), strict=True)):
        request = ask(str(number))
        counted.observe(request, min(length, cut), ended=length <= cut)
        if length <= cut:
            dropped.observe(request, length, ended=True)
    median = float(np.median(true))

    def middle(predictor: object) -> float:
        return float(np.mean([quantiles(predictor, ask(f"new{number}"))[1] for number in range(40)]))

    assert middle(counted) == pytest.approx(median, rel=0.2)
    assert middle(dropped) < 0.75 * median, "dropping them makes outputs seem short"


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_bounded(name: str) -> None:
    import pickle

    predictor = make(name)
    sizes = []
    for number in range(3000):
        request = ask(str(number), app=f"app{number}", stage=f"stage{number}", tenant=f"tenant{number}", prompt=4)
        predictor.predict(request, number % 50)
        predictor.observe(request, 1 + number % 90, ended=True)
        if number in (1500, 2999):
            sizes.append(len(pickle.dumps(predictor)))
    assert sizes[1] < 1.2 * sizes[0] < 100e6


@pytest.mark.parametrize("name", NAMES)
def test_a_file_carries_what_was_learned(name: str, tmp_path: Path) -> None:
    path = tmp_path / "lengths"
    first = make(name, file=path)
    assert first.predict(ask("new"), 0) is None, "nothing is known yet"
    random = np.random.default_rng(6)
    teach(first, random.integers(50, 90, 300), app="a", stage="s")
    first.save(path)
    second = make(name, file=path)
    for request in (ask("x", app="a", stage="s"), ask("y")):
        for produced in (0, 60):
            assert np.array_equal(second.predict(request, produced), first.predict(request, produced))  # type: ignore[arg-type]
    teach(second, [70] * 10, app="a", stage="s")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", NAMES)
def test_files_of_something_else_are_refused(name: str, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"not a predictor")
    other = make(NAMES[(NAMES.index(name) + 1) % 3])
    teach(other, [5, 6])
    other.save(tmp_path / "other")
    cut = make(name)
    teach(cut, [5, 6])
    cut.save(tmp_path / "cut")
    content = (tmp_path / "cut").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    for file, message in ((junk, "holds no learned"), (tmp_path / "other", "was written by"), (tmp_path / "cut", "no learned")):
        with pytest.raises(ConfigError, match=f"{name}: file=.*{message}"):
            make(name, file=file)
    with pytest.raises(ConfigError, match="there is no folder"):
        make(name, file=tmp_path / "nowhere" / "lengths")


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_teaches_it_and_keeps_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "lengths"
    predictor = make(name, file=path)
    seen: list[tuple[str, int, bool]] = []
    observe = predictor.observe

    def watched(request: Request, output: int, *, ended: bool) -> None:
        seen.append((request.id, output, ended))
        observe(request, output, ended=ended)

    predictor.observe = watched  # type: ignore[method-assign]
    engine = make_engine(lengths=predictor)
    for id, tokens in (("a", 5), ("b", 30), ("c", 9)):
        engine.add(Request(id=id, prompt=np.arange(6), sampling=SamplingParams(max_tokens=tokens, temperature=0)))
    for _ in range(12):
        engine.step()
    engine.cancel("b")
    engine.add(Request(id="unserved", prompt=np.arange(6), sampling=SamplingParams(max_tokens=3)))
    engine.cancel("unserved")
    engine.run()
    assert {(id, ended) for id, _, ended in seen} == {("a", True), ("c", True), ("b", False)}
    assert {id: output for id, output, ended in seen if ended} == {"a": 5, "c": 9}
    assert path.exists(), "it is written while outputs end"
    predictor.learn(Event(1.0, Kind.FINISHED, 99, 3.0, float(Finish.STOP)), None, engine._planner)


@pytest.mark.parametrize("name", NAMES)
def test_the_view_clips_it_to_what_the_request_may_still_produce(name: str) -> None:
    predictor = make(name)
    teach(predictor, [500] * 60)
    engine = make_engine(lengths=predictor)
    request = Request(id="a", prompt=np.arange(6), sampling=SamplingParams(max_tokens=12, temperature=0))
    engine.add(request)
    engine.step()
    (seq,) = engine.ledger.sequences.values()
    found = engine._planner.remaining_output(seq)
    assert found.max() <= engine._planner.room(seq) == 12 - seq.output_length


def test_bad_knobs_are_refused() -> None:
    for text, message in (
        ("length-histogram:half_life=0", "half_life must be a number of outputs"),
        ("length-similarity:memory=0", "memory must be at least 1"),
        ("length-similarity:nearest=-1", "nearest must be at least 1"),
        ("length-quantiles:rate=0", "rate must be above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            EngineConfig.build(with_=[text]).make(text.partition(":")[0])
    with pytest.raises(ConfigError, match=r"both decide scheduling\.lengths"):
        EngineConfig.build(with_=["length-histogram,length-quantiles"])
