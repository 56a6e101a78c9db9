"""Options that commands share, and what they mean for the engine's configuration."""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.stages import Stages

if TYPE_CHECKING:
    from hasten.engine.config import EngineConfig
    from hasten.engine.llm import LLM

Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A folder (Hugging Face), a GGUF file or a hub id; the built-in model if left out."),
]
With = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="NAMES", help="Techniques by name, comma separated, as name:knob=value. Repeatable."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Any setting, as kv.block_size=16. Repeatable.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings from a TOML file, as `hasten tune` writes; options win over it."),
]
Speculate = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS",
        help="Draft tokens, verified together: ngram, suffix, draft, draft:MODEL, several as ngram,draft, or off. With auto "
        "only where that pays; alone it is auto,ngram, the default.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")]
LoadFormat = Annotated[str | None, typer.Option(help="auto, or dummy: random weights of the model's shapes.")]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens of prompt and output together.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; one a physical core if left out.")]

MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to generate; until the context is full if left out.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling; 1 is off.")]
TopK = Annotated[int, typer.Option(help="Draw from this many best tokens; 0 is off.")]
MinP = Annotated[float, typer.Option(help="Least probability relative to the best token's; 0 is off.")]
Penalty = Annotated[float, typer.Option(help="Above 1 discourages repetition.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]
Stop = Annotated[list[str] | None, typer.Option(help="End at this text. Repeatable.")]


@dataclass(slots=True)
class Asked:
    """Which engine the command line asks for. `settings`: config paths and values that options of their own stand for; what
    --set says comes after them and wins."""

    model: str | None
    with_: list[str] | None
    set_: list[str] | None
    settings: dict[str, object] = field(default_factory=dict)
    file: Path | None = None
    speculate: str | None = None
    auto: bool = False
    """Where nothing is said of speculation, it is `auto` if it can be."""

    def _pairs(self) -> list[str]:
        return [f"{path}={value}" for path, value in self.settings.items() if value is not None] + (self.set_ or [])

    def config(self) -> EngineConfig:
        from hasten.engine.config import EngineConfig
        from hasten.engine.decoding.words import AUTO
        from hasten.engine.technique import ConfigError

        config = EngineConfig.build(
            self.model, with_=self.with_ or [], set_=self._pairs(), file=self.file, speculate=self.speculate
        )
        if not self.auto or self.speculate is not None or config.decoding.proposers or config.decoding.governor is not None:
            return config
        try:
            return EngineConfig.build(base=config, set_={"decoding.drafts_if_possible": True}, speculate=AUTO)
        except ConfigError:  # it cannot run together with what was asked for
            return config

    def load(self, *, progress: bool, stages: Stages | None = None) -> LLM:
        """The engine in this process. `stages`: gets to know how long each stage of it took."""
        stages = stages or Stages()
        # What is imported stays for good. Looking through it for garbage meanwhile takes a tenth of the import of torch, and
        # looking through it once more at the end of the process a third of a second.
        gc.disable()
        try:
            config = self.config()  # a mistake is told before torch is imported
            from hasten.engine.llm import LLM

            gc.freeze()
        finally:
            gc.enable()
        stages.ended("modules")
        llm = LLM(config=config, progress=progress)
        stages.ended("tokenizer", {"weights, memory": llm.info["load_s"]})
        return llm


def asked(
    model: str | None,
    with_: list[str] | None,
    set_: list[str] | None,
    device: str | None,
    dtype: str | None,
    load_format: str | None,
    max_length: int | None,
    threads: int | None,
    file: Path | None = None,
) -> Asked:
    settings: dict[str, object] = {
        "model.device": device,
        "model.dtype": dtype,
        "model.load_format": load_format,
        "model.max_length": max_length,
        "executor.threads": threads,
    }
    return Asked(model, with_, set_, settings, file)


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def size_bytes(text: str) -> int:
    """``2GiB``, ``512M``, ``1.5GB`` or plain bytes; i makes it 1024, otherwise 1000. ``M`` alone means MiB."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size; write 2GiB, 512MiB or a number of bytes")
    number, unit, binary = match.groups()
    base = 1024 if binary or not text.strip().lower().endswith("b") else 1000
    size = int(float(number) * base ** _POWER[unit.lower()])
    if size < 1:
        raise typer.BadParameter(f"{text!r}: at least one byte is needed")
    return size


def show_bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
