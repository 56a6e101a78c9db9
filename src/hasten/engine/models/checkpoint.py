"""Finding a checkpoint in Hugging Face format and reading it: a folder with config.json and one or many safetensors.

Weights are memory-mapped. The headers are read first, so that a broken or missing file is found, and named, before any
tensor is touched. Importing this module costs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.engine.config import BUILTINS
from hasten.engine.models.config import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while weights are read."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
GGUF = ".gguf"
_CONFIGURATION = ["*.json", "*.jinja"]
_READABLE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
_SAMPLES, _SAMPLE_BYTES = 4, 64


def resolve(name: str, *, weights: bool = True) -> Path:
    """The folder of the model called `name`: a built-in one, a local folder, or a hub id, which is downloaded (with a
    progress bar) unless it is in the local hub cache. `weights` False fetches the configuration and tokenizer only. A
    GGUF file, or a folder that holds one and no safetensors, is the path of that file. Raises ModelError."""
    if name in BUILTINS:
        folder = Path(str(files("hasten") / BUILTINS[name]))
        if not (folder / "config.json").is_file():
            raise ModelError(f"this installation of hasten has no model {name!r}: {folder} holds no config.json")
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _gguf_of(folder) or folder
    if folder.is_file():
        if folder.suffix == GGUF:
            return folder
        raise ModelError(f"{name} is a file; a model is a folder with config.json and *.safetensors, a *.gguf, or a hub id")
    if not _HUB_ID.fullmatch(name):
        others = " or ".join(map(repr, BUILTINS))
        raise ModelError(f"there is no folder {name}; a model is a local folder, a hub id (owner/name), {others}")
    return _download(name, weights)


def _gguf_of(folder: Path) -> Path | None:
    found = sorted(folder.glob(f"*{GGUF}"))
    if not found or any(folder.glob("*.safetensors")):
        return None
    if len(found) > 1:
        raise ModelError(f"{folder} holds {len(found)} models ({', '.join(file.name for file in found[:3])}, ...): name one")
    return found[0]


def _download(name: str, weights: bool) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = _CONFIGURATION + (["*.safetensors"] if weights else [])
    try:
        # Mistral's repositories hold every weight twice, the second time as consolidated*.safetensors.
        folder = huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*", "consolidated*"])
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"no model called {name!r}: there is no such folder here, and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {reason})"
        ) from error
    return Path(folder)


def read_config(found: Path) -> dict[str, Any]:
    """What config.json says of the model that `resolve` found, or what a GGUF file says in its stead. Raises ModelError."""
    if found.is_file():
        from hasten.engine.models.gguf_config import read_gguf_config

        return read_gguf_config(found)
    return read_json(found / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises ModelError when it is missing, unreadable or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} holds no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold an object, got {type(content).__name__}")
    return content


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies. `dtype` as safetensors names it; `start`, `stop`: its bytes in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class Checkpoint:
    """The tensors of a folder by name, mapped from its safetensors files. `take` converts to the run dtype and device;
    where neither differs from the file's, the tensor is a view of the map and costs no memory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = {name: entry for file in _weight_files(folder) for name, entry in read_header(file)}
        self._open: dict[Path, Any] = {}

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    def dtype_of(self, name: str) -> str | None:
        """The stored dtype under its torch name; None when there is no such tensor or it cannot be a weight."""
        entry = self.entries.get(name)
        return _READABLE.get(entry.dtype) if entry is not None else None

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor called `name`. Raises ModelError naming it when it is missing, or has another shape or a dtype
        that is no weight's."""
        entry = self.entries.get(name)
        if entry is None:
            raise ModelError(f"{self.folder} holds no tensor {name}, which config.json calls for")
        if entry.shape != shape:
            raise ModelError(f"{entry.file}: {name} has the shape {list(entry.shape)}, config.json calls for {list(shape)}")
        if entry.dtype not in _READABLE:
            raise ModelError(f"{entry.file}: {name} is stored as {entry.dtype}; readable: {', '.join(_READABLE)}")
        tensor: Tensor = self._handle(entry.file).get_tensor(name)
        return tensor.to(device=device, dtype=dtype)

    def raw(self, name: str) -> Tensor:
        """The tensor called `name` as it is stored. Raises ModelError when it is missing."""
        entry = self.entries.get(name)
        if entry is None:
            raise ModelError(f"{self.folder} holds no tensor {name}, which its quantised weights call for")
        tensor: Tensor = self._handle(entry.file).get_tensor(name)
        return tensor

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            from safetensors import SafetensorError, safe_open

            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file} cannot be read: {error}") from None
        return self._open[file]

    def sample(self) -> Iterator[bytes]:
        """A little of every tensor, in order of name: name, dtype, shape, and a few short runs of its bytes."""
        by_file: dict[Path, list[tuple[str, Entry]]] = {}
        for name, entry in sorted(self.entries.items()):
            by_file.setdefault(entry.file, []).append((name, entry))
        for file, entries in by_file.items():
            with file.open("rb") as stream:
                for name, entry in entries:
                    yield f"{name} {entry.dtype} {entry.shape}".encode()
                    step = max(_SAMPLE_BYTES, (entry.nbytes - _SAMPLE_BYTES) // _SAMPLES)
                    for start in range(entry.start, entry.stop, step):
                        stream.seek(start)
                        yield stream.read(min(_SAMPLE_BYTES, entry.stop - start))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, Mapping) or not listed:
            raise ModelError(f"{index} holds no weight_map")
        found = [folder / name for name in sorted(set(map(str, listed.values())))]
        missing = [file.name for file in found if not file.is_file()]
        if missing:
            raise ModelError(f"{folder} lacks {', '.join(missing)}, which {index.name} names")
        return found
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    found = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))
    if not found:
        other = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in folder.glob(pattern))
        note = f" (it has {', '.join(other[:3])}: convert them to safetensors)" if other else ""
        raise ModelError(f"{folder} holds no *.safetensors{note}")
    return found


def read_header(file: Path) -> list[tuple[str, Entry]]:
    """Name and place of every tensor of a safetensors file, checked against the file's size. Raises ModelError."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ModelError(f"{file} is broken or cut short: its header does not fit into its {size} bytes")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            found = [(name, _entry(file, 8 + length, tensor)) for name, tensor in header.items()]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{file} is broken: its header cannot be read ({error})") from None
    end = max((entry.stop for _, entry in found), default=8 + length)
    if size < end:
        raise ModelError(f"{file} is cut short: its header calls for {end} bytes, it has {size}")
    return found


def _entry(file: Path, base: int, tensor: Mapping[str, Any]) -> Entry:
    start, stop = tensor["data_offsets"]
    shape = tuple(int(side) for side in tensor["shape"])
    items = 1
    for side in shape:
        items *= side
    dtype = str(tensor["dtype"])
    if start < 0 or stop < start or (dtype in _ITEM_BYTES and stop - start != items * _ITEM_BYTES[dtype]):
        raise ValueError(f"a tensor {list(shape)} of {dtype} in {stop - start} bytes")
    return Entry(file, dtype, shape, base + start, base + stop)
