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
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, teacher: Tensor | None = None
    ) -> Tensor:
        """hidden [n, width] and weight [vocab, width] in one dtype, targets [n] int64, counts [n] fp32 (how much each target
        counts) -> the weighted sum in nats, fp32. With a teacher's weight [vocab, m], targets are its hidden states [n, m]: the
        distributions that they give are to be met."""
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        loss = torch.zeros((), device=hidden.device)
        size = CHUNK_ROWS[hidden.device.type]
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            rows, wanted, count = hidden[chunk], targets[chunk], counts[chunk, None]
            gradient = F.linear(rows, weight).softmax(-1)
            if teacher is None:
                loss -= (gradient.gather(1, wanted[:, None]).float().clamp_min(1e-30).log() * count).sum()
                gradient.scatter_add_(1, wanted[:, None], gradient.new_full((len(rows), 1), -1.0))
            else:
                meant = F.linear(wanted, teacher).softmax(-1)
                loss -= (gradient.float().clamp_min(1e-30).log() * meant * count).sum()
                gradient -= meant
            gradient *= count.to(gradient.dtype)
            hidden_gradient[chunk] = gradient @ weight
            weight_gradient += gradient.T @ rows
        ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The saved gradients, scaled."""
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * outer[0], weight_gradient * outer[0], None, None, None


def training_loss(net: Llama, batch: Batch, teacher: Llama | None = None) -> Tensor:
    """Mean cross-entropy in nats of the batch's targets, each counting as the batch says; net's parameters are fp32.

    Each parameter is cast to bf16 once, and gradients flow back through the cast to the fp32 originals. The output layer,
    a third of the work, runs only where something is to be learnt. With experts, the mean of the layers' balancing losses is
    added, times the config's coefficient. With a teacher, in bf16, what it says of running text is learnt instead of the text
    (Hinton et al., 2015): a network that knows the few texts by heart is led back to what can be known of others.
    """
    weights = {name: parameter.bfloat16() for name, parameter in net.model.named_parameters()}
    hidden = functional_call(net.model, weights, (batch.inputs, batch.positions)).flatten(0, 1)
    embedding = weights["embed_tokens.weight"]
    counts = batch.counts.flatten()
    # Running text is what counts less than a lesson (`batch.TEXT_COUNT`).
    taught = torch.zeros_like(counts, dtype=torch.bool) if teacher is None else (counts > 0) & (counts < 1)
    own, own_counts = _learnt(counts * ~taught)
    loss: Tensor = LinearCrossEntropy.apply(hidden[own], embedding, batch.targets.flatten()[own], own_counts)
    if teacher is not None:
        with torch.no_grad():
            meant = teacher.model(batch.inputs, batch.positions).flatten(0, 1)
        rows, shares = _learnt(counts * taught)
        loss = loss + LinearCrossEntropy.apply(hidden[rows], embedding, meant[rows], shares, teacher.model.embed_tokens.weight)
    loss = loss / counts.sum()
    if isinstance(net.config, MixtralConfig):
        balancing = torch.stack([routing.balancing_loss() for routing in routings(net)]).mean()
        loss = loss + net.config.router_aux_loss_coef * balancing
    return loss


def _learnt(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where counts [n] are not zero, and what they are there; padded with zeros to few different lengths."""
    rows = counts.nonzero()[:, 0]
    padding = (0, -len(rows) % ROUNDED_ROWS)
    return F.pad(rows, padding), F.pad(counts[rows], padding)
