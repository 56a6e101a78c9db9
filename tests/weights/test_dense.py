"""Which product the dense store takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten.engine.weights import dense
from hasten.engine.weights.dense import DenseWeights, WeightContext


class Counted:
    """Kernels that are not the reference's, and say what they multiply."""

    name = "native"

    def __init__(self) -> None:
        self.rows: list[int] = []

    def linear(self, x: torch.Tensor, w: torch.Tensor, bias: Any, out: torch.Tensor) -> None:
        self.rows.append(x.shape[0])
        out.copy_(x.float() @ w.float().T)


@pytest.mark.parametrize(
    ("supported", "deterministic", "expected"), [(True, False, [4]), (False, False, [4, 500]), (True, True, [4, 500])]
)
def test_many_rows_go_to_onednn_where_it_has_instructions_for_them(
    supported: bool, deterministic: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "can_pack", lambda dtype: supported)
    kernels: Any = Counted()
    weight = torch.randn(24, 16).bfloat16()
    store = DenseWeights(weight, None, WeightContext(kernels, deterministic))
    for rows in (4, 500):
        x = torch.randn(rows, 16).bfloat16()
        torch.testing.assert_close(store.apply(x).float(), x.float() @ weight.float().T, atol=0.1, rtol=0.02)
    assert kernels.rows == expected and store.native(500) == (500 in expected)
