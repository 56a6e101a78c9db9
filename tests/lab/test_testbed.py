"""The testbed: corpus cleaning and the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jinja2 import Environment
from tokenizers import Tokenizer

from hasten.lab.testbed import code_text, corpus, prose, small_talk, sums
from hasten.lab.testbed.document import Document, turn
from hasten.lab.testbed.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, stop_token_ids, train_tokenizer

SMALL_TALK = list(small_talk.documents())
TEXTS = [d.text for d in SMALL_TALK] + ["def add(a, b):\n    return a + b\n", "It costs $3.50 – naïve café 日本."]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=512)


def test_special_tokens_come_first_and_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert tokenizer.encode("".join(SPECIAL_TOKENS)).ids == list(range(len(SPECIAL_TOKENS)))
    assert stop_token_ids(tokenizer) == [0, 2]


def test_thoughts_and_tool_calls_stay_in_decoded_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|><think>a</think><tool_call>b</tool_call><|im_end|>").ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think><tool_call>b</tool_call>"


@pytest.mark.parametrize("text", [*TEXTS[-2:], "<think>\n3 * 4\n</think>", "\t mixed \r\n\n  space  ", "\x00 🙂 ßž"])
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_every_digit_is_its_own_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("2026").ids) == 4


def test_chat_template_writes_what_the_model_was_trained_on() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    written = Environment().from_string(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=True)
    assert written == turn("system", "Be brief.") + turn("user", "Hi") + "<|im_start|>assistant\n"


def test_wikitext_spacing_is_undone() -> None:
    spaced = """ The " blue " one weighs 0 @.@ 7 – 2 kg ( 5 lb ) , and 1 @,@ 000 workers ' homes aren 't Ann 's . """
    assert prose.untokenise(spaced) == """The "blue" one weighs 0.7–2 kg (5 lb), and 1,000 workers' homes aren't Ann's."""


def test_articles_lose_the_sentences_with_unknown_words() -> None:
    fact = "The lobster lives in the sea . "
    article = " \n = Lobster = \n \n " + fact * 6 + "It eats <unk> . Mating occurs in summer . \n"
    article_document, conversation = prose.encyclopaedia(article)
    assert "<unk>" not in article_document.text and article_document.text.endswith("Mating occurs in summer.")
    assert conversation.text.startswith(turn("user", "Tell me about Lobster."))


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
    assert 0 < sum(kept) < len(kept) // 5


def test_packages_are_for_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_text, "PACKAGES", ("jinja2", "no_such_package"))
    monkeypatch.setattr(code_text, "standard_library", lambda: iter(()))
    training, held_out = corpus.split(None, packages=True)
    kinds = {d.kind for d in training}
    assert {"package", "documentation"} <= kinds and not {"package", "documentation"} & {d.kind for d in held_out}
    (lexer,) = (d for d in training if d.origin == "jinja2.lexer" and d.kind == "package")
    assert "def get_lexer" in lexer.text
    assert any(d.origin == "jinja2.environment" for d in training if d.kind == "documentation")
    assert "package" not in {d.kind for d in corpus.split(None)[0]}
