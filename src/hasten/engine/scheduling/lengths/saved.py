"""What predictors of lengths have in common: they learn when outputs end, and are kept in a file from one run to the next."""

from __future__ import annotations

import atexit
import json
import logging
import math
import weakref
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Event, Kind
from hasten.engine.request import Request
from hasten.engine.scheduling.base import View
from hasten.engine.scheduling.lengths.survival import SAMPLES
from hasten.engine.sequence import Sequence

Floats = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]

SAVE_EVERY_S = 30.0
"""Engine seconds between two writes of the file while something new is learned."""

_FORMAT = 1
_log = logging.getLogger(__name__)


class Learning(ABC):
    """A policy `Lengths` that learns online; subclasses say from what.

    `file`: read at the start if it is there, written every `SAVE_EVERY_S` seconds of engine time while outputs end, and at the
    interpreter's exit; empty: nothing is kept. Raises ValueError for a file of something else."""

    name: ClassVar[str]
    learns_from = frozenset({Kind.FINISHED, Kind.FAILED})

    def __init__(self, file: str = "") -> None:
        self._path = Path(file) if file else None
        self._saved_s = -math.inf
        self._dirty = False
        if self._path is not None:
            if self._path.exists():
                self.load(self._path)
            elif not self._path.parent.is_dir():
                raise ValueError(f"{self.name}: file={file}: there is no folder {self._path.parent}")
            atexit.register(_save_at_exit, weakref.ref(self))

    # -- what a subclass is -------------------------------------------------------------------------------------------------

    @abstractmethod
    def observe(self, request: Request, output: int, *, ended: bool) -> None:
        """An output had `output` tokens, at least 1, when it ended well, or when it was cut short (not `ended`)."""

    @abstractmethod
    def predict(self, request: Request, produced: int) -> Floats | None:
        """Equally likely numbers of tokens still to come after `produced`, float64 [k], ascending, each at least 1. None:
        nothing is known yet."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Any], Arrays]:
        """(what JSON can hold, arrays): all that has been learned."""

    @abstractmethod
    def restore(self, meta: dict[str, Any], arrays: Arrays) -> None:
        """Go on from what `state` gave. Raises KeyError, ValueError, TypeError or IndexError for anything else."""

    # -- the seam -----------------------------------------------------------------------------------------------------------

    def remaining(self, sequence: Sequence, view: View) -> Floats:
        found = self.predict(sequence.request, sequence.output_length)
        if found is None:  # as `length-limit`
            room = view.room(sequence)
            return np.linspace(1.0, room, num=min(room, SAMPLES))
        return found

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        if sequence is not None and sequence.output_length > 0:  # joined paths may be shorter than the prompt
            self.observe(sequence.request, sequence.output_length, ended=event.kind is Kind.FINISHED)
            self._dirty = True
            if self._path is not None and not 0 <= event.time_s - self._saved_s < SAVE_EVERY_S:
                self._saved_s = event.time_s
                self._keep()
        return ()

    # -- the file -----------------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        if self._path is None or not self._dirty:
            return
        try:
            self.save(self._path)
            self._dirty = False
        except OSError as error:
            _log.error("%s could not be written: %s", self._path, error)

    def save(self, path: Path) -> None:
        """Write what has been learned, in place of what was there. Raises OSError."""
        meta, arrays = self.state()
        text = json.dumps({"predictor": self.name, "format": _FORMAT, **meta})
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(file, meta=np.frombuffer(text.encode(), dtype=np.uint8), **arrays)  # type: ignore[arg-type]
        part.replace(path)

    def load(self, path: Path) -> Self:
        """Go on from what `save` wrote. Raises ValueError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            meta = json.loads(arrays.pop("meta").tobytes())
            predictor, version = meta.pop("predictor"), meta.pop("format")
        except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.name}: file={path} holds no learned lengths: {error}") from None
        if (predictor, version) != (self.name, _FORMAT):
            raise ValueError(f"{self.name}: file={path} was written by {predictor}, format {version}")
        try:
            self.restore(meta, arrays)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{self.name}: file={path} is damaged: {error}") from None
        return self


def _save_at_exit(reference: weakref.ref[Learning]) -> None:
    learning = reference()
    if learning is not None:
        learning._keep()
