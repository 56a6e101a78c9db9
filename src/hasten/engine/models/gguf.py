"""Checkpoints in one GGUF file, as llama.cpp and its relatives write them, multiplied in the levels they hold.

Kept exactly: F32, F16 and BF16 (views of the mapped file where the run dtype is theirs), Q8_0 (8 bits, groups of 32,
symmetric) and Q4_0 (4 bits, groups of 32, zero point 8). Rounded again, to 8 bits in groups of 32: Q4_K, Q5_K, Q6_K, Q4_1,
Q5_0 and Q5_1, whose groups have a real minimum or scales for 16 columns, which no `QuantizedWeight` holds. Measured on Q4_K
of normal (t with 4 degrees) random weights, in parts of the squared error that Q4_K itself makes: 8 bits add 0.5 % (0.6 %),
4 bits with the minimum rounded to a zero point 106 % (105 %). Dense numbers would add nothing and take 32 bits. So a Q4_K_M
file loses next to nothing, but is read at 8.5 bits a weight instead of 4.5.

Weights that are stacked (query, key and value; gate and up) must be of one form. Where their types differ, all take 8 bits,
which hold those of Q4_0 too, or are dense if one of them is. Tokens are looked up in the levels of the embedding.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from hasten.engine.models.checkpoint import Checkpoint, Entry
from hasten.engine.models.config import ModelError
from hasten.engine.models.gguf_header import Header, package, read_header
from hasten.engine.models.published import Tensors
from hasten.kernels.quantized import QuantizedWeight, kept_scales, round_to_nearest, stacked

PLAIN = ("F32", "F16", "BF16")
READABLE = (*PLAIN, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_GROUP = 32
_CHUNK = 1 << 24
"""Values that are dequantised at a time."""
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_STACKED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class GgufCheckpoint(Checkpoint):
    """The tensors of a file under the names and in the layout of Hugging Face; `Format` of its own quantised weights."""

    def __init__(self, file: Path) -> None:
        self.folder = file  # what messages name
        header = read_header(file)
        weights = {name: entry for name, entry in header.tensors.items() if name != "rope_freqs.weight"}
        self.entries = {_name_of(file, name): entry for name, entry in weights.items()}
        for name, entry in weights.items():
            if entry.dtype not in READABLE:
                raise ModelError(f"{file}: {name} is stored as {entry.dtype}; readable: {', '.join(READABLE)}")
            if entry.dtype not in PLAIN and len(entry.shape) != 2:
                raise ModelError(f"{file}: {name} {list(entry.shape)} is stored as {entry.dtype}, which only matrices can be")
        self._heads = _interleaved(header)
        # A private map counts as writable, as torch wants it; nobody writes to it.
        with file.open("rb") as stream:
            self._bytes = torch.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._dense(name, self._entry(name, shape), dtype).to(device)

    def raw(self, name: str) -> Tensor:
        """The tensor called `name` in its own dtype, in float32 if it is quantised."""
        entry = self._entry(name)
        return self._dense(name, entry, _DTYPES.get(entry.dtype, torch.float32))

    def holds(self, tensors: Tensors, name: str) -> bool:
        return self._bits(name) != 0

    def read(self, tensors: Tensors, name: str, rows: int, columns: int) -> QuantizedWeight:
        entry = self._entry(f"{name}.weight", (rows, columns))
        blocks = self._bytes[entry.start : entry.stop].view(rows, -1)
        if entry.dtype == "Q8_0":
            weight = q8_0(blocks)
        elif entry.dtype == "Q4_0":
            weight = q4_0(blocks, self._bits(name))
        else:
            weight = stacked([round_to_nearest(part, 8, _GROUP) for part in self._parts(entry)])
        order = self._order(name, rows)
        if order is None:
            return weight
        return dataclasses.replace(weight, levels=weight.levels[order], scales=weight.scales[order])

    # -- parts --------------------------------------------------------------------------------------------------------

    def _entry(self, name: str, shape: tuple[int, ...] | None = None) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            raise ModelError(f"{self.folder} holds no tensor {name}, which its metadata call for")
        if shape is not None and entry.shape != shape:
            raise ModelError(f"{self.folder}: {name} has the shape {list(entry.shape)}, its metadata call for {list(shape)}")
        return entry

    def _bits(self, name: str) -> int:
        """Bits of the levels that the weight called `name` is given in; 0: none."""
        prefix, _, last = name.rpartition(".")
        together = next((names for names in _STACKED if last in names), (last,))
        found = [self.entries.get(f"{prefix}.{one}.weight" if prefix else f"{one}.weight") for one in together]
        types = {entry.dtype for entry in found if entry is not None}
        if not types or types & set(PLAIN):
            return 0
        return 4 if types == {"Q4_0"} else 8

    def _dense(self, name: str, entry: Entry, dtype: torch.dtype) -> Tensor:
        if entry.dtype in PLAIN:
            values = self._bytes[entry.start : entry.stop].view(_DTYPES[entry.dtype]).view(entry.shape).to(dtype)
        else:
            values, at = torch.empty(entry.shape, dtype=dtype), 0
            for part in self._parts(entry):
                values[at : at + len(part)] = part
                at += len(part)
        order = self._order(name.rpartition(".")[0], entry.shape[0])
        return values if order is None else values[order]

    def _parts(self, entry: Entry) -> Iterator[Tensor]:
        """The rows of a quantised tensor in float32, some at a time."""
        gguf = package()
        rows = self._bytes[entry.start : entry.stop].view(entry.shape[0], -1)
        for part in rows.split(max(1, _CHUNK // entry.shape[1])):
            yield torch.from_numpy(gguf.quants.dequantize(part.numpy(), gguf.GGMLQuantizationType[entry.dtype]))

    def _order(self, name: str, rows: int) -> Tensor | None:
        """Where the rows of a query or key projection lie in the file. Row 2 i of a head there is row i here, and row 2 i + 1
        row i + half: GGUF's Llama rotates neighbours, Hugging Face's the two halves of a head."""
        heads = self._heads.get(name.rpartition(".")[2])
        if heads is None:
            return None
        if rows % (2 * heads):
            raise ModelError(f"{self.folder}: {rows} rows of {name} do not divide into {heads} heads")
        return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)


def q8_0(blocks: Tensor) -> QuantizedWeight:
    """Blocks of 34 bytes: a scale in float16 and 32 signed bytes. [rows, bytes] -> [rows, values]."""
    parts = blocks.view(len(blocks), -1, 34)
    return _weight(parts[..., 2:] ^ 128, parts[..., :2], 8)


def q4_0(blocks: Tensor, bits: int) -> QuantizedWeight:
    """Blocks of 18 bytes: a scale in float16 and 32 levels around 8, the low halves of 16 bytes and then the high ones. With
    8 `bits` the same values are levels around 128."""
    parts = blocks.view(len(blocks), -1, 18)
    levels = torch.cat([parts[..., 2:] & 15, parts[..., 2:] >> 4], -1)
    return _weight(levels + 120 if bits == 8 else levels, parts[..., :2], bits)


def _weight(levels: Tensor, halves: Tensor, bits: int) -> QuantizedWeight:
    """Levels [rows, groups, 32] and the two bytes of each scale [rows, groups, 2]. Another unit loses no bit of a scale."""
    scales, unit = kept_scales(halves.contiguous().view(torch.float16)[..., 0].float())
    return QuantizedWeight(levels.flatten(1), scales, None, unit, bits, _GROUP)


def _name_of(file: Path, name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`. A tensor that has no such name would be left out."""
    stem, _, kind = name.rpartition(".")
    if kind in ("weight", "bias"):
        if stem in NAMES:
            return f"{NAMES[stem]}.{kind}"
        match stem.split("."):
            case ["blk", layer, part] if part in LAYER_NAMES:
                return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"
    raise ModelError(f"{file}: the tensor {name} belongs to no model that is supported")


def _interleaved(header: Header) -> dict[str, int]:
    """The projections whose rows lie in another order, and how many heads they have."""
    if header.architecture != "llama":
        return {}
    heads = header.size("attention.head_count")
    return {"q_proj": heads, "k_proj": header.size("attention.head_count_kv", heads)}
