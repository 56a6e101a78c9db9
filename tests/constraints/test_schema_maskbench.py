"""The sample of MaskBench: some in the fast suite, all in the slow one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hasten.lab.bench.maskbench import SAMPLE, byte_vocabulary, judge, read

FILE = Path(os.environ.get("HASTEN_DATA", ""), SAMPLE)
REFUSED = {"JsonSchemaStore---meltano.schema"}
"""By name: unevaluatedProperties."""


@pytest.mark.skipif(not FILE.is_file(), reason="set HASTEN_DATA to the folder with the sample")
@pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_every_instance_is_judged_rightly(step: int) -> None:
    vocabulary = byte_vocabulary()
    verdicts = [judge(case, vocabulary) for at, case in enumerate(read(FILE)) if at % step == 0]
    wrong = {verdict.case.id: verdict.refused or verdict.wrong for verdict in verdicts if not verdict.right}
    assert {name: why for name, why in wrong.items() if name not in REFUSED} == {}
