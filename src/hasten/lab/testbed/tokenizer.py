"""The byte-level BPE tokenizer that all testbed models share, and the files that describe it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hasten.lab.testbed.document import END_OF_TEXT, END_OF_TURN

VOCAB_SIZE = 8192
# They take the ids from 0 in this order, so the end of text is token 0.
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<tools>",
    "</tools>",
    "<tool_response>",
    "</tool_response>",
)

# What a reader of an answer wants to see: these are single tokens, but they are not left out of decoded text.
VISIBLE = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tools>", "</tools>", "<tool_response>", "</tool_response>")

# Words with their leading space, runs of punctuation with the line ends after them, indentation; each digit stands
# alone, so that a small model sees numbers always spelt the same way.
WORD_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# ChatML. Tools stand in the system turn, one JSON object a line; `document.py` writes the same characters in Python.
CHAT_TEMPLATE = (
    "{% if tools %}"
    "{{ '<|im_start|>system\\n' }}"
    "{% if messages[0]['role'] == 'system' and messages[0]['content'] %}{{ messages[0]['content'] + '\\n' }}{% endif %}"
    "{{ '<tools>\\n' }}"
    "{% for tool in tools %}{{ (tool['function'] or tool) | tojson }}{{ '\\n' }}{% endfor %}"
    "{{ '</tools><|im_end|>\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if tools and loop.first and message['role'] == 'system' %}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '<|im_start|>tool\\n<tool_response>\\n' + message['content'] + '\\n</tool_response><|im_end|>\\n' }}"
    "{% elif message['tool_calls'] %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] %}{{ message['content'] + '\\n' }}{% endif %}"
    "{% for call in message['tool_calls'] %}"
    "{% set call = call['function'] or call %}"
    "{{ '<tool_call>\\n{\"name\": ' }}{{ call['name'] | tojson }}{{ ', \"arguments\": ' }}"
    "{% if call['arguments'] is string %}{{ call['arguments'] }}{% else %}{{ call['arguments'] | tojson }}{% endif %}"
    "{{ '}\\n</tool_call>' }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking %}{{ '<think>\\n' }}{% endif %}"
    "{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Learn merges from texts. The result has at most `vocab_size` entries, the special tokens included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_visible_marks(tokenizer)


def with_visible_marks(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with `VISIBLE` tokens that decoding keeps (trainers make every token that they are given a hidden one)."""
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] not in VISIBLE
    return Tokenizer.from_str(json.dumps(content))


def tokens_of(tokenizer: Tokenizer, text: str) -> int:
    """How many tokens a text takes."""
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def stop_token_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that end a generation: end of text, end of turn."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in (END_OF_TEXT, END_OF_TURN)]


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json (with the ChatML template) as transformers reads them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [token for token in SPECIAL_TOKENS if token not in VISIBLE],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
