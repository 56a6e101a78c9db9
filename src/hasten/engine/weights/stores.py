"""How a model's stores are made: by the chosen technique, by what a checkpoint or an earlier start holds already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.engine.weights.dense import WeightContext
from hasten.engine.weights.kept import KeptWeights
from hasten.engine.weights.quantized import Form, QuantizedWeights
from hasten.kernels import Kernels
from hasten.kernels.cpu import CpuKernels
from hasten.kernels.quantized import QuantizedWeight

if TYPE_CHECKING:
    from hasten.engine.config import EngineConfig
    from hasten.engine.models.llama import MakeStore
    from hasten.engine.weights.base import WeightStore


@dataclass(slots=True)
class Stores:
    """The `MakeStore` of a whole model. Weights that come in levels are multiplied in these, others go to `make`. Packed ones
    are kept for the next start where there is a place for them."""

    make: MakeStore
    context: WeightContext
    kept: KeptWeights | None = None
    dtype: torch.dtype = torch.float32

    def begin(self, fingerprint: str, dtype: torch.dtype) -> None:
        """Before the stores of the model of that fingerprint and run dtype are made."""
        self.dtype = dtype
        if self.kept is not None:
            self.kept.open(fingerprint)

    @property
    def lookups(self) -> bool:
        """Whether tokens are looked up in rounded weights where the checkpoint has plain ones."""
        return getattr(self.make, "lookups", False)

    def recall(self, name: str, bias: Tensor | None) -> WeightStore | None:
        """The store called `name` as an earlier start has left it."""
        packed = self.kept.find(name) if self.kept is not None else None
        return None if packed is None else self._store(packed, bias, packed.has_zeros)

    def __call__(self, weight: Tensor | QuantizedWeight, bias: Tensor | None = None, *, name: str = "") -> WeightStore:
        if isinstance(weight, QuantizedWeight):
            store: WeightStore = self._store(self.context.kernels.pack(weight), bias, weight.zeros is not None)
        else:
            store = self.make(weight, bias, name=name)
        if self.kept is not None and isinstance(store, QuantizedWeights):
            self.kept.add(name, store.packed)
        return store

    def end(self) -> None:
        """After the last store."""
        if self.kept is not None:
            self.kept.write()

    def _store(self, packed: Any, bias: Tensor | None, has_zeros: bool) -> QuantizedWeights:
        form = Form(bits=packed.bits, group=packed.group, symmetric=not has_zeros)
        return QuantizedWeights(packed, bias, self.dtype, form.round, self.context)


def stores_of(config: EngineConfig, technique: str, kernels: Kernels) -> Stores:
    """The stores of a model whose weights are stored by `technique`."""
    context = WeightContext(kernels, config.executor.deterministic)
    kept = None
    if config.weights.kept_bytes and isinstance(kernels, CpuKernels):
        kept = KeptWeights([technique, config.techniques.get(technique)], config.weights.kept_bytes)
    return Stores(config.make(technique, context), context, kept)
