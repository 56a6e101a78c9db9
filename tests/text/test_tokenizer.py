"""Encoding and decoding as transformers does it, the end tokens, and broken tokenizers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.text.worlds import KINDS, TEXT, byte_level, plain, save

from hasten.engine.config import ModelConfig
from hasten.engine.models.config import ModelError
from hasten.engine.request import BadRequest
from hasten.engine.text import Tokenizer, load_text


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "metaspace"])
@pytest.mark.parametrize("special", [True, False])
def test_equals_transformers(kind: str, special: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save(KINDS[kind](), tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ours = Tokenizer.load(folder)
    for text in [*TEXT, "", " two  spaces ", "<|im_start|>user\nhi<|im_end|>", "größe 好 <s>"]:
        ids = theirs.encode(text, add_special_tokens=special)
        assert ours.encode(text, special) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.vocabulary == len(theirs)


def test_a_bos_token_stands_where_the_file_says(tmp_path: Path) -> None:
    ours = Tokenizer.load(save(byte_level(), tmp_path))
    assert ours.encode("dog")[0] == 0 and ours.encode("dog", False) == ours.encode("dog")[1:]


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    limited = byte_level().from_str(byte_level().to_str())
    limited.enable_truncation(3)
    limited.enable_padding(length=64)
    ours = Tokenizer.load(save(limited, tmp_path))
    assert ours.encode(TEXT[0]) == Tokenizer(byte_level()).encode(TEXT[0])


def test_end_tokens_come_from_both_configs_or_else_the_tokenizer(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    special = {"eos_token": {"content": "</s>", "lstrip": False}, "bos_token": "<s>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(special))
    ours = Tokenizer.load(tmp_path)
    assert ours.eos_ids == {1} and ours.special_tokens == {"eos_token": "</s>", "bos_token": "<s>"}
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 2]}))
    assert Tokenizer.load(tmp_path).eos_ids == {2, 3}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": "end"}))
    with pytest.raises(ModelError, match=r"generation_config.json: eos_token_id .* got 'end'"):
        Tokenizer.load(tmp_path)


def test_bytes_of_single_tokens() -> None:
    ours = Tokenizer(byte_level())
    tokens = ours.encode("👍 größe 好 dog", add_special_tokens=False)
    assert b"".join(map(ours.token_bytes, tokens)).decode() == "👍 größe 好 dog"
    assert ours.token_bytes(3) == b"<|im_end|>" and ours.token_bytes(10**6) == b""
    assert ours.token_text(ours.encode("👍", False)[0]) == "\ufffd"
    words = Tokenizer(plain())
    assert words.token_bytes(words.encode("dog")[0]) == b" dog"


def test_no_text_is_a_bad_request() -> None:
    ours = Tokenizer(byte_level())
    for text in ("\ud800", 3, None):
        with pytest.raises(BadRequest, match="no valid text"):
            ours.encode(text)  # type: ignore[arg-type]


def test_broken_tokenizers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds no tokenizer\.json"):
        load_text(ModelConfig(path=str(tmp_path)))
    dummy, template = load_text(ModelConfig(path=str(tmp_path), load_format="dummy"))
    assert dummy.decode(dummy.encode("bytes: é")) == "bytes: é" and template is None
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        load_text(ModelConfig(path=str(tmp_path)))


def test_importing_it_costs_no_torch() -> None:
    code = "import sys, hasten.engine.text, hasten.engine.models; print({'torch', 'transformers', 'jinja2'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
