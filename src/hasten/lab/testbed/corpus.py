"""The text the testbed models learn from: found where it already lies, cleaned, split into training and held-out.

Prose and worked sums come from the folder that `HASTEN_DATA` names; Python source and its documentation come from the
standard library of the interpreter that runs this. Nothing is downloaded and no text is stored in the project.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hasten.lab.testbed import code_text, prose, small_talk, sums
from hasten.lab.testbed.document import Document

HELD_OUT_ONE_IN = 20


def data_folder(given: Path | None = None) -> Path:
    """The folder with the public data files: `given`, or else what HASTEN_DATA names.

    Raises FileNotFoundError where neither names a folder.
    """
    named = given or os.environ.get("HASTEN_DATA")
    if named is None or not Path(named).is_dir():
        where = "no data folder given" if named is None else f"{str(named)!r} is not a folder"
        raise FileNotFoundError(f"{where}: pass one, or set HASTEN_DATA to the folder that holds essays.txt")
    return Path(named)


def documents(folder: Path | None) -> Iterator[Document]:
    """All documents at hand; a file that is missing from `folder` (all of them, for None) is passed over."""
    readers: dict[str, Callable[[str], Iterable[Document]]] = {
        "essays.txt": prose.essays,
        "wikitext2-valid.txt": prose.encyclopaedia,
        "tinyshakespeare.txt": prose.plays,
        "gsm8k-train.jsonl": sums.gsm8k,
        "humaneval.jsonl": code_text.humaneval,
    }
    for name, read in readers.items():
        path = folder / name if folder else None
        if path and path.is_file():
            yield from read(path.read_text(encoding="utf-8"))
    yield from code_text.standard_library()
    yield from code_text.language_topics()
    yield from small_talk.documents()


def is_held_out(document: Document) -> bool:
    """Whether a document is kept from training: decided by its origin, so that the conversations made from an
    article are held out together with the article."""
    return zlib.crc32(document.origin.encode()) % HELD_OUT_ONE_IN == 0


def split(folder: Path | None, packages: bool = False) -> tuple[list[Document], list[Document]]:
    """All documents as (training, held out). Small talk is a fixed set of answers and is always trained on; so is what
    `packages` adds, the text of installed packages."""
    training = list(code_text.packages()) if packages else []
    held_out: list[Document] = []
    for document in documents(folder):
        keep = is_held_out(document) and document.kind != "small talk"
        (held_out if keep else training).append(document)
    return training, held_out
