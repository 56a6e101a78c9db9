"""Starting weights in which looking something up is already wired, roughly.

A small network trained on few tokens spends most of them on a plateau before it finds induction: to look for where the
current token stood before, and to see what followed (Olsson et al., 2022). It needs two attention layers at once, so neither
is rewarded alone. Here both are there from the start, as mimetic initialisation (Trockman and Kolter, 2023) starts weights
from patterns that trained networks have:

- All rows of the embedding share a constant, which gives a bias-free network a direction that is the same at every position.
- In the first layer a head of each key-value group attends to the previous token: its queries and keys are made from the
  constant, turned by one position. It writes a projection of that token to the stream.
- In the second layer a head of each group looks for keys whose previous token is the query's own, and copies what stands there.

On random repeated tokens (vocabulary of 2,048, three layers of width 128) the loss falls from 7.6 to 1.3 nats within 130 steps;
without this it stood at 6.6 after 500.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hasten.lab.training.net import Attention, Llama

EMBEDDING_STD = 0.05
SHARPNESS = 6.0
FASTEST = 6
PREVIOUS, MATCHING, COPYING = 0.5, 1.0, 0.5


@torch.no_grad()
def wire(net: Llama) -> None:
    """Write the circuit over the random weights of a network of at least two layers."""
    config = net.config
    embedding = net.model.embed_tokens.weight
    nn.init.normal_(embedding, std=EMBEDDING_STD)
    constant = torch.randn(config.hidden_size)
    constant *= EMBEDDING_STD * config.hidden_size**0.5 / constant.norm()
    embedding += constant - embedding.mean(0)
    first, second = (net.model.layers[i].self_attn for i in range(2))
    width = config.head_dim
    # Normed, the constant is half the energy of a row: this reads it as 1.
    read = constant / constant.norm() / (config.hidden_size / 2) ** 0.5
    here, before = _pointers(width, config.rope_theta)
    for group in range(config.num_key_value_heads):
        own, written, copied = (_projection(width, config.hidden_size) for _ in range(3))
        head = group * first.group_size
        _rows(first.q_proj, head, width).add_(torch.outer(before, read))
        _rows(first.k_proj, group, width).add_(torch.outer(here, read))
        _rows(first.v_proj, group, width).copy_(PREVIOUS * own)
        _columns(first, head).copy_(PREVIOUS * written.T)
        _rows(second.q_proj, head, width).copy_(MATCHING * own)
        _rows(second.k_proj, group, width).copy_(MATCHING * written)
        _rows(second.v_proj, group, width).copy_(COPYING * copied)
        _columns(second, head).copy_(COPYING * copied.T)


def _pointers(width: int, theta: float) -> tuple[Tensor, Tensor]:
    """A key, and the query that fits it best one position later: [width] each, in the fastest rotary frequencies."""
    half = width // 2
    turn = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    strength = torch.zeros(half)
    strength[:FASTEST] = SHARPNESS
    here = torch.cat((strength, torch.zeros(half)))
    return here, torch.cat((strength * turn.cos(), -strength * turn.sin()))


def _projection(rows: int, columns: int) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns))


def _rows(linear: nn.Linear, head: int, width: int) -> Tensor:
    return linear.weight[head * width : (head + 1) * width]


def _columns(attention: Attention, head: int) -> Tensor:
    width = attention.head_dim
    return attention.o_proj.weight[:, head * width : (head + 1) * width]
