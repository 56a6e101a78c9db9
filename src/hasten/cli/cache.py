"""`hasten cache`: stored KV, computed ahead, sent to a peer, looked at and dropped."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from hasten.engine.kv.folder import Folder, Stored

app = typer.Typer(
    help="KV on disk and at peers: computed ahead, sent, listed, dropped.", no_args_is_help=True, add_completion=False
)

TOKEN = "HASTEN_CACHE_TOKEN"
RAW = "raw"

Disk = Annotated[
    Path, typer.Option("--disk", metavar="FOLDER", help="The folder of block files, as --with tiered:disk=FOLDER.")
]
Token = Annotated[str | None, typer.Option(help=f"The token that both sides know; ${TOKEN} if left out.")]
Codecs = Annotated[
    list[str] | None,
    typer.Option("--codec", metavar="NAME", help="raw, cachegen, or cachegen-0 (finest) to cachegen-2. Repeatable."),
]
Prefix = Annotated[str, typer.Option("--chunk-name", metavar="HEX", help="Only chunks whose name begins so (see list).")]


@app.command()
def warm(
    text: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A text file; - is standard input.")] = None,
    disk: Annotated[
        Path | None, typer.Option("--disk", metavar="FOLDER", help="The folder of block files, as --with tiered:disk=FOLDER.")
    ] = None,
    documents: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Instead of FILE: text files that --server is to keep as chunks.")
    ] = None,
    server: Annotated[str, typer.Option(metavar="URL", help="A server that reuses chunks.")] = "http://127.0.0.1:8000",
    system: Annotated[str | None, typer.Option(help="With --documents: what the system says in requests to come.")] = None,
    key: Annotated[str | None, typer.Option("--api-key", envvar="HASTEN_API_KEY", help="The server's key.")] = None,
    model: Annotated[str | None, typer.Option(help="As for serve; the built-in model if left out.")] = None,
    codecs: Codecs = None,
    chunk: Annotated[int, typer.Option(min=1, help="Tokens of a chunk, as the serving engine's tiered:chunk.")] = 1536,
    with_: options.With = None,
    set_: options.Set = None,
    config: options.Config = None,
) -> None:
    """Compute a text's KV and store it, whole chunk by whole chunk, in one or more forms.

    An engine finds it for prompts that begin with the text, tokenised as it is, and with the same --with and --set.

    With --documents a running server reads every file of a folder once and keeps it in its pool as a chunk, for requests
    that mark the same text (`documents`, or parts with `cache`), wherever it stands. It is kept until memory is short or the
    server ends."""
    if documents is not None:
        if text is not None or disk is not None:
            raise typer.BadParameter("--documents go to a server: give neither FILE nor --disk")
        _warm_documents(server, documents, system, key)
        return
    if text is None or disk is None:
        raise typer.BadParameter("give FILE and --disk, or --documents FOLDER")
    from hasten.cli.cache_work import opened, warmed

    words = _read(text)
    wanted = codecs or ["cachegen"]
    llm = opened(options.Asked(model, with_, set_, file=config), disk, chunk, wanted, progress=sys.stderr.isatty())
    with _bar("computing") as tell:
        done = warmed(llm, words, disk, chunk, wanted, tell)
    _say(
        f"{done.stored:,} of {done.tokens:,} tokens stored in {done.chunks} chunks of {done.size}, {_size(done.nbytes)} in all"
    )
    if done.stored < done.tokens:
        _say("what lies behind the last whole chunk is computed when it is asked for")


@app.command()
def push(
    peer: Annotated[str, typer.Argument(metavar="HOST:PORT", help="A process that serves its folder and may be written to.")],
    disk: Disk,
    token: Token = None,
    codecs: Codecs = None,
    name: Prefix = "",
) -> None:
    """Send stored chunks to a peer, prefixes before what follows them."""
    from hasten.cli.cache_work import pushed

    stored = _chosen(disk, codecs, name)
    with _bar("sending") as tell:
        count, nbytes = pushed(peer, _token(token), _folder(disk), stored, tell)
    _say(f"{count} chunks sent, {_size(nbytes)}")


@app.command("list")
def show(
    disk: Disk,
    codecs: Codecs = None,
    name: Prefix = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """The stored chunks, with tokens, bytes, form and age."""
    stored = _chosen(disk, codecs, name)
    if as_json:
        import orjson

        sys.stdout.write(orjson.dumps([_facts(one) for one in stored], option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("chunk", no_wrap=True, min_width=12)
    for column in ("from", "tokens", "bytes", "a token"):
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    table.add_column("form", no_wrap=True, min_width=10)
    for column in ("used", "weights", "tenant"):
        table.add_column(column, no_wrap=True)
    for one in stored:
        head = one.head
        table.add_row(
            head.name.hex()[:12], f"{head.start:,}", f"{len(head.tokens):,}", f"{one.nbytes:,}",
            f"{one.nbytes / len(head.tokens):.0f}", head.codec, _ago(one.used_s), head.weights[:8], head.tenant,
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{len(stored)} chunks, {_size(sum(one.nbytes for one in stored))}", style="dim")


@app.command()
def drop(
    disk: Disk,
    codecs: Codecs = None,
    name: Prefix = "",
    everything: Annotated[bool, typer.Option("--all", help="All chunks of the folder.")] = False,
) -> None:
    """Delete stored chunks: those of a form, those whose name begins so, or all."""
    if not (everything or codecs or name):
        raise typer.BadParameter("say which: --chunk-name HEX, --codec NAME or --all")
    folder, stored = _folder(disk), _chosen(disk, codecs, name)
    gone = [one for one in stored if folder.drop(one.head.name, one.head.codec)]
    _say(f"{len(gone)} chunks dropped, {_size(sum(one.nbytes for one in gone))} freed")


@app.command()
def serve(
    disk: Disk,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 8471,
    token: Token = None,
    writable: Annotated[
        bool, typer.Option("--writable", help="Clients may send and drop chunks. Nothing limits what they send.")
    ] = False,
) -> None:
    """Serve a folder to engines with tiered:peer=HOST:peer_port=PORT, until interrupted."""
    from hasten.engine.kv.peer import PeerServer

    try:
        server = PeerServer(_folder(disk), _token(token), host, port, writable=writable)
    except OSError as fault:
        raise typer.BadParameter(f"cannot listen at {host}:{port}: {fault.strerror or fault}") from fault
    _say(f"serving {disk} at {server.address}")
    try:
        while True:
            time.sleep(3600)
    finally:
        server.close()


def _warm_documents(server: str, folder: Path, system: str | None, key: str | None) -> None:
    from hasten.cli.cache_documents import send

    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is no folder")
    with _bar("reading") as tell:
        sent = send(server, folder, system, tell, key)
    for path, reason in sent.refused:
        _say(f"{path}: {reason}")
    _say(f"{sent.documents} documents: {sent.computed} computed, {sent.found} there before")
    if sent.evicted:
        _say(f"memory is short: {sent.evicted} chunks had to go meanwhile (kv.memory_bytes, kv.chunk_share)")
    if not sent.documents:
        raise typer.Exit(1)


# -- what the commands share --------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        words = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise typer.BadParameter(f"cannot read {path}: {getattr(fault, 'strerror', None) or fault}") from fault
    if not words:
        raise typer.BadParameter(f"{path} is empty")
    return words


def _folder(disk: Path) -> Folder:
    from hasten.engine.kv.folder import Folder

    if not disk.is_dir():
        raise typer.BadParameter(f"{disk} is no folder")
    return Folder(disk)


def _chosen(disk: Path, codecs: list[str] | None, name: str) -> list[Stored]:
    """Prefixes before what follows them."""
    if set(name) - set("0123456789abcdef"):
        raise typer.BadParameter(f"names of chunks are hexadecimal, got {name!r}")
    found = [
        one for one in _folder(disk).list() if one.head.name.hex().startswith(name) and (not codecs or one.head.codec in codecs)
    ]
    return sorted(found, key=lambda one: (one.head.root, one.head.start, one.head.name, one.head.codec))


def _token(given: str | None) -> str:
    token = given or os.environ.get(TOKEN, "")
    if not token:
        raise typer.BadParameter(f"a peer wants a token: give --token, or set {TOKEN}")
    return token


def _facts(one: Stored) -> dict[str, Any]:
    head = one.head
    return {
        "chunk": head.name.hex(),
        "parent": head.parent.hex(),
        "start": head.start,
        "tokens": len(head.tokens),
        "bytes": one.nbytes,
        "codec": head.codec,
        "used_s": one.used_s,
        "weights": head.weights,
        "adapter": head.adapter,
        "tenant": head.tenant,
    }


def _ago(used_s: float) -> str:
    seconds = max(0, int(time.time() - used_s))
    for unit, each in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * each:
            return f"{seconds // each} {unit} ago"
    return f"{seconds} s ago"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e5 else f"{nbytes:,} bytes"


def _say(words: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(words, markup=False, soft_wrap=True)


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields `advance(done, total)`."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
