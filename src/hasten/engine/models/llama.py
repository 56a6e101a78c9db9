"""The stack of Llama and its kin: Llama, Mistral, Qwen2, Qwen3 (dense), and the attention half of the expert models.

Every layer is x += attention(norm(x)), x += feed_forward(norm(x)). Query, key and value are one weight, gate and up
another, so a layer multiplies four times. The families differ in biases, in norms on the heads and in sliding windows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from hasten.engine.executors.step import ActMul, Attend, Block, Delta, HeadNorm, Linear, Model, Norm, Op, Site
from hasten.engine.models.config import ModelError, ModelShape
from hasten.engine.models.rope import cos_sin
from hasten.engine.models.source import Source
from hasten.engine.weights.base import Embedding, WeightStore
from hasten.engine.weights.dense import DenseEmbedding
from hasten.engine.weights.quantized import QuantizedWeights
from hasten.kernels.quantized import QuantizedWeight, stacked


class MakeStore(Protocol):
    def __call__(self, weight: Tensor | QuantizedWeight, bias: Tensor | None = None, *, name: str = "") -> WeightStore:
        """A store for a weight [out, in], plain or in the levels of its checkpoint, and bias [out]; may keep the weight
        itself, never writes to it. `name`: the layer's in the checkpoint, the first one's where several are stacked; the
        head is always `lm_head`. Asked for `model.embed_tokens` only where the checkpoint has it in levels, or where an
        attribute `lookups` says that rounded weights are wanted there."""
        ...


class Recall(Protocol):
    def __call__(self, name: str, bias: Tensor | None) -> WeightStore | None:
        """The store called `name` from an earlier start, without its weight; None where there is none."""
        ...


class Loader:
    """Builds the `Model` of one shape from one source, layer by layer, and counts its bytes as it goes."""

    def __init__(self, shape: ModelShape, source: Source, make_store: MakeStore) -> None:
        self.shape = shape
        self.source = source
        self.make_store = make_store
        self.recall: Recall = getattr(make_store, "recall", lambda name, bias: None)
        self.lookups: bool = getattr(make_store, "lookups", False)
        self._table: Tensor | QuantizedWeight | None = None
        self.weight_bytes = 0
        self.active_bytes = 0.0
        self.active_weights = 0.0

    # -- parts --------------------------------------------------------------------------------------------------------

    def norm(self, name: str, tensor: str) -> Norm:
        return Norm(name, self.vector(tensor, self.shape.width), self.shape.eps)

    def vector(self, tensor: str, size: int) -> Tensor:
        vector = self.source.vector(tensor, size)
        self.count(vector.nbytes)
        return vector

    def count(self, nbytes: int, share: float = 1.0, weights: int = 0) -> None:
        """`share` of the bytes are read for one token, and of the weights multiplied."""
        self.active_weights += share * weights
        self.weight_bytes += nbytes
        self.active_bytes += share * nbytes

    def store(self, names: list[str], rows: list[int], columns: int, *, bias: bool = False, share: float = 1.0) -> WeightStore:
        """The tensors `<name>.weight` [rows, columns] below one another as one store, and their biases likewise."""
        source, weights = self.source, [f"{name}.weight" for name in names]
        biases = None
        if bias:
            biases = source.stack([f"{name}.bias" for name in names], rows)
            self.count(biases.nbytes, share)
        if (recalled := self.recall(names[0], biases)) is not None:
            for name in names:
                source.skip(name)
            self.count(recalled.nbytes, share, sum(rows) * columns)
            return recalled
        found = [source.levels(name, count, columns) for name, count in zip(names, rows, strict=True)]
        levels = [one for one in found if one is not None]
        weight: Tensor | QuantizedWeight
        if len(levels) == len(names):
            weight = stacked(levels)
        elif levels:
            raise ModelError(f"of {', '.join(names)} some are quantised and some are not")
        else:
            # A lone weight goes to its store as a view of the file, without a copy in between.
            single = len(names) == 1
            weight = source.take(weights[0], rows[0], columns) if single else source.stack(weights, rows, columns)
        store = self.make_store(weight, biases, name=names[0])
        self.count(store.nbytes, share, sum(rows) * columns)
        return store

    # -- layers -------------------------------------------------------------------------------------------------------

    def attention(self, prefix: str) -> list[Op]:
        shape = self.shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        name = f"{prefix}.self_attn"
        ops: list[Op] = [self.norm("attention_norm", f"{prefix}.input_layernorm.weight")]
        qkv = self.store([f"{name}.{part}_proj" for part in "qkv"], [q, kv, kv], shape.width, bias=shape.qkv_bias)
        ops.append(Linear("qkv", qkv))
        if shape.head_norm:
            q_norm = self.vector(f"{name}.q_norm.weight", shape.head_dim)
            k_norm = self.vector(f"{name}.k_norm.weight", shape.head_dim)
            ops.append(HeadNorm("head_norm", q_norm, k_norm, shape.eps))
        out = self.store([f"{name}.o_proj"], [shape.width], q, bias=shape.out_bias)
        return [*ops, Attend("attend"), Linear("out", out), Delta("attention_delta")]

    def feed_forward(self, prefix: str, layer: int) -> list[Op]:
        shape, name = self.shape, f"{prefix}.mlp"
        norm = self.norm("mlp_norm", f"{prefix}.post_attention_layernorm.weight")
        gate_up = self.store(
            [f"{name}.gate_proj", f"{name}.up_proj"], [shape.inner_width] * 2, shape.width, bias=shape.mlp_bias
        )
        down = self.store([f"{name}.down_proj"], [shape.width], shape.inner_width, bias=shape.mlp_bias)
        return [
            norm,
            Linear("gate_up", gate_up),
            ActMul("activation", shape.activation),
            Linear("down", down),
            Delta("mlp_delta"),
        ]

    def head(self) -> WeightStore:
        shape = self.shape
        if not shape.tied:
            return self.store(["lm_head"], [shape.vocabulary], shape.width)
        head = self.recall("lm_head", None) or self.make_store(self.table(), name="lm_head")
        self.count(head.nbytes, weights=shape.vocabulary * shape.width)
        return head

    def embedding(self, head: WeightStore) -> Embedding:
        """In levels where the checkpoint has them or the technique wants them; a tied head's are not made twice."""
        name = "model.embed_tokens"
        if not (self.lookups or self.source.in_levels(name)):
            table = self.table()
            assert isinstance(table, Tensor)
            return DenseEmbedding(table)
        if self.shape.tied:
            store = head
        else:
            store = self.recall(name, None) or self.make_store(self.table(), name=name)
        return store if isinstance(store, QuantizedWeights) else DenseEmbedding(store.dense())

    def table(self) -> Tensor | QuantizedWeight:
        """The embedding as the checkpoint has it, read once; not at all where its stores are recalled."""
        if self._table is None:
            source, rows, columns = self.source, self.shape.vocabulary, self.shape.width
            levels = source.levels("model.embed_tokens", rows, columns)
            self._table = source.take("model.embed_tokens.weight", rows, columns) if levels is None else levels
        return self._table

    # -- the whole ----------------------------------------------------------------------------------------------------

    def model(self, length: int, fingerprint: str, sites: Callable[[int], int] | None) -> Model:
        """`length`: most tokens of a sequence. `sites`: how many sites so many blocks need (see `Depth`); None: one
        each. Sites beyond the blocks repeat the layers' windows from the first on."""
        shape, source = self.shape, self.source
        blocks = []
        for layer in range(shape.layers):
            prefix = f"model.layers.{layer}"
            blocks.append(Block(self.attention(prefix) + self.feed_forward(prefix, layer)))
        norm = self.norm("norm", "model.norm.weight")
        head = self.head()
        embedding = self.embedding(head)
        if self._table is None:
            source.skip("model.embed_tokens")
        table = cos_sin(shape.rope, shape.head_dim, length).to(source.device)
        total = shape.layers if sites is None else sites(shape.layers)
        return Model(
            embedding=embedding,
            blocks=blocks,
            sites=[self._site(i, table) for i in range(total)],
            norm=norm,
            head=head,
            dtype=source.dtype,
            vocabulary=shape.vocabulary,
            max_length=length,
            fingerprint=fingerprint,
            weight_bytes=self.weight_bytes,
            active_weight_bytes=round(self.active_bytes),
            active_weights=round(self.active_weights),
        )

    def _site(self, index: int, table: torch.Tensor) -> Site:
        shape = self.shape
        return Site(
            index=index,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            scale=shape.head_dim**-0.5,
            cos_sin=table,
            window=shape.windows[index % shape.layers],
        )
