"""Nothing is known of lengths but the limit: any number of tokens up to it is as likely. The default."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hasten.engine.scheduling.base import View
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique

SAMPLES = 16


class LengthLimit:
    def remaining(self, sequence: Sequence, view: View) -> npt.NDArray[np.float64]:
        room = view.room(sequence)
        return np.linspace(1.0, room, num=min(room, SAMPLES))


TECHNIQUE = Technique(
    name="length-limit",
    seam="scheduling",
    summary="outputs of any length up to the request's limit are as likely",
    exact=True,
    default=True,
    sets={"scheduling.lengths": "length-limit"},
    make=lambda context, options: LengthLimit(),
)
