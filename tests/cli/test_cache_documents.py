"""`hasten cache warm --documents`: what a server is sent, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_cache_cli import call
from tests.server.conftest import Running, make_server  # noqa: F401  # the fixture

from hasten.engine.technique import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "handbook"
    (place / "more").mkdir(parents=True)
    (place / "a.txt").write_text("the first page")
    (place / "more" / "b.md").write_text("the second page")
    (place / ".hidden").write_text("not this one")
    return place


@pytest.fixture
def server(make_server: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> Running:  # noqa: F811
    """One whose engine counts the chunks that it was shown: as new the first time."""
    running = make_server()
    engine: Any = running.engine
    plain = engine.stats

    def stats() -> dict[str, Any]:
        seen = [engine.tokenizer.decode(r.prompt[a:b].tolist()) for r in engine.seen for a, b in r.chunks]
        new = len(set(seen))
        return {**plain(), "chunks_computed": new, "chunks_linked": len(seen) - new, "chunks_evicted": 0, "chunk_blocks": new}

    monkeypatch.setattr(engine, "stats", stats)
    return running


def chunks(server: Running) -> list[str]:
    decode = server.engine.tokenizer.decode
    return [decode(r.prompt[start:stop].tolist()) for r in server.engine.seen for start, stop in r.chunks]


def test_every_document_goes_once_as_a_chunk(server: Running, folder: Path) -> None:
    done = call("warm", "--documents", folder, "--server", server.url, "--system", "Be brief.")
    assert done.exit_code == 0 and "2 documents: 2 computed, 0 there before" in done.output
    assert chunks(server) == ["the first page", "the second page"]
    texts = [server.engine.tokenizer.decode(request.prompt.tolist()) for request in server.engine.seen]
    assert all(text.startswith("<system>Be brief.|<user>") for text in texts)
    assert {request.sampling.max_tokens for request in server.engine.seen} == {1}
    again = call("warm", "--documents", folder, "--server", f"{server.url}/v1/")
    assert "2 documents: 0 computed, 2 there before" in again.output


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(server: Running, folder: Path) -> None:
    (folder / "aa.bin").write_bytes(b"\xff\xfe\x00")
    (folder / "ab.txt").write_text("\n")
    (folder / "ac.txt").write_text("word " * 20000)
    done = call("warm", "--documents", folder, "--server", server.url)
    assert done.exit_code == 0 and "2 documents: 2 computed" in done.output
    said = done.output.replace("\n", " ")
    assert "aa.bin: is no text" in said and "ab.txt: is empty" in said and "ac.txt: " in said and "holds 512 tokens" in said


def test_a_server_that_reuses_no_chunks_is_told_apart(make_server: Callable[..., Running], folder: Path) -> None:  # noqa: F811
    running = make_server()
    with pytest.raises(ConfigError, match="reuses no chunks"):
        call("warm", "--documents", folder, "--server", running.url)
    assert not running.engine.seen
    with pytest.raises(ConfigError, match="refused"):
        call("warm", "--documents", folder, "--server", "http://127.0.0.1:1")


@pytest.mark.parametrize("given", [["FILE"], ["--disk", "x", "--documents", "FOLDER"], ["FILE", "--documents", "FOLDER"], []])
def test_a_file_for_a_disk_or_documents_for_a_server(folder: Path, given: list[str]) -> None:
    named = {"FILE": folder / "a.txt", "FOLDER": folder}
    done = call("warm", *(named.get(one, one) for one in given))
    assert done.exit_code == 2 and "--documents" in done.output
