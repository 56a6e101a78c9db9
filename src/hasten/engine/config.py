"""The engine's configuration: one section a seam, the same in Python, on the command line and in a file.

`EngineConfig.build(with_=["stall-free:chunk=256"], set_=["kv.block_size=16"])` is `--with stall-free:chunk=256 --set
kv.block_size=16`. A bad name, type or combination raises `ConfigError` before anything is loaded.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from hasten.engine.decoding import words
from hasten.engine.kv.planes import DENSE, Form
from hasten.engine.technique import ConfigError, Technique, decides, find, refuse

BUILTIN = "builtin"
"""The model that is served when none is named."""
BUILTINS = {BUILTIN: "builtin_model", "builtin-draft": "builtin_draft"}
"""Models that come with the package, and their folders in it."""


_SPECULATION = {"decoding.proposers", "decoding.governor"}


def _names(value: Any) -> Any:
    """A list of names, as it may be written in one piece of text; None: of none."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return () if value is None else value


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class ModelConfig(Section):
    path: str = BUILTIN
    """A folder in Hugging Face format, a GGUF file, a hub id, or `builtin`."""
    load_format: Literal["auto", "dummy"] = "auto"
    """`dummy`: random weights of the shapes in config.json, for speed work without a checkpoint."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "cpu"
    max_length: int | None = Field(None, ge=1)
    """Most tokens of prompt and output together; None: the model's own limit."""


class SchedulingConfig(Section):
    order: str = "fcfs"
    batching: str = "stall-free"
    residency: str = "newest-yields"
    lengths: str = "length-limit"
    preempt: bool = False
    """Sequences of better rank displace running ones of worse rank, by all parts that have a knob of that name."""
    max_tokens: int = Field(2048, ge=1)
    """Flat tokens of a step."""
    max_rows: int = Field(256, ge=1)
    """Sequences of a step."""
    patience_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Seconds without service after which a sequence goes ahead of all others, in order of arrival, whatever the order says.
    None: never."""
    queue_limit: int | None = Field(None, ge=0)
    """Most unfinished requests; beyond it new ones are rejected. None: no limit."""


class KVConfig(Section):
    block_size: int = Field(32, ge=8, multiple_of=8)
    memory_bytes: int | None = Field(None, ge=1)
    """Bytes of the KV pool; None: a share of free memory, at most what `max_rows` full contexts need."""
    host_bytes: int = Field(0, ge=0)
    """Bytes of the host tier that preempted sequences swap to; 0: they are recomputed."""
    reuse: str | None = "prefix-tree"
    """None switches prefix caching off."""
    repair: str | None = None
    """What of the chunks that requests mark is computed again where they stand; None: marks are ignored, nothing is reused by
    chunks."""
    boundaries: int | None = Field(None, ge=64)
    """Tokens, about, of the pieces that prompts without marks are cut into, at places that their content decides; those that
    come again behind other text are chunks as if they were marked. None: only what is marked is."""
    chunk_share: float = Field(0.5, gt=0, le=0.9)
    """Most of the pool that chunks may take."""
    chunk_retention: Literal["lru", "cost-aware"] | None = None
    """Which chunk goes first when there is no room: the one used least recently, or the one that saves least (how often it was
    found, times what computing it takes, by its size, ageing). None: what suits the repair, `lru` in general."""
    allocator: str = "free-list"
    keep_copies: bool = False
    """A sequence that comes back from the host tier leaves its copy there; when it goes again, only blocks written since are
    sent. Copies make way for sequences that need the room."""
    copies: Literal["runs", "blocks"] = "runs"
    """Copies between the tiers: one for each run of blocks that are contiguous on both sides, or, to know what that is worth,
    one for each block."""


class AttentionConfig(Section):
    policy: str = "flashforge"


class DecodingConfig(Section):
    sampler: str = "lossless"
    constraint: str | None = "pre3"
    """None refuses requests with a constraint."""
    proposers: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Who drafts tokens: the first that has some for a sequence. In text with commas between."""
    governor: str | None = None
    """Decides how much of what could be drafted pays. None: all of it is drafted."""
    drafts_if_possible: bool = False
    """Where the attention policy's store cannot take tokens back nothing is drafted; otherwise that is refused."""
    forced: str | None = None
    """Drafts the tokens that constraints force, before the proposers are asked."""
    controller: str | None = None


class WeightsConfig(Section):
    store: str = "dense"
    kept_bytes: int = Field(32 << 30, ge=0)
    """Most bytes of packed weights of this and other models that are kept on disk for the next start; 0: none."""


class DepthConfig(Section):
    policy: str = "all-blocks"


class ExecutorConfig(Section):
    kind: str = "local"
    threads: int | None = Field(None, ge=1)
    """CPU threads of the kernels; None: one a physical core this process may use."""
    costs: str | None = None
    """A calibration of this machine, as `hasten calibrate --out` writes: predicted step times rest on it."""
    deterministic: bool = False
    """Kernels whose summation order for a row does not depend on the batch: equal bits whatever runs beside."""
    native: bool = True
    """Small batches run as recorded native calls where that is possible; otherwise every op is called from Python. Same
    results."""


class EngineConfig(Section):
    model: ModelConfig = ModelConfig()
    scheduling: SchedulingConfig = SchedulingConfig()
    kv: KVConfig = KVConfig()
    attention: AttentionConfig = AttentionConfig()
    decoding: DecodingConfig = DecodingConfig()
    weights: WeightsConfig = WeightsConfig()
    depth: DepthConfig = DepthConfig()
    executor: ExecutorConfig = ExecutorConfig()
    techniques: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Techniques switched on by name, with their knobs."""

    @classmethod
    def build(
        cls,
        model: str | None = None,
        *,
        with_: Iterable[str] = (),
        set_: Iterable[str] | Mapping[str, Any] = (),
        base: EngineConfig | None = None,
        file: str | Path | None = None,
        speculate: str | None = None,
    ) -> EngineConfig:
        """A configuration from names and `path=value` settings; settings win over techniques. What `base` has switched on
        stays as it is, with whatever was set since. `file`: a TOML file (see `read_file`), over which all else wins.
        `speculate`: speculation in words (`decoding/words.py`), instead of any that `base` or `file` have; `off` for none."""
        config = base.model_copy(deep=True) if base is not None else cls()
        if file is not None:
            config._apply(*read_file(file))
        if model is not None:
            config.model.path = model
        techniques = dict(parse_with(part) for text in with_ for part in text.split(",") if part)
        if file is not None:
            config._make_way(techniques)
        if speculate is not None:
            config._stop_speculating()
            said = words.techniques(speculate)
            named = next((name for name in techniques if _SPECULATION & find(name).sets.keys()), None)
            if named is not None and not said:
                raise ConfigError(f"speculate={speculate.strip()} and {named} cannot run together: name one of them")
            techniques = {name: {**said.get(name, {}), **techniques.get(name, {})} for name in {**said, **techniques}}
        config._apply(techniques, dict(set_) if isinstance(set_, Mapping) else dict(_split(text) for text in set_))
        chosen = [find(name) for name in config.techniques]
        refuse(chosen)
        for technique in chosen:
            config.options(technique)
        return config

    def _make_way(self, techniques: Iterable[str]) -> None:
        """Forget the techniques that decide what one of `techniques` decides otherwise."""
        sets = {path: value for name in techniques for path, value in find(name).sets.items()}
        for name in list(self.techniques):
            if any(path in sets and decides(value, sets[path]) for path, value in find(name).sets.items()):
                del self.techniques[name]

    def _stop_speculating(self) -> None:
        """Forget the proposers there are, and who governs them."""
        self.decoding.proposers, self.decoding.governor = (), None
        for name in list(self.techniques):
            if _SPECULATION & find(name).sets.keys():
                del self.techniques[name]

    def _apply(self, techniques: Mapping[str, dict[str, Any]], settings: Mapping[str, Any]) -> None:
        """Switch on techniques that are not yet, with their knobs, then change settings."""
        fresh = [find(name) for name in techniques if name not in self.techniques]
        self.techniques = {**self.techniques, **techniques}
        for technique in fresh:
            for path, value in technique.sets.items():
                self.set(path, self._more(path, value) if isinstance(value, tuple) else value)
        for path, value in settings.items():
            self.set(path, value)

    def _more(self, path: str, value: tuple[str, ...]) -> tuple[str, ...]:
        """The list at `path` with what it lacks of `value`."""
        section, field = path.split(".")
        have: tuple[str, ...] = getattr(getattr(self, section), field)
        return (*have, *(name for name in value if name not in have))

    def set(self, path: str, value: Any) -> None:
        """Set the field at dotted `path`, checked; strings are read as the field's type."""
        *sections, last = path.split(".")
        target: Any = self
        for name in sections:
            if not isinstance(target, BaseModel) or name not in type(target).model_fields:
                raise ConfigError(f"no setting is called {path!r}; {_accepted(target)}")
            target = getattr(target, name)
        if not isinstance(target, BaseModel) or last not in type(target).model_fields:
            raise ConfigError(f"no setting is called {path!r}; {_accepted(target)}")
        if isinstance(value, str) and value.lower() in ("none", "null"):
            value = None
        try:
            setattr(target, last, value)
        except ValidationError as error:
            raise ConfigError(f"{path}={value!r}: {error.errors()[0]['msg']}") from None

    def options(self, technique: Technique) -> Any:
        """The technique's knobs as its `options` dataclass (None when it has none), checked."""
        given = self.techniques.get(technique.name, {})
        if technique.options is None:
            if given:
                raise ConfigError(f"{technique.name} has no knobs, got {', '.join(given)}")
            return None
        known = [knob.name for knob in fields(technique.options)]
        if unknown := [knob for knob in given if knob not in known]:
            raise ConfigError(f"{technique.name} has no knob called {unknown[0]!r}; it has {', '.join(known)}")
        try:
            return TypeAdapter(technique.options).validate_python(given)
        except ValidationError as error:
            first = error.errors()[0]
            knob = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{technique.name}: {knob}: {first['msg']}") from None

    def make(self, name: str, context: Any = None) -> Any:
        """Build the policy called `name` with its knobs."""
        technique = find(name)
        if technique.make is None:
            raise ConfigError(f"{name} is a preset, not a part")
        try:
            return technique.make(context, self.options(technique))
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def form(self) -> Form:
        """How the attention policy's keys and values lie in the pool."""
        technique = find(self.attention.policy)
        form: Form = DENSE if technique.form is None else technique.form(self.options(technique))
        return form


def read_file(path: str | Path) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
    """What a configuration file says: techniques with their knobs, and settings by dotted path. Raises ConfigError.

    It is TOML with a table for each section (`[kv]` with `block_size = 16`) and each technique (`[techniques.stall-free]` with
    `chunk = 256`)."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None
    techniques = content.pop("techniques", {})
    if not isinstance(techniques, dict) or not all(isinstance(knobs, dict) for knobs in techniques.values()):
        raise ConfigError(f"{path}: techniques are tables, as [techniques.NAME] with a line a knob")
    chosen = {name: {knob: str(value) for knob, value in knobs.items()} for name, knobs in techniques.items()}
    settings: dict[str, Any] = {}
    for section, values in content.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section}={values!r} stands outside a section; write it under one, as [kv]")
        settings |= {f"{section}.{name}": value for name, value in values.items()}
    return chosen, settings


def parse_with(text: str) -> tuple[str, dict[str, str]]:
    """`name:knob=value:knob=value` -> (name, knobs)."""
    name, *knobs = text.strip().split(":")
    return name, dict(_split(knob) for knob in knobs)


def _split(text: str) -> tuple[str, str]:
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise ConfigError(f"expected path=value, got {text!r}")
    return path.strip(), value.strip()


def _accepted(target: Any) -> str:
    names = ", ".join(type(target).model_fields) if isinstance(target, BaseModel) else "nothing"
    return f"accepted here: {names}"
