"""Tokenising with the `tokenizer.json` of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from hasten.engine.models.checkpoint import read_json
from hasten.engine.models.config import ModelError, token_ids
from hasten.engine.request import BadRequest
from hasten.engine.text.pieces import Pieces

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """Text to token ids and back. `eos_ids`: the tokens that end a generation. `special_tokens`: the text of bos_token,
    eos_token and so on, as chat templates want them. What stands before a text (a bos token, mostly) is what
    tokenizer.json says of it."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        eos_ids: Iterable[int] = (),
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.eos_ids = frozenset(eos_ids)
        self.special_tokens = dict(special_tokens or {})

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json and, where they are, tokenizer_config.json, special_tokens_map.json and the end tokens of
        config.json and generation_config.json. Raises ModelError."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelError(f"{folder} holds no tokenizer.json, the tokenizer in the format of the tokenizers library")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise ModelError(f"{file} cannot be read: {error}") from None
        special = _special_tokens(folder)
        ends: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            ends |= set(token_ids(_optional(folder / name).get("eos_token_id"), f"{name}: eos_token_id"))
        if not ends and "eos_token" in special:
            end = tokenizer.token_to_id(special["eos_token"])
            ends = set() if end is None else {end}
        return cls(tokenizer, ends, special)

    @classmethod
    def of_bytes(cls) -> Tokenizer:
        """A tokenizer of 256 tokens, one a byte, for models without one."""
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        model = tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, [])
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        return cls(tokenizer)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def ids(self) -> dict[str, int]:
        """The id of each token by its name."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @cached_property
    def pieces(self) -> Pieces:
        return Pieces(self._tokenizer)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens written in the text are recognised; `add_special_tokens` also puts those
        around it that tokenizer.json wants around any text. Raises BadRequest for what is no text."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, ValueError) as error:
            raise BadRequest(f"the prompt is no valid text: {error}", "prompt") from None

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token adds to a text it does not begin; special tokens are their name, unknown ids nothing."""
        return self.pieces(token)

    def token_text(self, token: int) -> str:
        """The token alone, bytes that are no whole character replaced."""
        return self.token_bytes(token).decode(errors="replace")


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _special_tokens(folder: Path) -> dict[str, str]:
    """Special tokens are given as a string or as {"content": string, ...}."""
    given = {**_optional(folder / "special_tokens_map.json"), **_optional(folder / "tokenizer_config.json")}
    found = {}
    for name in _SPECIAL:
        value = given.get(name)
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            found[name] = text
    return found
