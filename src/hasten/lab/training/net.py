"""The Llama and Mixtral architectures as they are trained: plain torch, no KV cache, parameters named as in Hugging Face.

The engine has its own inference code; this module only exists to make checkpoints for it. Because names and shapes
match `transformers.LlamaForCausalLM` (and `MixtralForCausalLM`), a state dict is a checkpoint without any conversion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.lab.training.experts import Experts

QUERY_BLOCK = 256
MOST_BLOCKS = 8


@dataclass(frozen=True)
class NetConfig:
    """Sizes of a Llama network; the defaults are those of the `base` model."""

    vocab_size: int = 8192
    hidden_size: int = 320
    intermediate_size: int = 832
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 8192
    rope_theta: float = 100_000.0
    rms_norm_eps: float = 1e-5


@dataclass(frozen=True)
class MixtralConfig(NetConfig):
    """Sizes of a network with experts in every layer, each of `intermediate_size`; the defaults are those of the `moe` model.

    router_aux_loss_coef: how much the balancing loss counts in training.
    """

    hidden_size: int = 256
    intermediate_size: int = 192
    num_hidden_layers: int = 5
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    router_aux_loss_coef: float = 0.01


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each [length, head_dim] in fp32 (the two halves repeat)."""
    inverse_frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse_frequency).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding to x [batch, heads, length, head_dim]; cos and sin are [batch or 1, 1, length, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention with grouped key-value heads.

    On a CPU written out as matrix products: at these sizes that is about twice as fast as
    `scaled_dot_product_attention`, whose backward pass is slow there and which needs the keys repeated.
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.group_size = config.num_attention_heads // config.num_key_value_heads
        query_width = config.num_attention_heads * config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        self.widths = [query_width, key_width, key_width]
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=False)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, length, hidden] -> the same shape."""
        batch, length, _ = x.shape
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        q, k, v = (
            part.view(batch, length, -1, self.head_dim).transpose(1, 2)
            for part in F.linear(x, weight).split(self.widths, dim=-1)
        )
        mixed = self._mix(rotate(q, cos, sin) * self.head_dim**-0.5, rotate(k, cos, sin), v)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of scaled q [batch, heads, length, head_dim] over k and v, which have fewer heads.

        The queries of a group are stacked, and go in blocks that only see the keys up to their own end.
        """
        if q.is_cuda:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
        batch, heads, length, width = q.shape
        k, v = k.reshape(-1, length, width), v.reshape(-1, length, width)
        outputs = []
        block = max(QUERY_BLOCK, length // MOST_BLOCKS)
        for start in range(0, length, block):
            stop = min(length, start + block)
            later = torch.full((stop - start, stop), -torch.inf, dtype=q.dtype, device=q.device).triu(start + 1)
            queries = q[:, :, start:stop].reshape(len(k), -1, width)
            scores = torch.baddbmm(later.repeat(self.group_size, 1), queries, k[:, :stop].transpose(1, 2))
            outputs.append((scores.softmax(-1) @ v[:, :stop]).view(batch, heads, stop - start, width))
        return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape."""
        gate, up = F.linear(x, torch.cat((self.gate_proj.weight, self.up_proj.weight))).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.sparse = isinstance(config, MixtralConfig)
        if isinstance(config, MixtralConfig):
            self.block_sparse_moe = Experts(
                config.hidden_size, config.intermediate_size, config.num_local_experts, config.num_experts_per_tok
            )
        else:
            self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, length, hidden] -> the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        feed_forward = self.block_sparse_moe if self.sparse else self.mlp
        return x + feed_forward(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embedding, layers and final norm: everything the checkpoint keeps under `model.`"""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        cos, sin = rotary_tables(config.max_position_embeddings, config.head_dim, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """tokens [batch, length] int64 -> hidden states [batch, length, hidden], normed. positions (the same shape, rising
        along a row) are 0, 1, ... unless given."""
        x = self.embed_tokens(tokens)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        cos, sin = self.cos[positions][:, None].to(x.dtype), self.sin[positions][:, None].to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Llama(nn.Module):
    """A decoder whose output layer is the transposed embedding (tied weights)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self._initialise()

    def _initialise(self) -> None:
        """Normal(0, 0.02), except that what writes to the residual stream starts at zero: each layer starts as
        the identity, which needs no warm-up to train stably."""
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight")):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, last: int | None = None) -> Tensor:
        """tokens [batch, length] int64 -> logits [batch, length, vocab], or [batch, last, vocab] of the last ones only."""
        hidden = self.model(tokens, positions)
        return F.linear(hidden if last is None else hidden[:, -last:], self.model.embed_tokens.weight)


def attentions(net: Llama) -> list[Attention]:
    """The attention of every layer."""
    return [module for module in net.modules() if isinstance(module, Attention)]
