"""`hasten cache` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hasten.cli.cache import app
from hasten.engine.kv.bitstream.native import PATH
from hasten.engine.kv.folder import Folder
from hasten.engine.kv.peer import PeerServer
from hasten.engine.request import BadRequest
from hasten.engine.technique import ConfigError

pytestmark = pytest.mark.skipif(not PATH.exists(), reason="the library of entropy coding is not built")

WORDS = "The number of the quiet river is 7350. The keeper of the golden kettle came from the north, and said so. " * 14
TOKEN = "between us"


def call(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(WORDS)
    return file


def test_warm_list_push_drop(text: Path, tmp_path: Path) -> None:
    disk, other = tmp_path / "here", tmp_path / "there"
    done = call("warm", text, "--disk", disk, "--chunk", 128, "--codec", "cachegen-0", "--codec", "cachegen-2")
    assert done.exit_code == 0 and "tokens stored in" in done.output

    found = json.loads(call("list", "--disk", disk, "--json").output)
    starts = [one["start"] for one in found]
    assert starts == sorted(starts) and {one["codec"] for one in found} == {"cachegen-0", "cachegen-2"}
    assert all(one["tokens"] == 128 for one in found)
    fine, coarse = (sum(one["bytes"] for one in found if one["codec"] == name) for name in ("cachegen-0", "cachegen-2"))
    assert coarse < fine
    table = call("list", "--disk", disk, "--codec", "cachegen-2").output
    assert found[0]["chunk"][:12] in table and "cachegen-0" not in table and f"{len(found) // 2} chunks" in table

    server = PeerServer(Folder(other), TOKEN, writable=True)
    try:
        done = call("push", server.address, "--disk", disk, "--token", TOKEN, "--codec", "cachegen-2")
        assert done.exit_code == 0 and f"{len(found) // 2} chunks sent" in done.output
        with pytest.raises(ConfigError, match=server.address):
            call("push", server.address, "--disk", disk, "--token", "a guess")
    finally:
        server.close()
    sent = {one.head.name.hex() for one in Folder(other).list()}
    assert sent == {one["chunk"] for one in found}

    assert call("drop", "--disk", disk).exit_code == 2
    call("drop", "--disk", disk, "--codec", "cachegen-0", "--chunk-name", found[0]["chunk"][:16])
    assert len(json.loads(call("list", "--disk", disk, "--json").output)) == len(found) - 1
    assert "dropped" in call("drop", "--disk", disk, "--all").output
    assert not list(disk.glob("*.kv"))


def test_warm_takes_the_options_of_serve(text: Path, tmp_path: Path) -> None:
    """With the codec switched on, what is stored is still made of exact KV; and it says what chunks it made."""
    done = call("warm", text, "--disk", tmp_path / "here", "--chunk", 100, "--codec", "cachegen-2", "--with", "cachegen")
    assert done.exit_code == 0 and "chunks of 96" in done.output
    found = json.loads(call("list", "--disk", tmp_path / "here", "--json").output)
    assert found and {(one["codec"], one["tokens"]) for one in found} == {("cachegen-2", 96)}


def test_mistakes_are_told(text: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (["list", "--disk", tmp_path / "nowhere"], "is no folder"),
        (["list", "--disk", tmp_path, "--chunk-name", "xyz"], "hexadecimal"),
        (["warm", tmp_path / "nothing.txt", "--disk", tmp_path], "cannot read"),
        (["push", "127.0.0.1:1", "--disk", tmp_path], "wants a token"),
    ):
        done = call(*arguments)
        assert done.exit_code == 2 and said in " ".join(done.output.replace("\u2502", " ").split())
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1"):
        call("push", "127.0.0.1:1", "--disk", tmp_path, "--token", TOKEN)
    with pytest.raises(ConfigError, match="no technique is called"):
        call("warm", text, "--disk", tmp_path / "d", "--codec", "zip")
    with pytest.raises(BadRequest, match="fewer than a chunk"):
        call("warm", text, "--disk", tmp_path / "d", "--chunk", 4096)
