"""The kernels in plain torch: the specification, and what runs on any device without a native library."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.kernels import coded, forest
from hasten.kernels.base import Activation, ViewIndex
from hasten.kernels.coded import CodedCache
from hasten.kernels.quantized import QuantizedWeight, round_activations

TILE = 256  # entries per tile where the order of summation is fixed


class ReferenceKernels:
    """`Kernels` in plain torch, on any device."""

    name = "reference"

    def attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        index: ViewIndex,
        scale: float,
        out: Tensor,
        lse: Tensor | None = None,
        window: int | None = None,
        log_weight: Tensor | None = None,
        deterministic: bool = False,
    ) -> None:
        if index.forest is not None and not deterministic:
            return forest.attend(index.forest, q, k_cache, v_cache, index, scale, out, lse, window, log_weight)
        heads, kv_heads = q.shape[1], k_cache.shape[1]
        group, groups = heads // kv_heads, index.groups
        host, entries = index.on_host(), index.entries()
        blocks, slots, positions = self._entries_on(index, q.device)
        attend = _attend_in_tiles if deterministic else _attend
        for span in range(index.spans):
            start, end = int(host.span_offsets[span]), int(host.span_offsets[span + 1])
            if start == end:
                continue
            # One pass for all KV heads where they share a view, else one pass a head.
            for part in range(groups):
                of = slice(None) if groups == 1 else slice(part, part + 1)
                first, last = (int(entries.offsets[span * groups + part + i]) for i in (0, 1))
                block, slot = blocks[first:last], slots[first:last]
                visible = self._visible(index, span, start, end, positions[first:last], window)
                bias = None if log_weight is None else log_weight[block, slot]
                queries = q[start:end].unflatten(1, (kv_heads, group))[:, of].float()
                keys = k_cache[:, of][block, :, slot].float()
                values = v_cache[:, of][block, :, slot].float()
                result, norm = attend(queries, keys, values, visible, bias, scale)
                out[start:end].unflatten(1, (kv_heads, group))[:, of] = result.to(out.dtype)
                if lse is not None:
                    lse[start:end].unflatten(1, (kv_heads, group))[:, of] = norm

    @staticmethod
    def _entries_on(index: ViewIndex, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        found = index.cache.get(device)
        if found is None:
            found = tuple(torch.from_numpy(a).to(device, non_blocking=True) for a in index.entries()[1:])
            index.cache[device] = found
        return found

    @staticmethod
    def _visible(index: ViewIndex, span: int, start: int, end: int, keys: Tensor, window: int | None) -> Tensor:
        """Bool [n, entries]: which entries of its view each row of the span sees."""
        at = index.positions[start:end, None].long()
        visible = keys[None] <= at
        host = index.on_host()
        if host.is_tree is not None and host.is_tree[span]:
            if index.ancestors is None:
                raise ValueError("a ViewIndex with tree spans needs their ancestors")
            own = torch.arange(end - start, device=keys.device)
            bits = index.ancestors[start:end].index_select(1, own // 64) >> (own % 64)
            visible[:, keys.shape[0] - (end - start) :] = (bits & 1).bool()
        if window is not None:
            visible &= keys[None] > at - window
        return visible

    def merge(self, outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
        lse = torch.logsumexp(lses, 0)
        share = torch.exp(lses - lse.nan_to_num(neginf=0.0))[..., None]
        out = torch.where(share > 0, outs.float() * share, 0.0).sum(0)
        return out.to(outs.dtype), lse

    def rope_and_store(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos_sin: Tensor,
        positions: Tensor,
        slots: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> None:
        if q.device.type == "cpu":  # elsewhere the check would wait for the device
            _check_range("position", positions, 0, cos_sin.shape[0])
            _check_range("slot", slots, -1, k_cache.shape[0] * k_cache.shape[2])
        table = cos_sin[positions.long()][:, None]  # [T, 1, 2, R / 2]
        q.copy_(_rotate(q, table))
        _store(k_cache, _rotate(k, table), slots)
        _store(v_cache, v, slots)

    def coded_attention(
        self,
        q: Tensor,
        cache: CodedCache,
        index: ViewIndex,
        scale: float,
        out: Tensor,
        lse: Tensor | None = None,
        window: int | None = None,
        log_weight: Tensor | None = None,
        deterministic: bool = False,
    ) -> None:
        keys, values, over, used = coded.dense(cache, index)
        weight = None if log_weight is None else log_weight[used]
        # Of this class: one that computes `attention` otherwise may not take plain numbers beside queries of another dtype.
        ReferenceKernels.attention(self, q, keys, values, over, scale, out, lse, window, weight, deterministic)

    def rope_and_encode(
        self, q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, positions: Tensor, slots: Tensor, cache: CodedCache
    ) -> None:
        _check_range("position", positions, 0, cos_sin.shape[0])
        _check_range("slot", slots, -1, cache.blocks * cache.block_size)
        table = cos_sin[positions.long()][:, None]
        q.copy_(_rotate(q, table))
        wanted = slots >= 0
        held = (*coded.encode(_rotate(k, table)[wanted], cache.bits), *coded.encode(v[wanted], cache.bits))
        coded.write(cache, slots[wanted], held)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        # Not `mean`, whose order of summation depends on the number of rows on a GPU.
        out.copy_(weight * F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype))

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        x.add_(delta)
        self.rms_norm(x, weight, eps, out)

    def act_mul(self, gate_up: Tensor, out: Tensor, activation: Activation = "silu") -> None:
        gate, up = gate_up.chunk(2, dim=-1)
        if activation == "silu":
            out.copy_(F.silu(gate) * up)
        elif activation == "gelu_tanh":
            out.copy_(F.gelu(gate, approximate="tanh") * up)
        else:
            raise ValueError(f"activation {activation!r} is not one of 'silu', 'gelu_tanh'")

    def copy_blocks(self, cache: Tensor, src: Tensor, dst: Tensor) -> None:
        cache[dst] = cache[src]

    def linear(self, x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> None:
        # One row at a time, each from memory of the same alignment: libraries choose their order of summation by both.
        for row in range(x.shape[0]):
            out[row : row + 1] = F.linear(x[row : row + 1].clone(), w, bias)

    def pack(self, weight: QuantizedWeight) -> Any:
        return weight

    def unpack(self, packed: Any) -> QuantizedWeight:
        return packed

    def quantized_rows(self, packed: Any, ids: Tensor, out: Tensor) -> None:
        out.copy_(packed.select(ids).dense(out.dtype))

    def quantized_linear(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        levels, group = packed.levels, packed.group
        shift = packed.zero if packed.zeros is None else packed.zeros.float()[..., None]
        weight = F.pad(levels.float(), (0, -levels.shape[1] % group)).view(len(levels), -1, group) - shift
        whole, scales = round_activations(x, group)
        total = torch.zeros(out.shape, device=x.device)
        for g in range(weight.shape[1]):  # products of whole numbers below 2^24: exact in float32
            total += (whole[:, g] @ weight[:, g].T) * scales[:, g, None] * packed.scales[:, g].float()
        total *= packed.unit
        out.copy_(total if bias is None else total + bias.float())

    def apply_mask(self, logits: Tensor, mask: Tensor, rows: Tensor) -> None:
        if logits.is_cpu:
            _check_range("row", rows, 0, len(logits))
        bits = mask[:, :, None] >> torch.arange(32, dtype=torch.int32, device=mask.device) & 1
        legal = bits.flatten(1)[:, : logits.shape[1]].bool()
        logits[rows] = logits[rows].masked_fill(~legal, -torch.inf)

    def sample(self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, u: Tensor) -> Tensor:
        logits = logits.float()
        vocabulary = logits.shape[1]
        maximum, greedy = logits.max(-1)
        _raise_on_bad_row(~torch.isfinite(maximum))  # max is NaN where any is, -inf where all are
        greedy = (logits == maximum[:, None]).to(torch.uint8).argmax(-1)  # the first index, which max does not promise
        heat = torch.where(temperature > 0, temperature, 1.0)[:, None]
        p = torch.exp(((logits - maximum[:, None]) / heat).double())
        ids = torch.sort(logits, dim=-1, descending=True, stable=True).indices
        ordered_p = p.gather(1, ids)
        rank = torch.arange(vocabulary, device=logits.device)
        kept = rank < torch.where(top_k > 0, top_k, vocabulary)[:, None]
        mass = torch.where(kept, ordered_p, 0.0).cumsum(-1)
        before = mass - torch.where(kept, ordered_p, 0.0)
        in_top_p = (before < top_p.double()[:, None] * mass[:, -1:]) | (rank == 0)
        kept &= in_top_p | (top_p >= 1)[:, None]
        kept &= ordered_p >= min_p.double()[:, None]  # p of the maximum is 1
        p = torch.zeros_like(p).scatter(1, ids, torch.where(kept, ordered_p, 0.0))
        mass = p.cumsum(-1)
        drawn = torch.searchsorted(mass, (u.double() * mass[:, -1])[:, None], right=True)[:, 0]
        drawn = torch.minimum(drawn, vocabulary - 1 - p.flip(-1).gt(0).to(torch.uint8).argmax(-1))
        return torch.where(temperature > 0, drawn, greedy)

    def log_softmax_gather(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return torch.log_softmax(logits.float(), -1).gather(1, tokens[:, None])[:, 0]

    def top_logprobs(self, logits: Tensor, n: int) -> tuple[Tensor, Tensor]:
        # Not logsumexp, for the reason in `rms_norm`.
        ids = torch.topk(logits.float(), n, dim=-1).indices
        return torch.log_softmax(logits.float(), -1).gather(1, ids), ids


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """q [n, Hk, g, D], k and v [L, Hk, D], visible [n, L], bias [L] -> out [n, Hk, g, D] and lse [n, Hk, g], float32."""
    scores = torch.einsum("nhgd,lhd->nhgl", q, k) * scale
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
    lse = torch.logsumexp(scores, -1)
    p = torch.exp(scores - lse.nan_to_num(neginf=0.0)[..., None])
    return torch.einsum("nhgl,lhd->nhgd", p, v), lse


def _attend_in_tiles(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """`_attend` with the same bits for a row whatever stands around it: row by row over zero-padded tiles of one shape,
    left to right, in operations whose order of summation torch fixes by shape."""
    length = k.shape[0]
    pad = -length % TILE
    k, v = (F.pad(t, (0, 0, 0, 0, 0, pad)).transpose(0, 1) for t in (k, v))  # [Hk, L, D]
    visible = F.pad(visible, (0, pad))
    bias = None if bias is None else F.pad(bias, (0, pad))
    out, lse = torch.zeros_like(q), torch.full(q.shape[:-1], -torch.inf, device=q.device)
    tiles = [(k[:, i : i + TILE].contiguous(), v[:, i : i + TILE].contiguous(), i) for i in range(0, length, TILE)]
    for row in range(q.shape[0]):
        query = q[row].contiguous()
        total, norm = torch.zeros_like(query), torch.full(query.shape[:-1], -torch.inf, device=q.device)
        for keys, values, i in tiles:
            scores = (query[:, :, None] * keys[:, None]).sum(-1) * scale
            if bias is not None:
                scores = scores + bias[i : i + TILE]
            scores = scores.masked_fill(~visible[row, i : i + TILE], -torch.inf)
            top = scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
            p = torch.exp(scores - top)
            mass = p.sum(-1)
            part = (p[..., None] * values[:, None]).sum(-2) / mass.clamp(min=1e-38)[..., None]
            part_norm = torch.log(mass) + top[..., 0]
            joined = torch.logaddexp(norm, part_norm)
            safe = joined.nan_to_num(neginf=0.0)
            total = total * torch.exp(norm - safe)[..., None] + part * torch.exp(part_norm - safe)[..., None]
            norm = joined
        out[row], lse[row] = total, norm
    return out, lse


def _rotate(x: Tensor, table: Tensor) -> Tensor:
    """x [T, H, D] with its first R dimensions rotated by table [T, 1, 2, R / 2] (cosines, sines)."""
    half = table.shape[-1]
    if half == 0:
        return x
    a, b, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    cos, sin = table[:, :, 0], table[:, :, 1]
    return torch.cat([(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest], -1)


def _store(cache: Tensor, rows: Tensor, slots: Tensor) -> None:
    """rows [T, Hk, D] into slots [T], those below 0 not. Shapes must not depend on the data, lest a device be waited for: a row
    not to be stored repeats one that is, or, where none is, what its slot holds already."""
    if not slots.numel():
        return
    wanted = slots >= 0
    example = torch.argmax(wanted.to(torch.uint8), keepdim=True)
    at = torch.where(wanted, slots, slots[example].clamp(min=0))
    block, slot = at // cache.shape[2], at % cache.shape[2]
    instead = torch.where(wanted.any(), rows[example], cache[block[:1], :, slot[:1]])
    cache[block, :, slot] = torch.where(wanted[:, None, None], rows, instead)


def _check_range(what: str, values: Tensor, low: int, end: int) -> None:
    if values.numel() and (int(values.min()) < low or int(values.max()) >= end):
        raise IndexError(f"{what}s must lie in [{low}, {end}), found {int(values.min())} .. {int(values.max())}")


def _raise_on_bad_row(bad: Tensor) -> None:
    rows = np.flatnonzero(bad.cpu().numpy())
    if rows.size:
        raise ValueError(f"logits of row {rows[0]} cannot be sampled: all -inf, or NaN or +inf among them")
