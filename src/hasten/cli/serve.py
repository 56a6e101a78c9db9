"""`hasten serve`: the OpenAI-compatible server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from hasten.engine.async_engine import AsyncEngine
    from hasten.engine.config import EngineConfig


def serve(
    model: options.Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="HASTEN_API_KEY", help="Key that clients must send; better set in the environment.")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="The model's name for clients.")] = None,
    kv_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory for the KV cache, as 2GiB; a share of what is free if left out.")
    ] = None,
    body_limit: Annotated[str, typer.Option(metavar="SIZE", help="Largest request body.")] = "8MiB",
    request_timeout: Annotated[float, typer.Option(min=0, help="Seconds a request may take; 0 is no limit.")] = 600.0,
    queue_limit: Annotated[int, typer.Option(min=1, help="Most unfinished requests; beyond it clients get 429.")] = 256,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running requests get to finish after SIGTERM.")] = 30.0,
    speculate: options.Speculate = None,
    with_: options.With = None,
    set_: options.Set = None,
    config_file: options.Config = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    load_format: options.LoadFormat = None,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
) -> None:
    """Serve a model over HTTP, as OpenAI does, with a page to talk to it."""
    began_s = time.perf_counter()
    body_limit_bytes = options.size_bytes(body_limit)
    asked = options.asked(model, with_, set_, device, dtype, load_format, max_length, threads, config_file)
    asked.speculate, asked.auto = speculate, True
    asked.settings["scheduling.queue_limit"] = queue_limit
    asked.settings["kv.memory_bytes"] = options.size_bytes(kv_memory) if kv_memory else None
    config = asked.config()
    if api_key == "":
        raise typer.BadParameter("the key is empty", param_hint="--api-key")

    import asyncio
    import logging

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from hasten.serving.server.run import bind, serve
    from hasten.serving.server.settings import Settings

    listening = bind(host, port)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    console = Console(highlight=False)
    settings = Settings(
        api_key=api_key,
        body_limit_bytes=body_limit_bytes,
        request_timeout_s=request_timeout or None,
        grace_s=grace,
        served_name=served_model_name,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"loading {config.model.path}", total=None)

        def progress(stage: str, fraction: float) -> None:
            bar.update(task, description=stage, completed=fraction, total=1.0)

        async def start() -> AsyncEngine:
            from hasten.engine.async_engine import AsyncEngine

            return await AsyncEngine.start(config, on_progress=progress)

        def ready(engine: AsyncEngine) -> None:
            bar.stop()
            address = _address(host, listening.getsockname()[1])
            _introduce(console, config, engine, settings.served_name, address, time.perf_counter() - began_s)
            _try_next(console, engine, settings.served_name, address, api_key is not None)
            if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
                console.print("Anyone who reaches this address can use it; --api-key asks for a key.", style="yellow")

        def drain(running: int) -> None:
            waiting = f"; waiting up to {grace:g} s for {running} running" if running else ""
            console.print(f"\nShutting down{waiting}.", style="dim")

        asyncio.run(serve(listening, start, settings, on_ready=ready, on_drain=drain))


def _address(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _introduce(
    console: Console, config: EngineConfig, engine: AsyncEngine, name: str | None, address: str, seconds: float
) -> None:
    from rich.table import Table

    from hasten import __version__

    info: dict[str, Any] = engine.info
    served = f" (clients call it {name})" if name else ""
    weights = f", {options.show_bytes(info['weight_bytes'])} of weights" if "weight_bytes" in info else ""
    threads = f", {info['threads']} threads" if info.get("device") == "cpu" and "threads" in info else ""
    facts = {
        "model": f"{info['model']}{served}, context {info['max_length']:,} tokens{weights}",
        "runs on": f"{info.get('device')}, {info.get('dtype')}, {info.get('kernels')} kernels{threads}",
        "KV memory": _kv_memory(config, info),
        "draft": _draft(info),
        "with": ", ".join(config.techniques),
        "address": address,
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    for label, value in facts.items():
        if value:
            table.add_row(f"[dim]{label}[/]", value)
    console.print(f"[bold]hasten {__version__}[/] [dim]ready after {seconds:.1f} s[/]")
    console.print(table)


def _draft(info: dict[str, Any]) -> str:
    """The model that drafts, if any, and what it takes."""
    if "draft_model" not in info:
        return ""
    weights, kv = (options.show_bytes(info[f"draft_{what}_bytes"]) for what in ("weight", "kv"))
    return f"{info['draft_model']}, {weights} of weights, {kv} of KV"


def _kv_memory(config: EngineConfig, info: dict[str, Any]) -> str:
    """How much, for how many tokens, and why that much."""
    block, rows = config.kv.block_size, config.scheduling.max_rows
    most = rows * -(-info["max_length"] // block)
    if config.kv.memory_bytes is not None:
        why = "as asked"
    elif info["kv_blocks"] >= most:
        why = f"all that {rows} full contexts need"
    else:
        why = "a share of free memory; --kv-memory changes it"
    return f"{options.show_bytes(info['kv_bytes'])} for {info['kv_blocks'] * block:,} tokens ({why})"


def _try_next(console: Console, engine: AsyncEngine, name: str | None, address: str, needs_key: bool) -> None:
    model = name or str(engine.info["model"])
    key = ' -H "Authorization: Bearer $HASTEN_API_KEY"' if needs_key else ""
    given = 'os.environ["HASTEN_API_KEY"]' if needs_key else '"none"'
    if engine.chat_template is not None:
        path, what = "chat/completions", '"messages": [{"role": "user", "content": "Hello!"}]'
        call = f'chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello!"}}])'
    else:
        path, what = "completions", '"prompt": "Once upon a time"'
        call = f'completions.create(model="{model}", prompt="Once upon a time")'
    body = f'{{"model": "{model}", {what}, "stream": true}}'
    lines = (
        ("in a browser", f"{address}/"),
        ("in a shell", f"curl -N {address}/v1/{path}{key} -H 'Content-Type: application/json' -d '{body}'"),
        ("in Python", f"{'import os; ' if needs_key else ''}from openai import OpenAI"),
        ("", f'client = OpenAI(base_url="{address}/v1", api_key={given})'),
        ("", f"print(client.{call})"),
    )
    console.print("\n[bold]Try next[/]")
    for label, text in lines:
        # Not a table: long lines must stay whole, to be copied.
        console.print(f"[dim]{label:<14}[/]", end="")
        console.print(text, markup=False, soft_wrap=True)
    console.print("\n[dim]Ctrl-C or SIGTERM finishes what is running and stops.[/]")
