"""The training loss: the network in bf16, and a cross-entropy that never holds the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from hasten.lab.training.batch import Batch
from hasten.lab.training.experts import routings
from hasten.lab.training.net import Llama, MixtralConfig

CHUNK_ROWS = {"cpu": 1024, "cuda": 16384}
ROUNDED_ROWS = 256


class LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of `hidden @ weight.T`, its gradients computed on the way, a chunk of rows at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """hidden [n, width] and weight [vocab, width] in one dtype, targets [n] int64, counts [n] fp32 (how much each target
        counts) -> the weighted sum in nats, fp32."""
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        loss = torch.zeros((), device=hidden.device)
        chunk = CHUNK_ROWS[hidden.device.type]
        for start in range(0, len(hidden), chunk):
            rows, wanted = hidden[start : start + chunk], targets[start : start + chunk, None]
            count = counts[start : start + chunk, None]
            gradient = F.linear(rows, weight).softmax(-1)
            loss -= (gradient.gather(1, wanted).float().clamp_min(1e-30).log() * count).sum()
            gradient.scatter_add_(1, wanted, gradient.new_full(wanted.shape, -1.0))
            gradient *= count.to(gradient.dtype)
            hidden_gradient[start : start + chunk] = gradient @ weight
            weight_gradient += gradient.T @ rows
        ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The saved gradients, scaled."""
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * outer[0], weight_gradient * outer[0], None, None


def training_loss(net: Llama, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats of the batch's targets, each counting as the batch says; net's parameters are fp32.

    Each parameter is cast to bf16 once, and gradients flow back through the cast to the fp32 originals. The output layer,
    a third of the work, runs only where something is to be learnt. With experts, the mean of the layers' balancing losses is
    added, times the config's coefficient.
    """
    weights = {name: parameter.bfloat16() for name, parameter in net.model.named_parameters()}
    hidden = functional_call(net.model, weights, (batch.inputs, batch.positions)).flatten(0, 1)
    learnt = batch.counts.flatten().nonzero()[:, 0]
    counts = batch.counts.flatten()[learnt]
    padding = (0, -len(learnt) % ROUNDED_ROWS)
    learnt, counts = F.pad(learnt, padding), F.pad(counts, padding)
    loss: Tensor = LinearCrossEntropy.apply(
        hidden[learnt], weights["embed_tokens.weight"], batch.targets.flatten()[learnt], counts
    )
    loss = loss / counts.sum()
    if isinstance(net.config, MixtralConfig):
        balancing = torch.stack([routing.balancing_loss() for routing in routings(net)]).mean()
        loss = loss + net.config.router_aux_loss_coef * balancing
    return loss
