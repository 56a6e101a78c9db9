"""The report: one file that loads nothing, says what must be said, and a browser shows without a fault."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.lab.runs import Life, run_of

from hasten.engine.request import SLO
from hasten.lab.bench import report, report_plots
from hasten.lab.bench.compare import compare
from hasten.lab.bench.metrics import requests, summary
from hasten.lab.bench.run import Run
from hasten.lab.bench.saturation import Probe


def busy(name: str, slower: float = 1.0, **fields: object) -> Run:
    """Sixty requests that queue behind each other, one of which stalls."""
    lives = []
    for i in range(60):
        start = 0.1 * i + 0.05 * slower * (i % 10)
        commits = [(start + 0.05 + 0.01 * slower * j, 1) for j in range(20)]
        if i == 30:
            commits = [(at + (0.5 if j > 10 else 0.0), tokens) for j, (at, tokens) in enumerate(commits)]
        lives.append(Life(0.1 * i, start, commits, commits[-1][0]))
    steps = [(0.02 * i, 50 + i % 40) for i in range(1, 300)]
    return run_of(lives, name=name, steps=steps, total_blocks=100, **fields)


def written(path: Path, runs: list[Run], **how: object) -> str:
    report.write(path, runs, **how)  # type: ignore[arg-type]
    return path.read_text()


def test_one_run_with_everything(tmp_path: Path) -> None:
    page = written(tmp_path / "r.html", [busy("plain")], slo=SLO(ttft_s=0.3), notes=["A <note>."])
    for heading in ("Distributions", "Latency over time", "The engine", "Timeline"):
        assert f"<h2>{heading}</h2>" in page
    assert "jointly kept TTFT &lt;= 300 ms" in page and "A &lt;note&gt;." in page
    assert "SIMULATED" not in page and "INVALID" not in page
    assert f"{summary(busy('plain'), SLO(ttft_s=0.3))['goodput']:.1%}" in page


def test_the_file_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = written(tmp_path / "r.html", [busy("plain")])
    addresses = set(re.findall(r"https?://[^\"'\s<>)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "namespaces only"
    assert "<script" not in page and "@import" not in page


def test_pictures_are_sound_and_follow_the_page(tmp_path: Path) -> None:
    page = written(tmp_path / "r.html", [busy("plain"), busy("other", 2.0)], slo=SLO(ttft_s=0.3))
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) == 5
    ids: list[str] = []
    for svg in pictures:
        ElementTree.fromstring(svg)
        ids += re.findall(r'\bid="([^"]+)"', svg)
        for reference in re.findall(r'(?:url\(#|href="#)([^)"]+)', svg):
            assert reference in ids
    assert len(ids) == len(set(ids)), "ids are unique in the whole page"
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", "".join(pictures)))
    assert {"--soft", "--series0", "--series1", "--stall", "--queue", "--limit"} <= used
    assert used <= set(re.findall(r"(--[a-z0-9]+):", page)), "every colour is defined"
    assert not re.search(r"#0[1-5]0[1-4]0[1-4]", page), "no stand-in colour is left"


def test_simulated_and_invalid_runs_are_said_to_be(tmp_path: Path) -> None:
    late = busy("late", 2.0)
    late.lag_s[:] = 0.2
    page = written(tmp_path / "r.html", [busy("virtual", simulated=True), late])
    assert "<b>SIMULATED</b>" in page and "The figures of virtual come" in page
    assert "<b>INVALID</b>" in page and "late: the replay itself fell behind" in page
    assert 'class="best"' not in page, "an invalid run wins and loses nothing"
    assert 'class="best"' in written(tmp_path / "s.html", [busy("one"), busy("two", 2.0)])


def test_a_comparison_leads(tmp_path: Path) -> None:
    runs = [busy("plain"), busy("slow", 2.0)]
    rounds = [(summary(runs[0]), summary(runs[1]))] * 2
    curves = {"plain": [Probe(1.0, 1.0, rounds[0][0]), Probe(2.0, 0.5, rounds[0][1])]}
    page = written(tmp_path / "r.html", runs, compared=compare(rounds), names=("plain", "slow"), curves=curves)
    assert "<h2>Side by side</h2>" in page and "<h2>Throughput and latency</h2>" in page
    assert "ratio, second to first" in page and "2.00×" in page


def test_runs_in_which_everything_failed(tmp_path: Path) -> None:
    run = run_of([Life(), Life(due_s=1.0)], errors={0: "503: <busy>", 1: "503: <busy>"})
    page = written(tmp_path / "r.html", [run], slo=SLO(ttft_s=1.0))
    assert "2 of 2 requests failed" in page and "503: &lt;busy&gt; (2×)" in page


def test_a_run_seen_by_a_client_shows_no_queue(tmp_path: Path) -> None:
    run = run_of([Life(0.1 * i, None, [(0.1 * i + 0.2, 1), (0.1 * i + 0.3, 1)], 0.1 * i + 0.3) for i in range(9)])
    page = written(tmp_path / "r.html", [run])
    assert "until the first token" in page and "waiting to be scheduled" not in page and "The engine" not in page


def test_the_timeline_shows_the_worst_stretch() -> None:
    table = requests(busy("plain"))
    chosen = report_plots.window(table)
    assert len(chosen) == 36 and table.ttft_s.max() in table.ttft_s[chosen]


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different names"):
        report.write(tmp_path / "r.html", [busy("plain"), busy("plain")])
    with pytest.raises(ValueError, match="one to 4"):
        report.write(tmp_path / "r.html", [])


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no browser")
def test_a_browser_shows_it_without_a_fault(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    path = tmp_path / "r.html"
    report.write(path, [busy("plain"), busy("slow", 2.0)], slo=SLO(ttft_s=0.3))
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme, width in (("light", 1200), ("dark", 400)):
            page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})  # type: ignore[arg-type]
            page.on("console", lambda message: faults.append(message.text))
            page.on("request", lambda request: None if request.url.startswith("file:") else faults.append(request.url))
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.locator("figure svg").count() == 5
            boxes = [page.locator("figure svg").nth(i).bounding_box() for i in range(5)]
            assert all(box is not None and box["height"] > 50 for box in boxes)
        browser.close()
    assert faults == []
