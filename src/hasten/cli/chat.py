"""`hasten chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli import options

if TYPE_CHECKING:
    from hasten.cli.pace import Pace
    from hasten.engine.llm import LLM
    from hasten.engine.request import SamplingParams

_HELP = "/reset forgets the conversation, /system TEXT sets the system prompt, /exit ends; Ctrl-C stops an answer."


def chat(
    model: options.Model = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.Penalty = 1.0,
    seed: options.Seed = None,
    speculate: options.Speculate = None,
    with_: options.With = None,
    set_: options.Set = None,
    config: options.Config = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    load_format: options.LoadFormat = None,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
) -> None:
    """Talk with the model; its speed is shown while it answers."""
    asked = options.asked(model, with_, set_, device, dtype, load_format, max_length, threads, config)
    asked.speculate, asked.auto = speculate, True
    from hasten.engine.request import BadRequest, SamplingParams

    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    llm = asked.load(progress=sys.stderr.isatty())
    if llm.chat_template is None:
        raise BadRequest(f"{llm.info['model']} has no chat template; use `hasten generate`", "messages")
    if sys.stdin.isatty():
        import readline  # noqa: F401  # input() then edits lines and remembers them
    typer.secho(f"{llm.info['model']} on {llm.info.get('device')}. {_HELP}", dim=True)
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    while True:
        try:
            text = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        command, _, rest = text.partition(" ")
        if not text:
            continue
        if command in ("/exit", "/quit"):
            return
        if command == "/reset":
            messages = list(start)
            typer.secho("forgotten", dim=True)
        elif command == "/system":
            start = [{"role": "system", "content": rest}] if rest else []
            messages = list(start)
            typer.secho("a new conversation with that system prompt" if rest else "no system prompt any more", dim=True)
        elif command.startswith("/"):
            typer.secho(_HELP, dim=True)
        else:
            messages.append({"role": "user", "content": text})
            try:
                messages.append({"role": "assistant", "content": _say(llm, messages, sampling)})
            except (BadRequest, RuntimeError) as error:
                messages.pop()
                typer.secho(f"error: {error}", fg="red", err=True)
                if messages != start:
                    typer.secho("/reset starts anew", dim=True, err=True)


def _say(llm: LLM, messages: list[dict[str, str]], sampling: SamplingParams) -> str:
    """Stream one answer to the terminal; returns its text. Raises BadRequest, or RuntimeError when the engine fails."""
    from hasten.cli.pace import Pace

    prompt = llm.render(messages)
    pace, tail, texts = Pace(), _Tail(), []
    try:
        for delta in llm.stream(prompt, sampling):
            if delta.error is not None:
                tail.erase()
                raise RuntimeError(f"the engine failed: {delta.error}")
            pace.add(len(delta.tokens))
            texts.append(delta.text)
            tail.write(delta.text, pace)
    except KeyboardInterrupt:
        pass  # what has been said stays
    tail.erase()
    print()
    typer.secho(pace.summary(), dim=True)
    return "".join(texts)


class _Tail:
    """Writes text with a live figure behind it on the same line, where there is room for it."""

    EVERY_S = 0.1

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._column = 0
        self._shown = 0
        self._shown_s = 0.0

    def write(self, text: str, pace: Pace) -> None:
        self.erase()
        sys.stdout.write(text)
        if self._live:
            self._advance(text)
            self._show(pace)
        sys.stdout.flush()

    def erase(self) -> None:
        if self._shown:
            sys.stdout.write("\x1b[K")
            self._shown = 0

    def _advance(self, text: str) -> None:
        from rich.cells import cell_len

        line = text.rpartition("\n")[2]
        self._column = cell_len(line) + (0 if "\n" in text else self._column)

    def _show(self, pace: Pace) -> None:
        import shutil

        if pace.tpot_s is None:
            return
        width = shutil.get_terminal_size().columns
        figure = f"  {pace.tpot_s * 1e3:.1f} ms/token"
        # Between two shows the last one would flicker at every token; so it stays away until its time has come again.
        if self._column % width + len(figure) >= width or time.perf_counter() - self._shown_s < self.EVERY_S:
            return
        sys.stdout.write(f"\x1b[2m{figure}\x1b[0m\x1b[{len(figure)}D")
        self._shown = len(figure)
        self._shown_s = time.perf_counter()
