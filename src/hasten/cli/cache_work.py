"""What `hasten cache warm` and `push` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.cli.options import Asked
from hasten.engine.kv.base import ReuseKey
from hasten.engine.kv.blockfile import Unusable, name_after, pack, root
from hasten.engine.kv.codecs import RAW, Raw, codec
from hasten.engine.kv.folder import Folder, Stored
from hasten.engine.kv.peer import MOST_CHUNK_BYTES
from hasten.engine.kv.wire import PeerClient
from hasten.engine.request import BadRequest, SamplingParams
from hasten.engine.technique import ConfigError

if TYPE_CHECKING:
    from hasten.engine.llm import LLM

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Warmed:
    """`tokens` of the text, those of them `stored`; `chunks` in every form, of `size` tokens; `nbytes` of all files."""

    tokens: int
    stored: int
    chunks: int
    size: int
    nbytes: int


def opened(asked: Asked, disk: Path, chunk: int, codecs: Sequence[str], *, progress: bool) -> LLM:
    """An engine that writes chunks of `chunk` tokens to the folder `disk`, raw, and whose KV all of `codecs` can code. Raises
    ConfigError."""
    coders = [codec(name) for name in codecs]
    _made(disk)
    tiers = f"tiered:disk={disk}:chunk={chunk}:codec={RAW}"  # whatever codec is switched on: forms are made of exact KV
    llm = replace(asked, with_=[*(asked.with_ or []), tiers]).load(progress=progress)
    try:
        for coder in coders:
            coder.prepare(llm.parts)
    except ConfigError:
        llm.engine.executor.close()
        raise
    return llm


def warmed(llm: LLM, text: str, disk: Path, chunk: int, codecs: Sequence[str], tell: Tell) -> Warmed:
    """Compute the KV of `text` by an engine that was `opened` so, and have its whole chunks in the folder in every form of
    `codecs`; the engine is closed. Raises ConfigError, and BadRequest for a text that is too long or too short."""
    import numpy as np

    folder = _made(disk)
    try:
        tokens = llm.tokenizer.encode(text)
        block = llm.config.kv.block_size
        size = max(1, chunk // block) * block
        ends = range(size, len(tokens) + 1, size)
        if not ends:
            raise BadRequest(f"the text has {len(tokens)} tokens, fewer than a chunk of {size}", "prompt")
        names, parent = [], root(ReuseKey(llm.parts.model.fingerprint), llm.parts.kv_context)
        for end in ends:
            parent = name_after(parent, np.asarray(tokens[end - size : end], np.int32))
            names.append(parent)
        kept = [folder.has(name, RAW) for name in names]
        for done, end in enumerate(ends):
            tell(done, 2 * len(ends))
            # One token more than is kept: the last one of a prompt is always computed.
            llm.generate([[*tokens[:end], tokens[0]]], SamplingParams(max_tokens=1, temperature=0))
    finally:
        llm.engine.executor.close()
    nbytes = 0
    for done, name in enumerate(names):
        tell(len(ends) + done, 2 * len(ends))
        nbytes += _recoded(folder, name, codecs)
        if RAW not in codecs and not kept[done]:
            folder.drop(name, RAW)
    return Warmed(len(tokens), ends[-1], len(ends), size, nbytes)


def _recoded(folder: Folder, name: bytes, codecs: Sequence[str]) -> int:
    """Have the raw chunk called `name` in these forms too; the bytes of all."""
    try:
        head, payload = folder.get(name, RAW, MOST_CHUNK_BYTES)
    except (OSError, Unusable) as error:
        raise ConfigError(f"{folder.path}: a chunk could not be written: {error}") from None
    planes = Raw().decode(payload, head)
    nbytes = 0
    for said in codecs:
        coded = replace(head, codec=said)
        packed = pack(coded, codec(said).encode(planes, coded))
        if said != RAW:
            try:
                folder.put(coded, packed)
            except OSError as error:
                raise ConfigError(f"{folder.path}: a chunk could not be written: {error.strerror}") from None
        nbytes += packed.nbytes
    return nbytes


def _made(disk: Path) -> Folder:
    try:
        return Folder(disk)
    except OSError as error:
        raise ConfigError(f"{disk}: {error.strerror}") from None


def pushed(peer: str, token: str, folder: Folder, stored: Sequence[Stored], tell: Tell) -> tuple[int, int]:
    """Send `stored` to a peer; how many chunks and bytes went. Raises ConfigError when the peer cannot be reached or does not
    take them."""
    try:
        client = PeerClient(peer, token)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{peer}: {error}") from None
    count = nbytes = 0
    try:
        for done, one in enumerate(stored):
            tell(done, len(stored))
            try:
                head, payload = folder.get(one.head.name, one.head.codec, MOST_CHUNK_BYTES)
            except (OSError, Unusable):  # it went since it was listed, or is damaged
                continue
            packed = pack(head, payload)
            client.put(packed)
            count, nbytes = count + 1, nbytes + packed.nbytes
    except OSError as error:
        raise ConfigError(f"{peer}: {error}, after {count} chunks") from None
    finally:
        client.close()
    return count, nbytes
