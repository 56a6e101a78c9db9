"""The testbed: corpus cleaning, tokenizer, training-time network, training and export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jinja2 import Environment
from tokenizers import Tokenizer

from hasten.lab.testbed import batches, code_text, corpus, prose, small_talk, sums
from hasten.lab.testbed.document import Document, chat_turn
from hasten.lab.testbed.export import export, load
from hasten.lab.testbed.loss import training_loss
from hasten.lab.testbed.net import Llama, NetConfig
from hasten.lab.testbed.pace import LANDING_S, Pace
from hasten.lab.testbed.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, stop_token_ids, train_tokenizer
from hasten.lab.testbed.train import Recipe, bits_per_byte, rate_factor, train

SMALL_TALK = list(small_talk.documents())
TEXTS = [d.text for d in SMALL_TALK] + ["def add(a, b):\n    return a + b\n", "It costs $3.50 – naïve café 日本."]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=512)


@pytest.fixture(scope="module")
def tiny() -> NetConfig:
    return NetConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
    )


def test_special_tokens_come_first_and_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert tokenizer.encode("".join(SPECIAL_TOKENS)).ids == list(range(len(SPECIAL_TOKENS)))
    assert stop_token_ids(tokenizer) == [0, 2]


@pytest.mark.parametrize("text", [*TEXTS[-2:], "<think>\n3 * 4\n</think>", "\t mixed \r\n\n  space  ", "\x00 🙂 ßž"])
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_every_digit_is_its_own_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("2026").ids) == 4


def test_chat_template_writes_what_the_model_was_trained_on() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    written = Environment().from_string(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=True)
    assert written == chat_turn("system", "Be brief.") + chat_turn("user", "Hi") + "<|im_start|>assistant\n"


def test_wikitext_spacing_is_undone() -> None:
    spaced = """ The " blue " one weighs 0 @.@ 7 – 2 kg ( 5 lb ) , and 1 @,@ 000 workers ' homes aren 't Ann 's . """
    assert prose.untokenise(spaced) == """The "blue" one weighs 0.7–2 kg (5 lb), and 1,000 workers' homes aren't Ann's."""


def test_articles_lose_the_sentences_with_unknown_words() -> None:
    fact = "The lobster lives in the sea . "
    article = " \n = Lobster = \n \n " + fact * 6 + "It eats <unk> . Mating occurs in summer . \n"
    article_document, conversation = prose.encyclopaedia(article)
    assert "<unk>" not in article_document.text and article_document.text.endswith("Mating occurs in summer.")
    assert conversation.text.startswith(chat_turn("user", "Tell me about Lobster."))


def test_sums_put_their_steps_between_think_marks_every_third_time() -> None:
    line = json.dumps({"question": "What is 1+1?", "answer": "1+1 = <<1+1=2>>2\n#### 2"})
    thought, plain, _ = sums.gsm8k("\n".join([line] * 3))
    assert "<think>\n1+1 = 2\n</think>\n\nThe answer is 2.<|im_end|>" in thought.text
    assert "<think>" not in plain.text and "The answer is 2." in plain.text


def test_fill_in_the_middle_keeps_every_line() -> None:
    source = "".join(f"line {i}\n" for i in range(9))
    text = code_text.fill_in_the_middle(source)
    prefix, rest = text.removeprefix("<|fim_prefix|>").split("<|fim_suffix|>")
    suffix, middle = rest.split("<|fim_middle|>")
    assert prefix + middle + suffix == source
    assert prefix and middle


def test_a_missing_data_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HASTEN_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="HASTEN_DATA"):
        corpus.data_folder()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        corpus.data_folder(tmp_path / "nowhere")
    assert corpus.data_folder(tmp_path) == tmp_path


def test_what_is_made_from_a_work_is_held_out_with_it() -> None:
    works = [Document(kind, f"work {i}", "text") for i in range(200) for kind in ("essay", "chat: essay")]
    kept = [corpus.is_held_out(d) for d in works]
    assert kept[::2] == kept[1::2]
    assert 0 < sum(kept) < len(kept) // 10


def test_windows_are_the_stream_and_its_successor() -> None:
    documents = [Document("any", str(i), "") for i in range(4)]
    windows = batches.Windows([np.arange(i * 10, i * 10 + 10, dtype=np.uint16) for i in range(4)], documents, seed=0)
    seen = []
    for _ in range(10):  # more than one pass over the 40 tokens
        inputs, targets = windows.draw(rows=2, length=4)
        assert inputs.shape == targets.shape == (2, 4)
        assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
        seen += inputs.flatten().tolist()
    assert sorted(seen[:40]) == list(range(40)) and sorted(seen[40:80]) == list(range(40))


def test_network_gives_logits_and_is_causal(tiny: NetConfig) -> None:
    torch.manual_seed(0)
    net = _stirred(Llama(tiny))
    tokens = torch.randint(0, tiny.vocab_size, (2, 16))
    changed = tokens.clone()
    changed[:, 10] = (changed[:, 10] + 1) % tiny.vocab_size
    logits, after = net(tokens), net(changed)
    assert logits.shape == (2, 16, tiny.vocab_size)
    torch.testing.assert_close(logits[:, :10], after[:, :10])
    assert (logits[:, 10:] - after[:, 10:]).abs().amax(-1).min() > 1e-4


def test_attention_by_blocks_is_attention(monkeypatch: pytest.MonkeyPatch, tiny: NetConfig) -> None:
    torch.manual_seed(0)
    attention = Llama(tiny).model.layers[0].self_attn
    q, k, v = (torch.randn(2, heads, 37, 8) for heads in (4, 2, 2))
    monkeypatch.setattr("hasten.lab.testbed.net.QUERY_BLOCK", 16)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
    torch.testing.assert_close(attention._mix(q, k, v), expected)


def test_training_loss_and_its_gradients_are_those_of_cross_entropy(monkeypatch: pytest.MonkeyPatch, tiny: NetConfig) -> None:
    torch.manual_seed(0)
    net = _stirred(Llama(tiny))
    monkeypatch.setattr("hasten.lab.testbed.loss.CHUNK_ROWS", 24)  # does not divide the 64 rows
    inputs, targets = torch.randint(0, tiny.vocab_size, (2, 2, 32))
    plain = F.cross_entropy(net(inputs).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(plain, list(net.parameters()))
    loss = training_loss(net, inputs, targets)
    assert loss.item() == pytest.approx(plain.item(), rel=0.01)
    for gradient, wanted in zip(torch.autograd.grad(loss, list(net.parameters())), expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() < 0.05 * wanted.norm()  # bf16


def test_learning_rate_rises_stays_and_falls_to_zero() -> None:
    recipe = Recipe(warm_up_share=0.1, decay_share=0.5)
    factors = [rate_factor(p, recipe) for p in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0, 1.1)]
    assert factors == pytest.approx([0.05, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0])


def test_a_suspended_step_does_not_use_up_the_training_time() -> None:
    pace = Pace(minutes=1.0)
    for _ in range(9):
        pace.count(1.0)
    pace.count(3600.0)
    assert pace.spent_s == pytest.approx(14.0)
    assert pace.progress() == pytest.approx(14 / 60)


def test_a_deadline_and_landing_shorten_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    pace = Pace(minutes=10.0, deadline=1400.0)
    pace.count(100.0)
    assert pace.progress() == pytest.approx(100 / 500)
    pace.land()
    assert pace.left_s() == pytest.approx(LANDING_S)
    now += LANDING_S
    assert pace.progress() == 1.0


def test_twenty_steps_lower_the_loss(tokenizer: Tokenizer, tiny: NetConfig) -> None:
    torch.manual_seed(0)
    net = Llama(tiny)
    before = bits_per_byte(net, tokenizer, SMALL_TALK[:8])["all"]
    recipe = Recipe(max_steps=20, batch_tokens=256, window=64, long_window=128)
    losses = train(net, tokenizer, SMALL_TALK, recipe, Pace(1.0), out=None)
    assert len(losses) == 20
    assert np.mean(losses[-3:]) < losses[0] - 0.5
    assert bits_per_byte(net, tokenizer, SMALL_TALK[:8])["all"] < 0.95 * before


def test_an_exported_network_can_be_loaded_again(tmp_path: Path, tokenizer: Tokenizer, tiny: NetConfig) -> None:
    net = _stirred(Llama(tiny))
    export(net, tokenizer, tmp_path)
    again, their_tokenizer = load(tmp_path)
    assert again.config == tiny
    assert their_tokenizer.get_vocab() == tokenizer.get_vocab()
    for parameter, other in zip(net.parameters(), again.parameters(), strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, parameter.bfloat16().float())


def test_transformers_computes_the_same_logits(tmp_path: Path, tokenizer: Tokenizer, tiny: NetConfig) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    net = _stirred(Llama(tiny))
    export(net, tokenizer, tmp_path, dtype=torch.float32)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(0, tiny.vocab_size, (2, 100))
    with torch.no_grad():
        torch.testing.assert_close(net(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    turn = [{"role": "user", "content": "Hi"}]
    assert their_tokenizer.apply_chat_template(turn, tokenize=False) == chat_turn("user", "Hi")
    assert their_tokenizer(TEXTS[0])["input_ids"] == tokenizer.encode(TEXTS[0]).ids
    assert theirs.generation_config.eos_token_id == [0, 2]
    assert not list(tmp_path.glob("*.part"))


def _stirred(net: Llama) -> Llama:
    """The network with every parameter away from its initial zeros and ones."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net
