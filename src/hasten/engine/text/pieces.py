"""What bytes each token stands for, so that text can be put together token by token.

The decoders of tokenizer.json that language models use all come down to this: every token is a string of bytes, the
first one may lose a mark of a word's beginning, the whole may lose spaces at its start, and the bytes are UTF-8.
`Pieces` reads a decoder once into that form. Two spellings are known: byte-level (GPT-2; Llama 3, Qwen), where each
character of a token stands for a byte, and SentencePiece (Llama 2, Mistral), where ▁ is a space and <0x0A> a byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from hasten.engine.models.config import ModelError


@dataclass(frozen=True, slots=True)
class Rules:
    """How tokens become bytes. `byte_level`, or: `replace` in every token, and `byte_tokens` such as <0x0A> are bytes.
    `separator` stands before every token but the first. The first token loses every `first_drops`; the text loses up to
    `strip_count` of `strip` at its start."""

    byte_level: bool = False
    byte_tokens: bool = False
    replace: tuple[tuple[str, str], ...] = ()
    separator: str = ""
    first_drops: str = ""
    strip: str = ""
    strip_count: int = 0


class Pieces:
    """The bytes of each token of a tokenizer, looked up once. An unknown id (models pad their vocabulary) is
    nothing."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.rules = read_decoder(json.loads(tokenizer.to_str())["decoder"])
        self.special = frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        self._table: list[bytes] = []

    def __call__(self, token: int) -> bytes:
        """The bytes of a token that stands after others."""
        found = self._known.get(token)
        if found is None:
            text = self._tokenizer.id_to_token(token)
            found = self._known[token] = b"" if text is None else to_bytes(self.rules, text)
        return found

    def table(self, count: int) -> list[bytes]:
        """The bytes of the first `count` tokens, as text: special tokens and unknown ids have none."""
        if len(self._table) != count:
            table = [b""] * count
            for text, token in self._tokenizer.get_vocab(with_added_tokens=True).items():
                if token < count and token not in self.special:
                    table[token] = to_bytes(self.rules, text)
            self._table = table
        return self._table

    def first(self, token: int) -> bytes:
        """The bytes of a token that begins a text."""
        text, rules = self._tokenizer.id_to_token(token), self.rules
        if text is None:
            return b""
        if rules.first_drops:
            text = text.replace(rules.first_drops, "")
        return to_bytes(rules, text).removeprefix(rules.separator.encode())


def to_bytes(rules: Rules, token: str) -> bytes:
    if rules.byte_level:
        try:
            return bytes(map(_BYTE_OF.__getitem__, token))
        except KeyError:  # an added token, in plain text
            return token.encode()
    for old, new in rules.replace:
        token = token.replace(old, new)
    if rules.byte_tokens and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return (rules.separator + token).encode()


def read_decoder(decoder: Mapping[str, Any] | None) -> Rules:
    """The rules of the `decoder` in a tokenizer.json. Raises ModelError for one that is not understood."""
    if decoder is None:
        return Rules(separator=" ")
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"]:
        return Rules(byte_level=True)
    replace: list[tuple[str, str]] = []
    first_drops = strip = ""
    strip_count, fused = 0, False
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not fused or len(old) == 1:
                replace.append((old, new))
            case {"type": "Metaspace", "replacement": str(mark)} if not fused:
                # Files from before the schemes say add_prefix_space; without either, a space is added always.
                scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
                first_drops = "" if scheme == "never" else mark
                replace.append((mark, " "))
            case {"type": "ByteFallback"} if not fused:
                pass
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": str(strip), "start": int(strip_count), "stop": 0} if fused:
                pass
            case _:
                raise ModelError(f"tokenizer.json: a decoder {' + '.join(names)} is not supported (at {step['type']})")
    return Rules(
        byte_tokens="ByteFallback" in names,
        replace=tuple(replace),
        first_drops=first_drops,
        strip=strip,
        strip_count=strip_count,
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones are themselves, the other 68 the characters from U+0100 on, in
    order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
