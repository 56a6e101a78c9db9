"""Keeping full results: `docs/claims/<name>.json`, pictures under `docs/img/claims/`."""

from __future__ import annotations

from pathlib import Path

import hasten
from hasten.lab.claims.registry import ClaimError
from hasten.lab.claims.result import Result
from hasten.lab.claims.run import Finished

IMAGES = Path("img/claims")


def docs_folder(given: Path | None = None) -> Path:
    """The documentation's folder: the given one, or `docs` of the checkout this package runs from. ClaimError without one."""
    if given is not None:
        if not given.is_dir():
            raise ClaimError(f"{given} is no folder; --docs takes the folder that holds the documentation")
        return given
    root = Path(hasten.__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file() and (root / "docs").is_dir():
        return root / "docs"
    raise ClaimError("hasten does not run from a checkout here, so it has no docs folder; name one with --docs FOLDER")


def keep(finished: Finished, docs: Path) -> Path:
    """Write a full result and its pictures, in place of earlier ones; the JSON's path. Quick results are refused."""
    result = finished.result
    if result.quick:
        raise ClaimError(f"{result.claim}: only full runs are kept")
    images = docs / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    names = {_picture(result.claim, stem): png for stem, png in finished.pictures.items()}
    for name, png in names.items():
        _write(images / name, png)
    kept = result.model_copy(update={"pictures": list(names)})
    folder = docs / "claims"
    folder.mkdir(exist_ok=True)
    path = folder / f"{result.claim}.json"
    _write(path, (kept.model_dump_json(indent=1) + "\n").encode())
    return path


def stored(docs: Path) -> list[Result]:
    """All kept results, by name. ClaimError names a file that holds none."""
    out = []
    for path in sorted((docs / "claims").glob("*.json")):
        try:
            out.append(Result.model_validate_json(path.read_bytes()))
        except ValueError as fault:
            raise ClaimError(f"{path} holds no result of a claim: {str(fault).splitlines()[0]}; run the claim again") from None
    return out


def _picture(claim: str, stem: str) -> str:
    """A file name no other claim's picture has."""
    return f"{claim}.png" if stem == claim else f"{claim}-{stem}.png"


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)
