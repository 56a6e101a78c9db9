"""The kernel contract: what every implementation computes, and `ViewIndex`, what the queries of one step may read.

All float tensors of one call share the *run dtype*, float32 or bfloat16; sums are accumulated in float32. Sizes by letter:
T flat tokens of a step, S spans, Hq query heads, Hk key/value heads (Hq = g * Hk; query head h reads KV head h // g), D head
dimension, L rows of logits, V vocabulary. Caches are [blocks, Hk, block_size, D], contiguous, block_size and D multiples of 8.

Every `out` is overwritten whole, whatever it held. Nothing here synchronises with a device except `sample`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from hasten.kernels.forest import Forest
from hasten.kernels.quantized import QuantizedWeight

if TYPE_CHECKING:
    from hasten.kernels.coded import CodedCache

Activation = Literal["silu", "gelu_tanh"]


class HostIndex(NamedTuple):
    """The integers of a `ViewIndex` as numpy arrays, so that looping over spans never waits for a device."""

    span_offsets: np.ndarray
    positions: np.ndarray
    runs: np.ndarray
    run_offsets: np.ndarray
    is_tree: np.ndarray | None


class Entries(NamedTuple):
    """A `ViewIndex` written out: one row per readable key, views one after another (view = span * groups + KV head)."""

    offsets: np.ndarray  # int64 [views + 1], entries of each view
    blocks: np.ndarray  # int64 [E]
    slots: np.ndarray  # int64 [E], slot within the block
    positions: np.ndarray  # int64 [E], position id of the stored token


@dataclass(slots=True, eq=False)
class ViewIndex:
    """Which stored keys each query of one step may read. Built once per step, read by every layer, never changed.

    A *view* is the list of keys one span reads, in the order of its runs; key number e of a view is its *entry* e. There is
    one view a span, or one per (span, KV head) where views differ by head: then `run_offsets` has S * Hk + 1 entries and
    view span * Hk + head. Several views may name the same slots.

    A query at position p sees the entry at position k if k <= p, and k > p - window when a sliding window is given.
    In a *tree* span (n drafted tokens) the last n entries of the view are the span's own tokens in span order, and query row
    i sees own token j only if bit j of `ancestors` row i is set (bit j % 64 of word j // 64; set the token itself too) and it
    lies in the window; positions do not order own tokens. The span's new keys are in the cache before attention is called.

    span_offsets  int32 [S + 1]            rows of the flat tokens by span
    positions     int32 [T]                position id of every query token
    runs          int32 [R, 4]             (block, first slot in it, count, position of the first): consecutive slots of one
                                           block whose tokens have consecutive positions
    run_offsets   int32 [S * groups + 1]   rows of `runs` by view
    ancestors     int64 [T, W] or None     uint64 bit masks, read only for tree spans; W * 64 >= tokens of the largest tree
    is_tree       uint8 [S] or None        which spans are trees
    host          numpy copies of the integers (shared memory on the CPU); made on first use where absent
    forest        how to read what views share once (set before the index is first used); deterministic calls do without
    contexts      numpy int32 [S] or None: how many of each view's first runs are contexts that stand beside each other. For
                  those who make forests: kernels go by the forest
    """

    span_offsets: Tensor
    positions: Tensor
    runs: Tensor
    run_offsets: Tensor
    ancestors: Tensor | None = None
    is_tree: Tensor | None = None
    host: HostIndex | None = None
    forest: Forest | None = None
    contexts: np.ndarray | None = None
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What an implementation derives from the index once per step, under its own key."""

    @classmethod
    def from_numpy(
        cls,
        span_offsets: np.ndarray,
        positions: np.ndarray,
        runs: np.ndarray,
        run_offsets: np.ndarray,
        ancestors: np.ndarray | None = None,
        is_tree: np.ndarray | None = None,
        device: str | torch.device = "cpu",
    ) -> ViewIndex:
        """The index over numpy arrays, which torch views without copying on the CPU. `ancestors` may be uint64."""
        host = HostIndex(
            np.ascontiguousarray(span_offsets, np.int32),
            np.ascontiguousarray(positions, np.int32),
            np.ascontiguousarray(runs, np.int32).reshape(-1, 4),
            np.ascontiguousarray(run_offsets, np.int32),
            None if is_tree is None else np.ascontiguousarray(is_tree, np.uint8),
        )

        here = torch.device(device).type == "cpu"

        def put(array: np.ndarray) -> Tensor:
            tensor = torch.from_numpy(array)
            return tensor if here else tensor.to(device, non_blocking=True)

        return cls(
            put(host.span_offsets),
            put(host.positions),
            put(host.runs),
            put(host.run_offsets),
            None if ancestors is None else put(np.ascontiguousarray(ancestors).view(np.int64)),
            None if host.is_tree is None else put(host.is_tree),
            host,
        )

    @property
    def spans(self) -> int:
        return self.span_offsets.shape[0] - 1

    @property
    def groups(self) -> int:
        """1, or the number of KV heads when views differ by head."""
        return (self.run_offsets.shape[0] - 1) // max(self.spans, 1)

    def on_host(self) -> HostIndex:
        if self.host is None:
            tree = None if self.is_tree is None else self.is_tree.to(torch.uint8).cpu().numpy()
            self.host = HostIndex(
                self.span_offsets.cpu().numpy(),
                self.positions.cpu().numpy(),
                self.runs.contiguous().cpu().numpy(),
                self.run_offsets.cpu().numpy(),
                tree,
            )
        return self.host

    def entries(self) -> Entries:
        """Every view's entries in order, written out on the host (cached)."""
        found = self.cache.get("entries")
        if found is None:
            host = self.on_host()
            block, first, count, position = (c.astype(np.int64) for c in host.runs.T)
            before = np.concatenate([[0], np.cumsum(count)])
            within = np.arange(before[-1]) - np.repeat(before[:-1], count)
            found = Entries(
                before[host.run_offsets],
                np.repeat(block, count),
                np.repeat(first, count) + within,
                np.repeat(position, count) + within,
            )
            self.cache["entries"] = found
        return found


class Kernels(Protocol):
    """One function per kernel. Implementations differ in speed only; `ReferenceKernels` is the specification."""

    name: str

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
        """Softmax attention of every query token over its view: single tokens, chunks of prompts and trees in one call.

        q           [T, Hq, D]; the stride of T is free, heads lie one after another
        out         [T, Hq, D], same rule; q and out may not overlap
        lse         float32 [T, Hq] contiguous: natural log of the sum of exp(score) over visible keys
        scale       multiplies q.k; `window` and `scale` may differ by layer
        log_weight  float32 [blocks, block_size] contiguous, added to the scores of a slot; -inf hides it

        A row that sees no key gives out = 0 and lse = -inf. With `deterministic` the bits of a row depend only on its query,
        its view's entries in order and its mask: not on the batch, on chunking, on how entries lie in runs and blocks, nor on
        the thread count; view entries it cannot see at the view's end change nothing.
        Raises ValueError for shapes, dtypes or strides outside this contract, IndexError for runs outside the cache.
        """
        ...

    def merge(self, outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
        """Joins partial attention results over disjoint key sets exactly.

        outs [P, T, H, D] and lses float32 [P, T, H] -> (out [T, H, D] in the dtype of outs, lse float32 [T, H]).
        A part with lse = -inf counts for nothing, whatever its out holds.
        """
        ...

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
        """Rotates q in place, and k on its way into the cache, and stores v.

        q [T, Hq, D], k and v [T, Hk, D]: views of one fused row or not (the stride of T is free); k itself is left unrotated.
        cos_sin float32 [max_position, 2, R / 2]: cosines then sines; the first R <= D dimensions are rotated, dimension i
        paired with i + R / 2 (the "NeoX" order of Hugging Face checkpoints); R = 0 rotates nothing.
        positions int32 [T]; slots int64 [T]: block * block_size + offset, or -1 not to store. Computed in float32,
        rounded once. Raises IndexError for a position or slot out of range, before anything is written (on the
        CPU only: elsewhere the check would wait for the device).
        """
        ...

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
        """`attention` over keys and values that are codes (`kernels/coded.py`): what it gives for their decoded values."""
        ...

    def rope_and_encode(
        self, q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, positions: Tensor, slots: Tensor, cache: CodedCache
    ) -> None:
        """`rope_and_store`, but the rotated k, rounded to the run dtype, and v become codes. Slots distinct."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """out = weight * round(x / sqrt(mean(x^2) + eps)), the mean and division in float32, round() to the run dtype.

        x and out [N, M] or [T, H, M], last dimension contiguous, weight [M]. out may be x itself.
        """
        ...

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """x += delta (rounded to the run dtype), then out = rms_norm(x). All [T, M], last dimension contiguous."""
        ...

    def act_mul(self, gate_up: Tensor, out: Tensor, activation: Activation = "silu") -> None:
        """out [T, I] = round(activation(gate)) * up, where gate_up [T, 2 I] holds gate then up in each row."""
        ...

    def copy_blocks(self, cache: Tensor, src: Tensor, dst: Tensor) -> None:
        """cache[dst] = cache[src] for one cache tensor; src, dst int64 [n], dst distinct and disjoint from src."""
        ...

    def linear(self, x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out [T, N] = x [T, K] @ w [N, K]^T + bias [N], *batch-invariant*: a row's bits do not depend on T or on threads.

        Rows of x, w and out have their last dimension contiguous. Meant for few rows (near the memory bandwidth at T = 1 .. 4)
        and for deterministic runs; big batches are faster in a library GEMM.
        """
        ...

    def pack(self, weight: QuantizedWeight) -> Any:
        """The weight in the layout that `quantized_linear` of these kernels reads."""
        ...

    def unpack(self, packed: Any) -> QuantizedWeight:
        """The weight that was packed."""
        ...

    def quantized_rows(self, packed: Any, ids: Tensor, out: Tensor) -> None:
        """out [n, in] = the rows `ids` (int64 [n]) of a packed weight, as plain numbers. Raises IndexError for an id out of
        range."""
        ...

    def quantized_linear(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        """out [T, N] = x [T, K] @ weight [N, K]^T + bias [N], x rounded to int8 on the way in, a scale for every group of
        columns (`round_activations`). Integer sums within a group, groups added left to right in float32: batch-invariant.

        Rows of x and out have their last dimension contiguous."""
        ...

    def apply_mask(self, logits: Tensor, mask: Tensor, rows: Tensor) -> None:
        """logits[rows[i], t] = -inf for every token t whose bit in mask[i] is 0; all else keeps its bits.

        logits [L, V] float32 or bfloat16, the last dimension contiguous; mask int32 [n, ceil(V / 32)], a bit a token, lowest
        first, bits beyond V unused; rows int64 [n], distinct. Raises IndexError for a row out of range, before anything is
        written (on the CPU only)."""
        ...

    def sample(self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor) -> Tensor:
        """One token id per row of logits [L, V] (float32 or bfloat16) -> int64 [L].

        temperature float32 [L], 0 = greedy: the first index of the maximum. Otherwise p = softmax(logits / temperature),
        cut to the top_k (int32 [L], 0 = off) largest, of those to the smallest set whose share of their mass is >= top_p
        (float32 [L], 1 = off; at least one token stays), of those to p >= min_p * p_max (float32 [L], 0 = off). Ties at a
        threshold keep the lower token ids. Then a race: kept token t arrives at E / p, with E exponentially distributed and a
        function of the row's key (int64 [L]: 64 random bits) and of t alone (`kernels/reference.py`, `earliness`); the first
        is drawn. That is a draw from p, and rows with equal keys and similar p mostly draw alike: of all ways to draw two
        tokens without knowing of each other it makes them agree about as often as any can (Bavarian et al., "Optimality of
        correlated sampling strategies", 2016). A logit of -inf is never drawn. Raises ValueError naming the first row that is
        all -inf or holds NaN or +inf."""
        ...

    def log_softmax_gather(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """log softmax(logits)[i, tokens[i]]: logits [L, V], tokens int64 [L] -> float32 [L]."""
        ...

    def top_logprobs(self, logits: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The n largest log-probabilities of each row, largest first: (float32 [L, n], token ids int64 [L, n])."""
        ...
