"""Public trace files: where they are on this machine, else where in the world, with the checksum of what was meant.

Looked for in the folder that HASTEN_DATA names, then in the cache folder ($XDG_CACHE_HOME/hasten/data, where unset
~/.cache/hasten/data), then downloaded from the public address into the cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hasten.lab.workloads.base import WorkloadError
from hasten.lab.workloads.progress import bar

_AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data"
_MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces"
_HEXGEN = "https://raw.githubusercontent.com/Relaxed-System-Lab/Hexgen-Flow/main/simulator/cli"
_BURSTGPT = "https://github.com/HPMLL/BurstGPT/releases/download/v1.2"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of the outside world. `sha256` None: nobody here has had the file in hand, so what arrives is not verified."""

    name: str
    url: str
    sha256: str | None
    what: str


FILES = {
    file.name: file
    for file in (
        DataFile(
            "azure-llm-2023-conv.csv",
            f"{_AZURE}/AzureLLMInferenceTrace_conv.csv",
            "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
            "19,366 requests of one hour of a chat service",
        ),
        DataFile(
            "azure-llm-2023-code.csv",
            f"{_AZURE}/AzureLLMInferenceTrace_code.csv",
            "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
            "8,819 requests of one hour of a coding service",
        ),
        DataFile(
            "mooncake-conversation.jsonl",
            f"{_MOONCAKE}/conversation_trace.jsonl",
            "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
            "12,031 requests of one hour of a chat service, with prefix blocks",
        ),
        DataFile(
            "mooncake-synthetic.jsonl",
            f"{_MOONCAKE}/synthetic_trace.jsonl",
            "bd070915a98fc0ed264d7cfef2ce746002eb3076a695ec31ba2674c0111ec131",
            "Mooncake's mixture of public long-context data sets, with prefix blocks",
        ),
        DataFile(
            "mooncake-toolagent.jsonl",
            f"{_MOONCAKE}/toolagent_trace.jsonl",
            None,
            "one hour of tool and agent requests, with prefix blocks",
        ),
        DataFile(
            "text2sql-workflow-trace1.json",
            f"{_HEXGEN}/input_file_trace1.json",
            "d38fff42c8b96689ad8701cb6ec82b57f884381f91e57e934fd20be0daf91af6",
            "90 text-to-SQL workflows of 1,732 calls",
        ),
        DataFile(
            "text2sql-workflow-trace2.json",
            f"{_HEXGEN}/input_file_trace2.json",
            "c4aa3c9e0c981ac3bb42213709c1facc2801bd1e652df80af3a75c7806849fd5",
            "96 text-to-SQL workflows of 1,984 calls",
        ),
        DataFile(
            "text2sql-workflow-trace3.json",
            f"{_HEXGEN}/input_file_trace3.json",
            "fd4662bf844700a64213f5d1afc9608432d7021dce2fedefb4c7c1b738b8d424",
            "110 text-to-SQL workflows of 2,296 calls",
        ),
        DataFile(
            "text2sql-workflow-financial.json",
            f"{_HEXGEN}/input_file_financial.json",
            "2f76fb6a72d6c563dbba75998e10a3cfc07eb2f455c8a812b971b2383cdb088b",
            "94 text-to-SQL workflows of 1,494 calls",
        ),
        DataFile(
            "text2sql-workflow-formula1.json",
            f"{_HEXGEN}/input_file_formula1.json",
            "9c463e34f9a10380f1cf13d6737141e56b431088722ddd1244c92d4ffc201d34",
            "29 text-to-SQL workflows of 504 calls",
        ),
        DataFile(
            "burstgpt-1.csv",
            f"{_BURSTGPT}/BurstGPT_1.csv",
            None,
            "1.4 million requests of two months of GPT-3.5 and GPT-4, with failures",
        ),
        DataFile(
            "burstgpt-2.csv",
            f"{_BURSTGPT}/BurstGPT_2.csv",
            None,
            "3.9 million requests of the two months after, with failures",
        ),
    )
}


def data_folder() -> Path | None:
    """The folder HASTEN_DATA names, None where it is unset. Raises WorkloadError where it names no folder."""
    named = os.environ.get("HASTEN_DATA")
    if not named:
        return None
    if not Path(named).is_dir():
        raise WorkloadError(f"HASTEN_DATA names {named!r}, which is not a folder")
    return Path(named)


def cache_folder() -> Path:
    """Where downloads are kept; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hasten" / "data"


def at_hand(name: str) -> Path | None:
    """The file called `name` in the data folder or the cache, None where neither has it."""
    for folder in (data_folder(), cache_folder()):
        if folder is not None and (folder / name).is_file():
            return folder / name
    return None


def find(name: str) -> Path:
    """The path of the data file called `name`, downloaded if need be.

    Raises WorkloadError for a name that is neither at hand nor in FILES, and where the download fails."""
    path = at_hand(name)
    if path is not None:
        return path
    if name not in FILES:
        raise WorkloadError(f"no data file is called {name!r}; known: {', '.join(FILES)}")
    return download(FILES[name], cache_folder())


def download(file: DataFile, folder: Path) -> Path:
    """Fetch `file` into `folder` (made if missing) and return its path there, which appears only when whole and verified."""
    import httpx  # a moment to import, and seldom needed

    digest = hashlib.sha256()
    part: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            httpx.stream("GET", file.url, follow_redirects=True, timeout=httpx.Timeout(30.0, connect=10.0)) as answer,
            tempfile.NamedTemporaryFile(dir=folder, prefix=f".{file.name}.", delete=False) as out,
        ):
            part = Path(out.name)
            answer.raise_for_status()
            length = answer.headers.get("content-length")
            with bar(f"downloading {file.name}", float(length) if length else None, in_bytes=True) as advance:
                for piece in answer.iter_bytes():
                    digest.update(piece)
                    out.write(piece)
                    advance(len(piece))
        if file.sha256 is not None and digest.hexdigest() != file.sha256:
            raise WorkloadError(
                f"{file.name}: what {file.url} gave has the SHA-256 {digest.hexdigest()}, expected {file.sha256}; "
                "it was changed there or broken on the way, and is not used"
            )
        os.replace(part, folder / file.name)
        part = None
    except (httpx.HTTPError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise WorkloadError(
            f"{file.name} is not at hand and could not be downloaded from {file.url} ({reason}); "
            f"fetch it yourself and put it as {file.name} into a folder that HASTEN_DATA names, or into {folder}"
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return folder / file.name
