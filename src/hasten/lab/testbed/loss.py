"""The training loss: the network in bf16, and a cross-entropy that never holds the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from hasten.lab.testbed.net import Llama

CHUNK_ROWS = 1024


class LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of `hidden @ weight.T`, its gradients computed on the way, a chunk of rows at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """hidden [n, width] and weight [vocab, width] in one dtype, targets [n] -> the sum in nats, fp32."""
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        loss = torch.zeros(())
        for start in range(0, len(hidden), CHUNK_ROWS):
            rows, wanted = hidden[start : start + CHUNK_ROWS], targets[start : start + CHUNK_ROWS, None]
            gradient = F.linear(rows, weight).softmax(-1)
            loss -= gradient.gather(1, wanted).float().clamp_min(1e-30).log().sum()
            gradient.scatter_add_(1, wanted, gradient.new_full(wanted.shape, -1.0))
            hidden_gradient[start : start + CHUNK_ROWS] = gradient @ weight
            weight_gradient += gradient.T @ rows
        ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, None]:
        """The saved gradients, scaled."""
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * outer[0], weight_gradient * outer[0], None


def training_loss(net: Llama, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of targets [rows, length] given inputs [rows, length]; net's parameters are fp32.

    Each parameter is cast to bf16 once, and gradients flow back through the cast to the fp32 originals.
    """
    weights = {name: parameter.bfloat16() for name, parameter in net.model.named_parameters()}
    hidden = functional_call(net.model, weights, (inputs,))
    loss: Tensor = LinearCrossEntropy.apply(hidden.flatten(0, 1), weights["embed_tokens.weight"], targets.flatten())
    return loss / targets.numel()
