"""Configuration files: what they say, what wins over them, and what is said of broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.engine.config import EngineConfig
from hasten.engine.technique import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "engine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_sections_and_techniques(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        '[kv]\nblock_size = 16\nreuse = "none"\n[scheduling]\nqueue_limit = 3\n[techniques.stall-free]\nchunk = 256\n'
        "[techniques.priority]\n",
    )
    config = EngineConfig.build(file=file)
    assert (config.kv.block_size, config.kv.reuse, config.scheduling.queue_limit) == (16, None, 3)
    assert config.techniques == {"stall-free": {"chunk": "256"}, "priority": {}}
    assert (config.scheduling.batching, config.scheduling.order) == ("stall-free", "priority")
    assert config == EngineConfig.build(
        with_=["stall-free:chunk=256,priority"], set_=["kv.block_size=16", "kv.reuse=none", "scheduling.queue_limit=3"]
    )


def test_an_empty_file_is_the_plain_engine(tmp_path: Path) -> None:
    assert EngineConfig.build(file=written(tmp_path, "# nothing\n")) == EngineConfig.build()


def test_everything_else_wins_over_the_file(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        '[model]\npath = "from-file"\n[kv]\nblock_size = 16\n[scheduling]\norder = "priority"\nbatching = "whole-prompts"\n'
        "[techniques.whole-prompts]\n",
    )
    assert EngineConfig.build(file=file).model.path == "from-file"
    assert EngineConfig.build("given", file=file).model.path == "given"
    assert EngineConfig.build("given", set_=["model.path=set"], file=file).model.path == "set"
    assert EngineConfig.build(file=file, set_={"kv.block_size": 64}).kv.block_size == 64
    assert EngineConfig.build(file=file, with_=["fcfs"]).scheduling.order == "fcfs"


def test_knobs_given_again_win_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, '[techniques.stall-free]\nchunk = 256\n[scheduling]\nbatching = "stall-free"\n')
    config = EngineConfig.build(file=file, with_=["stall-free:chunk=64"])
    assert config.techniques == {"stall-free": {"chunk": "64"}}


def test_a_setting_in_the_file_wins_over_its_own_techniques(tmp_path: Path) -> None:
    file = written(tmp_path, '[techniques.priority]\n[scheduling]\norder = "fcfs"\n')
    assert EngineConfig.build(file=file).scheduling.order == "fcfs"


@pytest.mark.parametrize("value", ["00:1", "a,b", "x=y"])
def test_knobs_may_hold_what_the_command_line_splits_at(tmp_path: Path, value: str) -> None:
    # It reaches the knob whole: the error is about its value, not about how it was written.
    file = written(tmp_path, f'[techniques.stall-free]\nchunk = "{value}"\n')
    with pytest.raises(ConfigError, match=r"stall-free: chunk: .*integer"):
        EngineConfig.build(file=file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("block_size = 16\n", r"block_size=16 stands outside a section"),
        ("[kv]\nblocksize = 16\n", r"no setting is called 'kv\.blocksize'; accepted here: block_size"),
        ("[cache]\nsize = 16\n", r"no setting is called 'cache\.size'"),
        ("[kv]\nblock_size = 7\n", r"kv\.block_size=7"),
        ("[kv\nblock_size = 16\n", r"engine\.toml is no TOML"),
        ('techniques = "stall-free"\n', r"techniques are tables"),
        ("[techniques]\nstall-free = 1\n", r"techniques are tables"),
        ("[techniques.stall-fre]\n", r"no technique is called 'stall-fre'; did you mean stall-free"),
        ("[techniques.stall-free]\nchunks = 1\n", r"stall-free has no knob called 'chunks'; it has chunk"),
        ("[techniques.stall-free]\n[techniques.whole-prompts]\n", r"cannot run together"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        EngineConfig.build(file=written(tmp_path, text))
    assert "\n" not in str(refusal.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: No such file"):
        EngineConfig.build(file=tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        EngineConfig.build(file=tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[model]\npath = "\xe4"\n')
    with pytest.raises(ConfigError, match="is no TOML"):
        EngineConfig.build(file=tmp_path / "latin.toml")


def test_techniques_of_the_file_make_way_for_those_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "hasten.toml"
    path.write_text("[techniques.whole-prompts]\n[kv]\nblock_size = 16\n")
    config = EngineConfig.build(with_=["stall-free:chunk=64"], file=path)
    assert config.scheduling.batching == "stall-free"
    assert list(config.techniques) == ["stall-free"]
    assert config.kv.block_size == 16
