"""Claims: found, run, judged, kept and written to pages, on claims made up here."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hasten.cli.claims import app
from hasten.lab.claims import machine, registry
from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.registry import ClaimError
from hasten.lab.claims.render import fill, page, render
from hasten.lab.claims.result import Verdict, judge
from hasten.lab.claims.run import Finished, run
from hasten.lab.claims.statistics import interval
from hasten.lab.claims.store import docs_folder, keep, stored

NEED = Requirement(name="speed-up", what="speed-up", paper="2x on an A100", unit="x", at_least=2.0)
COST = Requirement(name="cost", what="cost when idle", unit="%", at_most=3.0)


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.Machine(
        cpu="a CPU", cores=2, physical_cores=1, memory_bytes=1 << 30, python="3", torch="2", kernels="k",
        read_bytes_per_s=[4e10],
    )  # fmt: skip
    monkeypatch.setattr(machine, "facts", lambda: here.model_copy(deep=True))
    monkeypatch.setattr(machine, "read_bandwidth", lambda: 3e10)


def claim(ups: Sequence[float], costs: Sequence[float] = (1.0, 1.0), *, held: bool = True, **outcome: Any) -> Claim:
    def measure(setting: Setting) -> Outcome:
        setting.progress("half way", 0.5)
        return Outcome({"speed-up": ups, "cost": costs}, guards=[Guard("equal tokens", held, "40 of 40")], **outcome)

    return Claim(
        name="made-up", title="A thing made up", paper="Nobody, 2023", workload="w", baseline="b", technique="t",
        requirements=(NEED, COST), run=measure,
    )  # fmt: skip


# -- statistics --------------------------------------------------------------------------------------------------------


def test_few_samples_make_the_whole_range_and_say_how_sure_it_is() -> None:
    assert interval([3, 1, 2]) == interval([1, 2, 3])
    found = interval([3, 1, 2])
    assert (found.median, found.low, found.high, found.confidence) == (2, 1, 3, 0.75)
    assert interval([5]).confidence == 0
    nine = interval(range(9))
    assert (nine.median, nine.low, nine.high) == (4, 1, 7) and nine.confidence >= 0.95
    for bad in ([], [1.0, float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match=r"no samples|finite"):
            interval(bad)


@pytest.mark.parametrize("count", [3, 5, 9, 15])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(count)
    draws = rng.lognormal(0, 1.5, (4000, count))  # true median 1, and far from symmetric
    found = [interval(row.tolist()) for row in draws]
    share = np.mean([one.low <= 1 <= one.high for one in found])
    assert abs(share - found[0].confidence) < 0.025


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40))
def test_the_interval_lies_around_the_median_and_inside_the_samples(samples: list[float]) -> None:
    found = interval(samples)
    assert min(samples) <= found.low <= found.median <= found.high <= max(samples)
    assert 0 <= found.confidence < 1


# -- judging -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "quick", "full"),
    [
        ([2.1, 2.2, 2.5], Verdict.MET, Verdict.MET),
        ([1.9, 2.2, 2.5], Verdict.UNDECIDED, Verdict.MET),
        ([1.5, 1.9, 2.2], Verdict.UNDECIDED, Verdict.SHORT),
        ([1.5, 1.6, 1.7], Verdict.SHORT, Verdict.SHORT),
        ([2.0, 2.0, 2.0], Verdict.MET, Verdict.MET),
    ],
)
def test_a_quick_run_is_judged_by_its_whole_interval(samples: list[float], quick: Verdict, full: Verdict) -> None:
    assert judge(NEED, samples, quick=True).verdict is quick
    assert judge(NEED, samples, quick=False).verdict is full
    mirrored = Requirement(name="x", what="x", at_most=-2.0)
    assert judge(mirrored, [-sample for sample in samples], quick=True).verdict is quick
    assert judge(Requirement(name="x", what="x"), samples, quick=True).verdict is Verdict.REPORTED


def test_both_sides_of_a_requirement_count() -> None:
    both = Requirement(name="x", what="x", at_least=1.0, at_most=2.0)
    assert judge(both, [1.5], quick=False).verdict is Verdict.MET
    assert judge(both, [2.5], quick=False).verdict is Verdict.SHORT
    assert judge(both, [0.5, 1.5, 1.6], quick=True).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("ups", "costs", "held", "verdict", "code"),
    [
        ([3, 3, 3], [1, 1], True, Verdict.MET, 0),
        ([3, 3, 3], [5, 5], True, Verdict.SHORT, 1),
        ([1, 3, 3], [1, 1], True, Verdict.UNDECIDED, 3),
        ([1, 3, 3], [5, 5], True, Verdict.SHORT, 1),
        ([3], [1, 1], True, Verdict.UNDECIDED, 3),
        ([3, 3, 3], [1, 1], False, Verdict.BROKEN, 1),
    ],
)
def test_the_verdict_and_its_exit_code(ups: list[float], costs: list[float], held: bool, verdict: Verdict, code: int) -> None:
    result = run(claim(ups, costs, held=held), quick=True).result
    assert (result.verdict, result.verdict.exit_code) == (verdict, code)


def test_results_name_the_commit() -> None:
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?|unknown", machine.commit())


def test_what_a_claim_leaves_out_or_makes_up_is_an_error() -> None:
    with pytest.raises(ClaimError, match="nothing was measured for cost"):
        run(claim([3], []))
    with pytest.raises(ClaimError, match="finite"):
        run(claim([float("nan")]))
    with pytest.raises(ClaimError, match="sped"):
        run(claim([3], shortfall={"sped-up": "x"}))


def test_a_shortfall_keeps_its_reason_only_where_it_falls_short() -> None:
    reasons = {"speed-up": "the machine is small", "cost": "never"}
    result = run(claim([1.0], shortfall=reasons)).result
    assert [figure.shortfall for figure in result.figures] == ["the machine is small", ""]


# -- keeping and writing -----------------------------------------------------------------------------------------------


def finished(**changes: Any) -> Finished:
    done = run(claim([1.5, 1.6, 1.9], shortfall={"speed-up": "too few cores"}, notes=["a note"], details={"rows": 3}))
    return Finished(done.result.model_copy(update=changes), {"made-up": b"png", "curve": b"png2"})


def test_full_results_are_kept_and_read_back(tmp_path: Path) -> None:
    done = finished()
    path = keep(done, tmp_path)
    assert path == tmp_path / "claims/made-up.json"
    (back,) = stored(tmp_path)
    assert back == done.result.model_copy(update={"pictures": ["made-up.png", "made-up-curve.png"]})
    assert (tmp_path / "img/claims/made-up-curve.png").read_bytes() == b"png2"
    assert json.loads(path.read_text())["machine"]["read_bytes_per_s"] == [4e10, 3e10]
    with pytest.raises(ClaimError, match="only full runs"):
        keep(finished(quick=True), tmp_path)
    path.write_text('{"claim": 3}')
    with pytest.raises(ClaimError, match=r"made-up\.json holds no result"):
        stored(tmp_path)


def test_the_page_shows_a_shortfall_as_one(tmp_path: Path) -> None:
    keep(finished(), tmp_path)
    other = Claim(
        name="other", title="Later", paper="", workload="", baseline="", technique="", requirements=(),
        run=lambda setting: Outcome({}),
    )  # fmt: skip
    text = page(stored(tmp_path), [claim([1]), other])
    overview, section = text.split("## made-up")
    (row,) = (line for line in overview.splitlines() if "[made-up](#made-up)" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == ["speed-up", "2x on an A100", "at least 2x"]
    assert cells[4:] == ["1.6x (1.5x to 1.9x; 3 rounds, 75% sure)", "**falls short**"]
    assert "`other` (Later)" in overview and "Not measured" in overview
    for words in ("**speed-up: falls short.** too few cores", "Guard *equal tokens*: held. 40 of 40", "- a note",
                  "](img/claims/made-up-curve.png)", "*Baseline:* b", "a CPU, 2 cores", "40 GB/s and 30 GB/s"):  # fmt: skip
        assert words in section
    assert "imulat" not in section
    assert "(simulated): falls short" in page([finished(simulated=True).result], [])
    broken = page([run(claim([3], held=False)).result], [])
    assert "broken: no figure counts" in broken and "**guard broken**" in broken


def test_tables_have_as_many_cells_as_columns() -> None:
    result = finished().result
    result.figures[0].paper = "2x | 3x\nand more"
    for table, columns in ((page([result], []).split("## made-up")[0], 6), (page([result], []).split("## made-up")[1], 5)):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert [row.replace("\\|", "").count("|") - 1 for row in rows] == [columns] * 4


def test_only_the_marked_part_of_a_techniques_page_is_written(tmp_path: Path) -> None:
    pages = tmp_path / "techniques"
    pages.mkdir()
    before = "# T\n<!-- claim: made-up -->\nold\n<!-- end of claim -->\nafter\n"
    (pages / "t.md").write_text(before)
    (pages / "u.md").write_text("no markers")
    keep(finished(), tmp_path)
    written = render(stored(tmp_path), [], tmp_path)
    assert written == [tmp_path / "claims.md", pages / "t.md"]
    text = (pages / "t.md").read_text()
    assert text.startswith("# T\n<!-- claim: made-up -->\n| what |") and text.endswith("<!-- end of claim -->\nafter\n")
    assert "old" not in text and "**falls short**" in text
    assert fill(text, stored(tmp_path)) == text, "writing again changes nothing"
    assert render(stored(tmp_path), [], tmp_path) == [tmp_path / "claims.md"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClaimError, match="is no folder"):
        docs_folder(tmp_path / "nowhere")
    assert docs_folder(tmp_path) == tmp_path
    monkeypatch.setattr("hasten.__file__", str(tmp_path / "a/b/hasten/__init__.py"))
    with pytest.raises(ClaimError, match="--docs FOLDER"):
        docs_folder()


# -- the registry and the command line ---------------------------------------------------------------------------------


def test_every_claim_is_whole() -> None:
    found = registry.all_claims()
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert registry.find(one.name) is one
        names = [requirement.name for requirement in one.requirements]
        assert names and len(set(names)) == len(names)
        assert any(r.at_least is not None or r.at_most is not None for r in one.requirements)
        assert one.paper and one.workload and one.baseline and one.technique
    with pytest.raises(ClaimError, match="no claim is called 'registry'"):
        registry.find("registry")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[Claim]:
    claims = [claim([1, 3, 3])]
    monkeypatch.setattr(registry, "find", lambda name: claims[0])
    monkeypatch.setattr(registry, "all_claims", lambda: claims)
    return claims


def test_the_commands(made_up: list[Claim], tmp_path: Path) -> None:
    cli = CliRunner()
    quick = cli.invoke(app, ["run", "made-up", "--quick", "--json"])
    assert quick.exit_code == 3 and json.loads(quick.stdout)["verdict"] == "undecided"
    full = cli.invoke(app, ["run", "made-up", "--docs", str(tmp_path)])
    assert full.exit_code == 0 and "met" in full.stdout
    assert "made-up" in (tmp_path / "claims.md").read_text()
    assert cli.invoke(app, ["render", "--docs", str(tmp_path)]).stdout.strip() == str(tmp_path / "claims.md")
    made_up[0] = claim([1, 1], shortfall={"speed-up": "too small"})
    short = cli.invoke(app, ["all", "--quick"])
    assert short.exit_code == 1 and "falls short. too small" in short.stdout
    assert "at least 2x" in cli.invoke(app, ["list"]).stdout
    wrong = cli.invoke(app, ["run", "made-up", "--docs", str(tmp_path / "nowhere")])
    assert wrong.exit_code == 2 and "is no folder" in wrong.output
    assert cli.invoke(app, ["run", "made-up", "--quick", "--docs", str(tmp_path)]).exit_code == 2
