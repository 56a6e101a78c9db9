"""Tokenizer and chat template from the metadata of a GGUF file.

Two of its tokenizers are built: `gpt2` (byte-level BPE with its merges), where the rule that cuts text into words is one of
those below, and `llama` (SentencePiece). Only the names of the rules are in the file; the rules are those of the models' own
tokenizer.json. With any other, a tokenizer.json beside the file is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Tokens

from hasten.engine.models.config import ModelError
from hasten.engine.models.gguf_config import end_tokens
from hasten.engine.models.gguf_header import read_header
from hasten.engine.text.chat import ChatTemplate
from hasten.engine.text.tokenizer import Tokenizer

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_KEY = "tokenizer.ggml."
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True, slots=True)
class _Rule:
    """How text is cut into words. `digits`: what numbers are cut into; None: as GPT-2 cuts. `alone`: each digit is a word.
    `whole`: a word that is a token needs no merges. `bos`: a text begins with that token unless the file says otherwise.
    `composed`: characters are put into their composed form (NFC) first."""

    digits: str | None = None
    alone: bool = False
    whole: bool = False
    bos: bool = False
    composed: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        if self.digits is None:
            words = pre_tokenizers.ByteLevel(add_prefix_space=False)
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), words]) if self.alone else words
        word = (
            rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{self.digits}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(word), "isolated"), to_bytes])


_LLAMA3 = _Rule(digits=r"\p{N}{1,3}", whole=True, bos=True)
_QWEN = _Rule(digits=r"\p{N}", composed=True)
_RULES = {
    "gpt-2": _Rule(),
    "smollm": _Rule(alone=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
}


def load_gguf_text(file: Path) -> tuple[Tokenizer, ChatTemplate | None]:
    """Tokenizer and chat template of a GGUF file. Raises ModelError."""
    metadata = read_header(file).metadata
    tokens = metadata.get(f"{_KEY}tokens", [])
    roles = {name: metadata.get(f"{_KEY}{role}_token_id") for role, name in _ROLES.items()}
    special = {name: tokens[at] for name, at in roles.items() if at is not None and at < len(tokens)}
    ends = end_tokens(metadata)
    try:
        built = _build(metadata)
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{file}: its tokenizer cannot be read: {error}") from None
    if built is not None:
        tokenizer = Tokenizer(built, ends, special)
    elif (file.parent / "tokenizer.json").is_file():
        tokenizer = Tokenizer.load(file.parent)
        tokenizer.eos_ids |= set(ends)
    else:
        kind, rule = metadata.get(f"{_KEY}model"), metadata.get(f"{_KEY}pre")
        raise ModelError(
            f"{file}: the tokenizer {kind!r} (pre-tokenizer {rule!r}) is not supported; supported: 'llama', and 'gpt2' with "
            f"{', '.join(_RULES)}; with others, put the model's tokenizer.json beside the file"
        )
    templates = {"default": metadata.get(_TEMPLATE)}
    templates |= {name: metadata.get(f"{_TEMPLATE}.{name}") for name in metadata.get(f"{_TEMPLATE}s", [])}
    sources = {name: text for name, text in templates.items() if text}
    special = {**tokenizer.special_tokens, **special}
    return tokenizer, ChatTemplate(sources, special) if sources else ChatTemplate.load(file.parent, special)


def _build(metadata: Mapping[str, Any]) -> Tokens | None:
    """None for a kind that is not known."""
    if whole := metadata.get("tokenizer.huggingface.json"):
        return Tokens.from_str(whole)
    kind = metadata.get(f"{_KEY}model")
    texts = metadata.get(f"{_KEY}tokens", [])
    kinds = metadata.get(f"{_KEY}token_type", [_NORMAL] * len(texts))
    if kind == "gpt2" and (rule := _RULES.get(metadata.get(f"{_KEY}pre", ""))):
        tokenizer, bos = _byte_level(rule, texts, metadata.get(f"{_KEY}merges", [])), rule.bos
    elif kind == "llama":
        tokenizer, bos = _sentencepiece(metadata, texts, kinds), True
    else:
        return None
    added = [
        AddedToken(text, special=kind == _CONTROL, normalized=False)
        for text, kind in zip(texts, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    around = ["$A"]
    ends = {}
    for role, wanted in (("bos", bos), ("eos", False)):
        token = metadata.get(f"{_KEY}{role}_token_id")
        if metadata.get(f"{_KEY}add_{role}_token", wanted) and token is not None:
            ends[texts[token]] = token
            around.insert(0 if role == "bos" else len(around), texts[token])
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=list(ends.items()))
    return tokenizer


def _byte_level(rule: _Rule, texts: list[str], merges: list[str]) -> Tokens:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {text: token for token, text in enumerate(texts)}
    tokenizer = Tokens(models.BPE(vocabulary, pairs, ignore_merges=rule.whole))
    if rule.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = rule.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], texts: list[str], kinds: list[int]) -> Tokens:
    """SentencePiece's BPE puts that pair together whose whole has the best score. As merges: every way to cut a token in two
    tokens, those of the best token first."""
    vocabulary = {text: token for token, text in enumerate(texts)}
    scores = metadata.get(f"{_KEY}scores", [])
    mergeable = [token for token, kind in enumerate(kinds) if kind == _NORMAL]
    mergeable.sort(key=lambda token: -scores[token])
    merges = []
    for text in (texts[token] for token in mergeable):
        cuts = ((text[:at], text[at:]) for at in range(1, len(text)))
        merges += [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
    unknown = metadata.get(f"{_KEY}unknown_token_id", 0)
    model = models.BPE(vocabulary, merges, unk_token=texts[unknown], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokens(model)
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    begins = metadata.get(f"{_KEY}add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if begins else spaces)
    strip = [decoders.Strip(" ", 1, 0)] if begins else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer
