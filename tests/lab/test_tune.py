"""The search for a configuration: where the best is known it is found, and where there is none the given one stays."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.config import EngineConfig
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.simulated import SimulatedModel
from hasten.engine.request import SLO
from hasten.engine.technique import ConfigError, Technique
from hasten.lab.bench.run import Run
from hasten.lab.planning import tune as tuning
from hasten.lab.planning.devices import Device
from hasten.lab.planning.simulate import simulate
from hasten.lab.planning.tune import Candidate, Option, Tuned, dimensions, search, toml, tune
from hasten.lab.workloads.base import TimedRequest, Workload

SLOW = Device(
    model=SimulatedModel(name="test", vocabulary=1000, max_length=600),
    costs=CostModel(knots=(1, 64, 512), knot_s=(0.02, 0.03, 0.1)),
    kv_token_bytes=100,
    kv_bytes=None,
    source="a test",
)
FAST = dataclasses.replace(SLOW, costs=CostModel(knots=(1, 64, 512), knot_s=(0.002, 0.003, 0.01)))
WORK = Workload(
    name="test",
    requests=[TimedRequest(id=str(i), arrival_s=i * 0.1, prompt_tokens=80, output_tokens=6) for i in range(12)],
)
TIGHT = SLO(ttft_s=0.02, tpot_s=0.01)
"""Nothing that takes as long as SLOW keeps this."""
LOOSE = SLO(ttft_s=60.0)
BASE = EngineConfig.build(set_={"model.dtype": "float32"})


def by_dtype(config: EngineConfig) -> Device:
    return FAST if config.model.dtype == "bfloat16" else SLOW


def quiet(what: str, share: float) -> None:
    assert 0 <= share <= 1


def replayed(config: EngineConfig, name: str, number: int) -> Run:
    return simulate(WORK, by_dtype(config), config, name=name)


def tuned(base: EngineConfig = BASE, slo: SLO = TIGHT, **changes: Any) -> Tuned:
    given: dict[str, Any] = {"device_of": by_dtype, "replay": replayed, "budget_s": 60.0, "rounds": 1, **changes}
    return tune(WORK, slo, base, **given)


# -- the search --------------------------------------------------------------------------------------------------------


def test_the_best_is_found() -> None:
    found = tuned()
    assert found.winner.options["model.dtype"].value == "bfloat16"
    assert found.winner.config(BASE).model.dtype == "bfloat16"
    assert found.began.goodput == 0.0 and found.winner.goodput == 1.0
    assert found.effects["model.dtype=bfloat16"] == 0.0
    assert found.tried == sorted(found.tried, key=lambda one: -one.score)
    assert found.winner in found.confirmed and found.began in found.confirmed
    assert set(found.runs) == {one.name for one in found.confirmed}
    assert len(found.confirmed) <= 1 + tuning.BEST


def test_no_configuration_is_simulated_or_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two settings that both help, so that a second round meets the first round's choices in another order."""
    monkeypatch.setattr(tuning, "POLICIES", ())
    values = {"model.dtype": ("float32", "bfloat16"), "kv.block_size": (16, 64), "scheduling.max_rows": (64, 128)}
    monkeypatch.setattr(tuning, "FIELDS", values)

    def both(config: EngineConfig) -> Device:
        factor = (0.5 if config.model.dtype == "bfloat16" else 1.0) * (0.5 if config.kv.block_size == 64 else 1.0)
        return dataclasses.replace(SLOW, costs=CostModel(knots=(1, 512), knot_s=(0.02 * factor, 0.1 * factor)))

    found = tuned(device_of=both, replay=lambda config, name, number: simulate(WORK, both(config), config, name=name))
    assert set(found.winner.options) == {"model.dtype", "kv.block_size"}
    for some in (found.tried, found.confirmed):
        seen = [one.config(BASE).model_dump_json() for one in some]
        assert len(seen) == len(set(seen))


def test_the_given_one_stays_where_nothing_is_better_by_simulation() -> None:
    alone = Workload(name="alone", requests=[TimedRequest(id="0", arrival_s=0, prompt_tokens=40, output_tokens=6)])

    def real(config: EngineConfig, name: str, number: int) -> Run:
        return simulate(alone, SLOW, config, name=name)

    found = tune(alone, TIGHT, BASE, lambda config: SLOW, real, budget_s=60, rounds=1)
    assert len(found.tried) > 10
    assert found.winner is found.began and found.confirmed == [found.began]
    assert found.effects == {}


def test_the_given_one_stays_where_real_runs_say_otherwise() -> None:
    def disappointing(config: EngineConfig, name: str, number: int) -> Run:
        return simulate(WORK, FAST if config == BASE else SLOW, config, name=name)

    found = tuned(replay=disappointing)
    assert len(found.confirmed) > 1
    assert found.winner is found.began and found.began.goodput == 1.0


def test_equal_real_runs_keep_the_given_one() -> None:
    found = tuned(replay=lambda config, name, number: simulate(WORK, FAST, BASE, name=name))
    assert len(found.confirmed) > 1 and found.winner is found.began


def test_being_quicker_does_not_make_up_for_lost_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests of the other candidate are far quicker, but for one of 400 that fails: its score is higher all the same."""
    monkeypatch.setattr(tuning, "POLICIES", ())
    monkeypatch.setattr(tuning, "FIELDS", {"model.dtype": ("float32", "bfloat16")})
    many = [TimedRequest(id=str(i), arrival_s=i * 2.0, prompt_tokens=80, output_tokens=6) for i in range(400)]
    work = Workload(name="many", requests=many)
    lossy = Workload(name="lossy", requests=[*many[:-1], dataclasses.replace(many[-1], prompt_tokens=700)])
    slo = SLO(deadline_s=0.25)  # FAST takes 0.02 s, SLOW 0.2 s

    def real(config: EngineConfig, name: str, number: int) -> Run:
        return simulate(work if config == BASE else lossy, by_dtype(config), config, name=name)

    found = tune(work, slo, BASE, device_of=by_dtype, replay=real, budget_s=60, rounds=1)
    began, other = found.confirmed
    assert began is found.began and other.goodput == 399 / 400 and began.goodput == 1.0
    assert tuning.score(other.real[0], slo) > tuning.score(began.real[0], slo)
    assert found.winner is began


def test_rounds_alternate() -> None:
    order: list[tuple[int, str]] = []

    def noted(config: EngineConfig, name: str, number: int) -> Run:
        order.append((number, name))
        return replayed(config, name, number)

    found = tuned(replay=noted, rounds=3)
    names = [one.name for one in found.confirmed]
    assert [name for number, name in order if number == 0] == names
    assert [name for number, name in order if number == 1] == names[::-1]
    assert [name for number, name in order if number == 2] == names
    assert all(len(one.real) == 3 for one in found.confirmed)


def test_no_order_is_told_how_long_outputs_become(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long answer came just before many short ones: with true lengths known it would be served last."""
    monkeypatch.setattr(tuning, "POLICIES", ("scheduling.order",))
    monkeypatch.setattr(tuning, "FIELDS", {})
    outputs = [200, *[4] * 12]
    work = Workload(
        name="mixed",
        requests=[TimedRequest(id=str(i), arrival_s=0.0, prompt_tokens=20, output_tokens=o) for i, o in enumerate(outputs)],
    )
    base = EngineConfig.build(set_={"model.dtype": "float32", "scheduling.max_rows": 1})
    tried, _ = search(work, SLO(deadline_s=2.0), base, lambda config: SLOW, budget_s=60, progress=quiet)
    goodput = {one.name: one.simulated["goodput"] for one in tried}
    assert goodput["srpt"] == goodput["as given"] == 0.0


def test_no_budget_still_answers() -> None:
    found = tuned(budget_s=0.0)
    assert found.tried == [found.began] and found.winner is found.began
    assert tomllib.loads(toml(found, BASE, [])) == {"model": {"dtype": "float32"}}


def test_what_cannot_be_simulated_is_said_and_left_out() -> None:
    def known(config: EngineConfig) -> Device | None:
        return SLOW if config.model.dtype == "float32" else None

    tried, refused = search(WORK, LOOSE, BASE, known, budget_s=60, progress=quiet)
    assert all(one.config(BASE).model.dtype == "float32" for one in tried)
    assert "calibrate" in refused["model.dtype=bfloat16"]
    with pytest.raises(ConfigError, match="calibrate"):
        search(WORK, LOOSE, BASE, lambda config: None, budget_s=60, progress=quiet)


# -- the space ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Knobs:
    size: int = dataclasses.field(default=4, metadata={"search": (2, 4, 8)})
    plain: int = 1


def technique(name: str, *, sets: dict[str, Any], exact: bool = True, **more: Any) -> Technique:
    return Technique(name=name, seam="scheduling", summary="", exact=exact, sets=sets, **more)


def test_dimensions_hold_what_can_stand_for_each_other() -> None:
    batching = {"scheduling.batching": "x"}
    found = dimensions(
        BASE,
        [
            technique("a", sets=batching, options=Knobs),
            technique("b", sets=batching),
            technique("about", sets=batching, exact=False),
            technique("needy", sets=batching, requires=("a",)),
            technique("wide", sets={**batching, "scheduling.residency": "x"}),
            technique("length-oracle", sets=batching),
            technique("alone", sets={"scheduling.order": "x"}),
            technique("elsewhere", sets={"attention.policy": "x"}),
        ],
    )
    assert [str(option) for option in found["scheduling.batching"]] == ["a", "a:size=2", "a:size=8", "b", "wide"]
    assert "scheduling.residency" not in found, "what decides several is an option of the first"
    assert "scheduling.order" not in found and "attention.policy" not in found
    assert [option.value for option in found["kv.reuse"]] == ["prefix-tree", None]


def test_presets_and_knobs_of_every_scheduler_are_in_it() -> None:
    found = {path: {str(option) for option in options} for path, options in dimensions(BASE).items()}
    orders = {
        "fcfs",
        "srpt",
        "srpt:by=work",
        "hermes",
        "jitserve",
        "hexgen",
        "edf",
        "least-attained",
        "goodput-density:per=time",
    }
    assert orders <= found["scheduling.order"] and "priority-trace" not in found["scheduling.order"]
    assert {"sarathi-serve:slack=10.0", "splitfuse", "frames", "frames:chunk=256"} <= found["scheduling.batching"]
    assert {"rank-yields", "capped-swaps", "fastswitch"} <= found["scheduling.residency"]
    assert {"length-histogram", "length-limit"} <= found["scheduling.lengths"]
    assert found["scheduling.preempt"] == {"scheduling.preempt=False", "scheduling.preempt=True"}


def test_an_option_makes_way_for_one_that_decides_otherwise() -> None:
    options = {str(option): option for path in tuning.POLICIES for option in dimensions(BASE)[path]}

    def chosen(*names: str) -> list[str]:
        out: dict[str, Option] = {}
        for name in names:
            out = tuning._with(out, options[name], BASE)
        config = Candidate(out).config(BASE)  # nothing in it is refused
        assert config.techniques.keys() == {name.partition(":")[0] for name in map(str, out.values())}
        return [str(option) for option in out.values()]

    assert chosen("whole-prompts", "rank-yields", "jitserve", "length-histogram") == ["length-histogram", "jitserve"]
    assert chosen("jitserve", "frames:chunk=256") == ["frames:chunk=256", "jitserve"], "a part of the preset with a knob"
    assert chosen("jitserve", "whole-prompts") == ["whole-prompts"]
    assert chosen("hermes", "fcfs") == []


def test_every_option_there_is_makes_a_configuration() -> None:
    for options in dimensions(BASE).values():
        for option in options:
            config = Candidate({option.dimension: option}).config(BASE)
            section, name = option.dimension.split(".")
            assert getattr(getattr(config, section), name) == option.value


def test_a_technique_of_the_given_one_makes_way() -> None:
    base = EngineConfig.build(with_=["stall-free:chunk=64", "priority"])
    other = Candidate({"scheduling.batching": Option("scheduling.batching", "whole-prompts", "whole-prompts")})
    config = other.config(base)
    assert set(config.techniques) == {"priority", "whole-prompts"}
    assert config.scheduling.batching == "whole-prompts" and config.scheduling.order == "priority"
    again = Candidate({"scheduling.batching": Option("scheduling.batching", "stall-free", "stall-free")})
    assert again.config(base).techniques["stall-free"] == {}  # its own chunk, not the one given
    assert base.techniques == {"stall-free": {"chunk": "64"}, "priority": {}}
    assert Candidate().config(base) == base


def test_a_search_returns_to_the_plain_technique() -> None:
    """From a bad start: tiny chunks make prompts slow; what is found has another size or another policy."""
    base = EngineConfig.build(with_=["stall-free:chunk=8"], set_={"model.dtype": "float32"})
    found = tuned(
        base=base, device_of=lambda config: SLOW, replay=lambda c, n, i: simulate(WORK, SLOW, c, name=n), slo=SLO(ttft_s=0.1)
    )
    assert found.winner.goodput > found.began.goodput
    assert "scheduling.batching" in found.winner.options


# -- the file ----------------------------------------------------------------------------------------------------------


def read_back(folder: Path, base: EngineConfig, winner: Candidate, about: list[str]) -> EngineConfig:
    began = Candidate()
    found = Tuned(began=began, tried=[], confirmed=[], winner=winner, effects={}, runs={}, refused={})
    path = folder / "tuned.toml"
    path.write_text(toml(found, base, about), encoding="utf-8")
    return EngineConfig.build(file=path)


@pytest.mark.parametrize(
    ("with_", "set_"),
    [
        ([], {}),
        (["stall-free:chunk=64", "priority"], {"kv.reuse": None, "kv.block_size": 16}),
        (["static-batches:window_s=0.5:rows=8"], {"scheduling.queue_limit": 3}),
        ([], {"scheduling.order": "priority", "executor.deterministic": True, "executor.threads": 2}),
        ([], {"kv.memory_bytes": 2**40, "model.max_length": 77}),
    ],
)
def test_a_file_reads_back(tmp_path: Path, with_: list[str], set_: dict[str, Any]) -> None:
    base = EngineConfig.build(with_=with_, set_=set_)
    assert read_back(tmp_path, base, Candidate(), ["said"]) == base
    other = Candidate({"kv.reuse": Option("kv.reuse", None)})
    assert read_back(tmp_path, base, other, []) == other.config(base)


@settings(max_examples=60)
@given(
    st.one_of(
        st.sampled_from(
            ["00:1", "007", "5.", ".5", "1e5", "true", "12", "-3", "1.50", "nan", "٣", 'a"b\\c', "tab\there", "\x7f"]
        ),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    ).filter(lambda text: text.lower() not in ("none", "null"))
)
def test_any_name_reads_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    base = EngineConfig.build(set_={"model.path": name})
    assert base.model.path == name
    assert read_back(tmp_path_factory.getbasetemp(), base, Candidate(), []) == base


def test_what_is_said_stands_in_comments(tmp_path: Path) -> None:
    found = tuned(budget_s=0.0)
    lines = toml(found, BASE, ["hasten tune --workload x", "[kv] is no section here"]).splitlines()
    assert lines[:2] == ["# hasten tune --workload x", "# [kv] is no section here"]
