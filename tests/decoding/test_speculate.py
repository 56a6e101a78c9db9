"""Speculation as people switch it on: words, names, files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.engine import tiny

from hasten.engine.config import EngineConfig
from hasten.engine.decoding import words
from hasten.engine.technique import ConfigError
from hasten.lab.testbed.evaluate import in_options


def test_words_stand_for_techniques() -> None:
    assert EngineConfig.build(speculate="ngram").decoding.proposers == ("prompt-lookup",)
    assert EngineConfig.build(speculate="suffix, ngram").decoding.proposers == ("suffix-tree", "prompt-lookup")
    drafting = EngineConfig.build(speculate="ngram,draft:some/model")
    assert drafting.decoding.proposers == ("prompt-lookup", "draft-model")
    assert drafting.options(words_of("draft-model")).model == "some/model"
    assert EngineConfig.build(speculate="draft").decoding.proposers == ("draft-model",)
    assert EngineConfig.build(speculate="off").decoding.proposers == ()
    both = EngineConfig.build(speculate="ngram", with_=["prompt-lookup:most=4,suffix-tree,forced-tokens"])
    assert both.decoding.proposers == ("prompt-lookup", "suffix-tree") and both.decoding.forced == "forced-tokens"
    assert both.options(words_of("prompt-lookup")).most == 4


def words_of(name: str):  # type: ignore[no-untyped-def]
    from hasten.engine.technique import find

    return find(name)


def test_words_overrule_what_a_file_or_base_has(tmp_path: Path) -> None:
    file = tmp_path / "hasten.toml"
    file.write_text('[decoding]\nproposers = ["suffix-tree"]\n[techniques.suffix-tree]\nmost = 4\n')
    assert EngineConfig.build(file=file).decoding.proposers == ("suffix-tree",)
    assert EngineConfig.build(file=file, with_=["prompt-lookup"]).decoding.proposers == ("suffix-tree", "prompt-lookup")
    base = EngineConfig.build(with_=["suffix-tree:most=4", "forced-tokens"])
    for given in ({"file": file}, {"base": base}):
        config = EngineConfig.build(**given, speculate="ngram")  # type: ignore[arg-type]
        assert config.decoding.proposers == ("prompt-lookup",) and "suffix-tree" not in config.techniques
        off = EngineConfig.build(**given, speculate="off")  # type: ignore[arg-type]
        assert off.decoding.proposers == () and not set(off.techniques) & {"suffix-tree", "prompt-lookup"}
        same = EngineConfig.build(**given, speculate="suffix")  # type: ignore[arg-type]
        assert same.decoding.proposers == ("suffix-tree",)


def test_off_beside_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="speculate=off and prompt-lookup cannot run together"):
        EngineConfig.build(speculate="off", with_=["prompt-lookup:most=4"])
    assert EngineConfig.build(speculate="off", with_=["forced-tokens"]).decoding.proposers == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fast", "'fast' is not one of auto, off, ngram"),
        ("ngram,off", "'off' is not one of"),
        ("ngram:3", "'ngram:3' should be written ngram"),
        ("draft:", "'draft:' should be written draft or draft:MODEL"),
        ("ngram,ngram", "named twice"),
        ("", "'' is not one of"),
    ],
)
def test_what_is_no_word_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EngineConfig.build(speculate=text)


def test_a_word_may_take_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(words.WORDS, "short", ("prompt-lookup", "most"))
    assert words.techniques("suffix,short:5") == {"suffix-tree": {}, "prompt-lookup": {"most": "5"}}
    assert words.techniques("short") == {"prompt-lookup": {}}
    with pytest.raises(ConfigError, match="should be written short or short:MOST"):
        words.techniques("short:")


def test_lists_are_written_as_text_and_read_again() -> None:
    config = EngineConfig.build(set_=["decoding.proposers=suffix-tree,prompt-lookup"])
    assert config.decoding.proposers == ("suffix-tree", "prompt-lookup")
    assert EngineConfig.model_validate_json(config.model_dump_json()) == config
    assert in_options(config) == "--set decoding.proposers=suffix-tree,prompt-lookup"
    assert in_options(EngineConfig.build(speculate="ngram,suffix")) == "--with prompt-lookup --with suffix-tree"
    assert EngineConfig.build(base=config, set_=["decoding.proposers=none"]).decoding.proposers == ()


def test_a_store_that_cannot_drop_refuses_drafts(tmp_path: Path) -> None:
    from hasten.engine.assemble import require

    config = EngineConfig.build(speculate="ngram", set_=["kv.reuse=none"])
    with pytest.raises(ConfigError, match="flashforge and prompt-lookup cannot run together: its store does no truncate"):
        require(config, SimpleNamespace(supports=frozenset()))  # type: ignore[arg-type]
    require(config, SimpleNamespace(supports=frozenset({"truncate", "tree"})))  # type: ignore[arg-type]


def test_completions_say_what_was_drafted(tmp_path: Path) -> None:
    built = tiny.engine(tiny.folder(tmp_path), with_=("prompt-lookup",))
    from tests.engine.test_loop import request

    deltas = tiny.run(built, [request("r", [5, 6, 7, 8] * 8, max_tokens=40, ignore_eos=True)])[("r", 0)]
    stats = built.engine.stats()
    assert sum(delta.drafted for delta in deltas) == stats["drafted_total"] > 0
    assert sum(delta.accepted for delta in deltas) == sum(stats["accepted_by_depth"])
    assert all(delta.accepted <= len(delta.tokens) for delta in deltas)


@pytest.mark.parametrize(
    "knob",
    [
        "prompt-lookup:shortest=0",
        "prompt-lookup:most=-1",
        "suffix-tree:least=0",
        "suffix-tree:least=1.5",
        "suffix-tree:tokens=10",
        "suffix-tree:most=0",
        "draft-model:length=0",
        "smart-spec:loss=0",
    ],
)
def test_bad_knobs_are_refused_before_anything_is_loaded(knob: str) -> None:
    name, _, rest = knob.partition(":")
    with pytest.raises(ConfigError, match=f"{name}: {rest.partition('=')[0]}: Input should be"):
        EngineConfig.build(with_=[knob])


def test_auto_governs_what_else_is_named() -> None:
    def said(text: str) -> tuple[str | None, tuple[str, ...]]:
        decoding = EngineConfig.build(speculate=text).decoding
        return decoding.governor, decoding.proposers

    assert said("auto") == ("smart-spec", ("prompt-lookup",))
    assert said("suffix,auto,draft:somewhere") == ("smart-spec", ("suffix-tree", "draft-model"))
    assert said("ngram") == (None, ("prompt-lookup",))
    base = EngineConfig.build(speculate="auto")
    assert EngineConfig.build(base=base, speculate="off").decoding.governor is None
    with pytest.raises(ConfigError, match="smart-spec cannot run together"):
        EngineConfig.build(speculate="off", with_=["smart-spec"])


def test_the_command_line_drafts_where_it_can() -> None:
    from hasten.cli.options import Asked

    def decoding(*with_: str, speculate: str | None = None, set_: tuple[str, ...] = ()) -> tuple[str | None, tuple[str, ...]]:
        found = Asked(None, list(with_), list(set_), speculate=speculate, auto=True).config().decoding
        return found.governor, found.proposers

    assert decoding() == ("smart-spec", ("prompt-lookup",))
    assert decoding(speculate="off") == (None, ())
    assert decoding("suffix-tree") == (None, ("suffix-tree",))
    assert Asked(None, [], []).config().decoding.proposers == ()


def test_auto_gives_way_to_a_store_that_cannot_drop() -> None:
    from hasten.engine.assemble import require

    config = EngineConfig.build(speculate="auto", set_=["kv.reuse=none", "decoding.drafts_if_possible=true"])
    require(config, SimpleNamespace(supports=frozenset({"truncate"})))  # type: ignore[arg-type]
    assert config.decoding.proposers == () and config.decoding.governor is None
