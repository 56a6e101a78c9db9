"""The testbed's mixture of experts: the layer, its balancing loss, and a checkpoint that others compute alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.models.harness import Runner
from tests.models.harness import load as load_in_engine
from tokenizers import Tokenizer
from torch import Tensor

from hasten.engine.models.moe import Experts as EngineExperts
from hasten.lab.testbed import small_talk
from hasten.lab.testbed.tokenizer import train_tokenizer
from hasten.lab.training.batch import Batch
from hasten.lab.training.experts import Experts, Routing, expert_loads
from hasten.lab.training.export import export, load
from hasten.lab.training.loss import training_loss
from hasten.lab.training.net import Llama, MixtralConfig
from hasten.lab.training.optimise import Optimisers
from hasten.lab.training.recipe import MODELS, recipe_for

TINY = MixtralConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)


def stirred(config: MixtralConfig = TINY) -> Llama:
    """A network whose every matrix matters: at the start some are zero, and routers hardly prefer any expert."""
    torch.manual_seed(0)
    net = Llama(config)
    for parameter in net.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def token_by_token(layer: Experts, x: Tensor) -> Tensor:
    """What the layer computes, said as simply as possible: x [tokens, hidden] -> the same shape."""
    outputs = []
    for row in x:
        probabilities = (layer.gate.weight @ row).softmax(-1)
        best = sorted(range(len(layer.experts)), key=lambda e: -probabilities[e].item())[: layer.per_token]
        total = sum(probabilities[e] for e in best)
        output = torch.zeros_like(row)
        for e in best:
            own = layer.experts[e]
            output = output + probabilities[e] / total * (own.w2.weight @ (F.silu(own.w1.weight @ row) * (own.w3.weight @ row)))
        outputs.append(output)
    return torch.stack(outputs)


@pytest.mark.parametrize("per_token", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 11, 16), (1, 1, 16)])  # of one token, most experts get nothing
def test_the_layer_and_its_gradients_are_those_of_a_loop_over_tokens(per_token: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(per_token)
    layer, x, slope = Experts(16, 24, 8, per_token), torch.randn(shape, requires_grad=True), torch.randn(shape)
    wanted_from = [x, *layer.parameters()]
    wanted = token_by_token(layer, x.flatten(0, 1)).view(shape)
    gradients = torch.autograd.grad((wanted * slope).sum(), wanted_from, allow_unused=True)
    output = layer(x)
    torch.testing.assert_close(output, wanted)
    for ours, theirs, of in zip(torch.autograd.grad((output * slope).sum(), wanted_from), gradients, wanted_from, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(of) if theirs is None else theirs)


def test_a_token_cannot_have_more_experts_than_there_are() -> None:
    with pytest.raises(ValueError, match="between 1 expert and the 4 that there are, got 5"):
        Experts(16, 24, 4, 5)


def test_the_balancing_loss_is_one_when_balanced_and_larger_when_not() -> None:
    even = torch.full((4,), 0.25)
    assert Routing(even.repeat(6, 1), even).balancing_loss().item() == pytest.approx(1.0)
    leaning = torch.tensor([0.7, 0.1, 0.1, 0.1])
    assert Routing(leaning.repeat(6, 1), leaning).balancing_loss().item() == pytest.approx(4 * (0.49 + 0.03))
    one = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert Routing(one.repeat(6, 1), one).balancing_loss().item() == pytest.approx(4.0)


def test_its_gradient_pushes_tokens_away_from_a_crowded_expert() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0]]).repeat(5, 1).requires_grad_()
    Routing(logits.softmax(-1), torch.tensor([0.8, 0.1, 0.1])).balancing_loss().backward()
    assert logits.grad is not None and (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1:] < 0).all()


def test_it_spreads_tokens_that_all_went_to_one_expert() -> None:
    torch.manual_seed(0)
    layer, x = Experts(16, 24, 8, 2), torch.randn(256, 16) + 1
    with torch.no_grad():
        layer.gate.weight[0] += 1.0
    optimiser = torch.optim.AdamW([layer.gate.weight], lr=0.02)
    largest = []
    for _ in range(60):
        layer(x)
        assert layer.routing is not None
        largest.append(layer.routing.loads.max().item())
        layer.routing.balancing_loss().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert largest[0] > 0.45 and largest[-1] < 0.2  # a half is the most there can be, with two experts a token


def batch(vocabulary: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (4, 33), generator=generator)
    tokens[:, 16:] = tokens[:, :17]  # the second half can be copied
    counts = torch.ones(4, 32)
    counts[:, :5] = 0.0
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), counts, torch.arange(32).repeat(4, 1))


def test_training_adds_the_balancing_loss_times_its_coefficient() -> None:
    losses = {}
    for coefficient in (0.0, 0.5):
        net = stirred(replace(TINY, router_aux_loss_coef=coefficient))
        losses[coefficient] = training_loss(net, batch(TINY.vocab_size))
    layers = [layer.block_sparse_moe.routing.balancing_loss() for layer in net.model.layers]
    assert losses[0.5].item() - losses[0.0].item() == pytest.approx(0.5 * sum(x.item() for x in layers) / 2, rel=1e-3)
    losses[0.5].backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())


def test_expert_loads_say_where_the_tokens_went() -> None:
    net, tokens = stirred(), batch(TINY.vocab_size).inputs
    loads = expert_loads(net, tokens)
    assert loads.shape == (2, 8)
    torch.testing.assert_close(loads.sum(1), torch.ones(2))
    seen: list[Tensor] = []
    router = net.model.layers[1].block_sparse_moe.gate
    net.model.layers[1].post_attention_layernorm.register_forward_hook(lambda _module, _x, y: seen.append(y.flatten(0, 1)))
    assert torch.equal(expert_loads(net, tokens), loads)
    best = (seen[0] @ router.weight.T).sort(dim=-1, descending=True).indices[:, :2]
    assert loads[1].tolist() == pytest.approx([float((best == e).sum()) / (2 * tokens.numel()) for e in range(8)])


def test_some_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    net = Llama(TINY)
    optimisers, losses = Optimisers(net, recipe_for("moe", "cpu")), []
    for _ in range(20):
        loss = training_loss(net, batch(TINY.vocab_size))
        loss.backward()
        optimisers.step(1.0)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_muon_gets_the_experts_and_not_the_routers() -> None:
    net = Llama(TINY)
    muon, adamw = Optimisers(net, recipe_for("moe", "cpu"))._steppers
    names = {id(p): n for n, p in net.named_parameters()}
    matrices = {names[id(p)] for p in muon.param_groups[0]["params"]}
    others = {names[id(p)] for p in adamw.param_groups[0]["params"]}
    assert {f"model.layers.1.block_sparse_moe.experts.7.w{i}.weight" for i in (1, 2, 3)} <= matrices
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.block_sparse_moe.gate.weight"} <= others
    assert matrices | others == set(names.values()) and not matrices & others


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([d.text for d in small_talk.documents()], vocab_size=TINY.vocab_size)


def test_an_exported_network_can_be_loaded_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    net, tokens = stirred(), batch(TINY.vocab_size).inputs
    export(net, tokenizer, tmp_path, torch.float32)
    loaded, words = load(tmp_path)
    assert loaded.config == net.config and words.get_vocab_size() == tokenizer.get_vocab_size()
    assert torch.equal(loaded(tokens), net(tokens))


def test_the_engine_computes_the_same_logits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    net, tokens = stirred(), batch(TINY.vocab_size).inputs[0]
    export(net, tokenizer, tmp_path, torch.float32)
    model = load_in_engine(tmp_path)
    assert all(any(isinstance(op, EngineExperts) for op in block.ops) for block in model.blocks)
    torch.testing.assert_close(Runner(model).forward(tokens.tolist()), net(tokens[None])[0].detach(), rtol=1e-4, atol=1e-4)


def test_transformers_computes_the_same_logits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    net, tokens = stirred(), batch(TINY.vocab_size).inputs
    export(net, tokenizer, tmp_path, torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "MixtralForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, net(tokens), rtol=1e-4, atol=1e-4)


def test_the_model_of_the_testbed_is_small() -> None:
    with torch.device("meta"):
        net = Llama(MODELS["moe"])
    assert (net.config.num_local_experts, net.config.num_experts_per_tok) == (8, 2)
    assert 7_000_000 < sum(p.numel() for p in net.parameters()) < 12_000_000
    assert MODELS["moe"].vocab_size == MODELS["base"].vocab_size
