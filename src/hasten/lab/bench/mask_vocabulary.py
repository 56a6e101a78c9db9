"""A vocabulary of some 128k tokens to measure masks with: tekken's where `mistral_common` is installed, else a byte-level BPE,
trained on the public texts of HASTEN_DATA and kept in the cache."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.lab.workloads.data import cache_folder, data_folder

TEKKEN = Path("data", "tekken_240911.json")
SPECIALS = 1000
"""Tokens before tekken's first piece of text."""
TRAINED = 131_072
TEXTS = ("essays.txt", "tinyshakespeare.txt", "wikitext2-valid.txt", "gsm8k-train.jsonl", "humaneval.jsonl")
"""Of which no more than some 57k tokens can be made; pairs of them make up the rest."""


@dataclass
class Words:
    """What masks and forced tokens ask of a tokenizer. `all`: the bytes of each token, empty for what is no text; `end`: the
    token that ends a text; `split`: text to tokens."""

    name: str
    all: list[bytes]
    end: int
    split: Callable[[str], list[int]]

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset({self.end})

    @property
    def pieces(self) -> Words:
        return self

    def table(self, size: int) -> list[bytes]:
        """For a model with `size` rows. Beyond the last token there are pairs of words: what vocabularies grow by are words."""
        words = [piece for piece in self.all if len(piece) > 1 and piece.lstrip().isalpha()]
        pairs = ((words[i * 7919 % len(words)], words[i * 104_729 % len(words)]) for i in range(size - len(self.all)))
        return [*self.all[:size], *(first + second.lstrip() for first, second in pairs)]

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self.split(text)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return self.all[token] if token < len(self.all) else b""


def letters() -> Words:
    """Of bytes: what is judged is the same, and engines whose compilations grow with the vocabulary are soon done."""
    return Words("bytes", [*(bytes([byte]) for byte in range(256)), b""], 256, lambda text: list(text.encode(errors="replace")))


def words() -> Words:
    found = importlib.util.find_spec("mistral_common")
    if found is not None and importlib.util.find_spec("tiktoken") is not None:
        for folder in found.submodule_search_locations or ():
            if (file := Path(folder) / TEKKEN).is_file():
                return tekken(file)
    return trained(Path(os.environ.get("HASTEN_CACHE") or cache_folder()) / f"bpe-{TRAINED}.json", TRAINED)


def tekken(file: Path) -> Words:
    import tiktoken

    read = json.loads(file.read_text(encoding="utf-8"))
    kept = read["vocab"][: read["config"]["default_vocab_size"] - SPECIALS]
    pieces = [base64.b64decode(one["token_bytes"]) for one in kept]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    encoding = tiktoken.Encoding("tekken", pat_str=read["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    return Words(
        f"tekken ({SPECIALS + len(pieces):,} tokens)",
        [b""] * SPECIALS + pieces,
        2,
        lambda text: [SPECIALS + rank for rank in encoding.encode(text, disallowed_special=())],
    )


def trained(file: Path, size: int) -> Words:
    import tokenizers

    if file.is_file():
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    else:
        tokenizer = _train(_texts(), size)
        file.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(file))
    found = of_tokenizer(tokenizer)
    found.name += f", with pairs of them {size:,}"
    found.all = found.table(size)
    return found


def of_tokenizer(tokenizer: Any) -> Words:
    """`tokenizer`: of the tokenizers library; its token 0 ends a text."""
    from hasten.engine.text.pieces import Pieces

    pieces: list[bytes] = list(Pieces(tokenizer).table(tokenizer.get_vocab_size()))
    return Words(
        f"a byte-level BPE of {len(pieces):,} tokens",
        pieces,
        0,
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    )


def _train(texts: Iterable[str] | Sequence[str], size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # What occurs once counts too: there is little text.
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=1, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _texts() -> Iterator[str]:
    folder = data_folder()
    if folder is None:
        raise FileNotFoundError("neither mistral_common is installed nor does HASTEN_DATA name a folder with texts")
    for name in TEXTS:
        with (folder / name).open(encoding="utf-8", errors="replace") as lines:
            yield from lines
