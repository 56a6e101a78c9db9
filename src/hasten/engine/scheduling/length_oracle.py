"""What a replay knows and no service does: how long each output becomes. The bound for predictors, for experiments only.

A request without `Request.ends_after` is taken to reach its limit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hasten.engine.scheduling.base import View
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique


class LengthOracle:
    def remaining(self, sequence: Sequence, view: View) -> npt.NDArray[np.float64]:
        ends = sequence.request.ends_after
        return np.array([float(view.room(sequence) if ends is None else max(1, ends - sequence.output_length))])


TECHNIQUE = Technique(
    name="length-oracle",
    seam="scheduling",
    summary="a replay's own output lengths: for experiments, as nobody knows them in service",
    exact=True,
    sets={"scheduling.lengths": "length-oracle"},
    make=lambda context, options: LengthOracle(),
)
