"""The example programs do what they say."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def ask_folder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ask_folder", FOLDER / "ask_folder.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ask_folder"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in (("harbor", "AB-123"), ("kettle", "CD-456"), ("lantern", "EF-789")):
        filler = f"Nobody came to see the {name} that year, and nobody wrote of it. " * 8
        (tmp_path / f"{name}.txt").write_text(f"{filler}\n\nThe code of the blue {name} is {code}.\n\n{filler}")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    return tmp_path


def test_files_are_cut_at_paragraphs_and_the_rarest_words_decide(ask_folder: ModuleType, folder: Path) -> None:
    pieces = ask_folder.pieces_of(folder, 120)
    assert [piece.split("\n")[0] for piece in pieces] == ["harbor", "harbor", "kettle", "kettle", "lantern", "lantern"]
    assert all(len(piece.split()) <= 121 for piece in pieces)
    assert sum("CD-456" in piece for piece in pieces) == 1
    assert len(ask_folder.pieces_of(folder, 1000)) == 3
    index = ask_folder.Index(pieces)
    (best,) = index.best("What is the code of the blue kettle?", 1)
    assert "CD-456" in pieces[best]
    assert index.best("kettle lantern", 4) == [2, 3, 4, 5], "in the order of the files"


def test_both_engines_answer_and_the_second_finds_pieces_elsewhere(
    ask_folder: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ["What is the code of the blue lantern?", "Is the lantern near the kettle?"]
    ask_folder.main([str(folder), "--model", "builtin-draft", "--words", "1000", "--count", "2", *questions])
    said = capsys.readouterr().out
    assert all(question in said for question in questions) and "mean time to first token" in said
    reused = [int(count) for count in re.findall(r"(\d+) of \d+ tokens reused", said)]
    assert len(reused) == 4 and reused[0] == 0
    # The first question has harbor and lantern before it, the second kettle and lantern.
    assert reused[3] > reused[2] + 100
