"""The sampler: draws each row's token from the request's own distribution with the request's own random numbers.

Raw logits are reshaped (penalties, bias, constraint), then filtered and drawn from by the kernel. The random number of a draw
is a function of the request's seed and the draw's number, so preemption, chunking, batch mates and drafts change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.engine.decoding.base import Drawn, Row, TokenLogprobs
from hasten.engine.executors.base import StepResult
from hasten.engine.kv.base import Ints
from hasten.engine.rng import uniform
from hasten.engine.technique import Technique
from hasten.kernels import Kernels

_NEVER = float("-inf")
_KNOBS = (torch.float32, torch.int32, torch.float32, torch.float32, torch.float64)
"""Of temperature, top_k, top_p, min_p and the random number."""


class LosslessSampler:
    """`eos`: the tokens that end a sequence, withheld until `min_tokens` are out."""

    def __init__(self, kernels: Kernels, vocabulary: int, eos: frozenset[int]) -> None:
        self._kernels = kernels
        self._vocabulary = vocabulary
        self._eos = eos

    def draw(self, result: StepResult, rows: Seq[Row]) -> Drawn:
        with torch.inference_mode():
            logits = self._pick(result.logits, [row.logits_row for row in rows])
            shaped = self._reshape(logits, rows)
            try:
                tokens = self._kernels.sample(shaped, *self._knobs(rows, logits.device)).tolist()
            except ValueError:  # a row that cannot be drawn from must not end the others
                tokens = [self._draw_alone(shaped[i : i + 1], rows[i : i + 1]) for i in range(len(rows))]
            return Drawn(tokens, self._logprobs(logits, rows, tokens))

    def _draw_alone(self, logits: Tensor, rows: Seq[Row]) -> int:
        try:
            return int(self._kernels.sample(logits, *self._knobs(rows, logits.device))[0])
        except ValueError:
            return -1

    @staticmethod
    def _pick(logits: Tensor, wanted: list[int]) -> Tensor:
        if wanted == list(range(len(logits))):
            return logits
        return logits[torch.tensor(wanted, device=logits.device)]

    @staticmethod
    def _knobs(rows: Seq[Row], device: torch.device) -> list[Tensor]:
        params = [row.sequence.request.sampling for row in rows]
        if not any(p.temperature for p in params):  # the likeliest tokens, whatever else is set
            return [torch.zeros(len(rows), dtype=dtype, device=device) for dtype in _KNOBS]
        draws = [
            uniform(row.sequence.seed, row.sequence.output_length + len(row.path)) if p.temperature > 0 else 0.0
            for row, p in zip(rows, params, strict=True)
        ]
        columns: list[list[Any]] = [
            [p.temperature for p in params],
            [p.top_k for p in params],
            [p.top_p for p in params],
            [p.min_p for p in params],
            draws,
        ]
        return [torch.tensor(values, dtype=dtype, device=device) for values, dtype in zip(columns, _KNOBS, strict=True)]

    # -- reshaping ------------------------------------------------------------------------------------------------------

    def _reshape(self, logits: Tensor, rows: Seq[Row]) -> Tensor:
        changed = [i for i, row in enumerate(rows) if row.sequence.request.sampling.reshapes_logits]
        if not changed:
            return logits
        shaped = logits.float() if logits.dtype != torch.float32 else logits.clone()
        for i in changed:
            self._reshape_row(shaped[i], rows[i])
        return shaped

    def _reshape_row(self, logits: Tensor, row: Row) -> None:
        seq, params = row.sequence, row.sequence.request.sampling
        device = logits.device
        path = np.asarray(row.path, dtype=np.int32)
        if params.repetition_penalty != 1.0:
            seen = torch.from_numpy(np.unique(np.concatenate([seq.tokens, path])).astype(np.int64)).to(device)
            value = logits[seen]
            penalty = params.repetition_penalty
            logits[seen] = torch.where(value > 0, value / penalty, value * penalty)
        if params.presence_penalty or params.frequency_penalty:
            ids, counts = np.unique(np.concatenate([seq.output, path]), return_counts=True)
            cost = params.presence_penalty + params.frequency_penalty * counts
            logits[torch.from_numpy(ids.astype(np.int64)).to(device)] -= torch.from_numpy(cost).to(logits)
        if params.logit_bias:
            ids_ = torch.tensor(list(params.logit_bias), device=device)
            logits[ids_] += torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=device)
        if seq.output_length + len(row.path) < params.min_tokens:
            stops = [token for token in (*self._eos, *params.stop_token_ids) if token < self._vocabulary]
            logits[torch.tensor(stops, dtype=torch.int64, device=device)] = _NEVER
        if row.constraint is not None:
            words = np.zeros((self._vocabulary + 31) // 32, dtype=np.int32)
            row.constraint.fill(words)
            legal = np.unpackbits(words.view(np.uint8), bitorder="little")[: self._vocabulary].astype(bool)
            logits[torch.from_numpy(~legal).to(device)] = _NEVER

    # -- log-probabilities ----------------------------------------------------------------------------------------------

    def _logprobs(self, logits: Tensor, rows: Seq[Row], tokens: list[int]) -> list[TokenLogprobs | None]:
        out: list[TokenLogprobs | None] = [None] * len(rows)
        asked = [i for i, row in enumerate(rows) if row.sequence.request.sampling.logprobs is not None and tokens[i] >= 0]
        if asked:
            tops = [rows[i].sequence.request.sampling.logprobs or 0 for i in asked]
            for i, scored in zip(asked, self._scored(logits[asked], [tokens[i] for i in asked], tops), strict=True):
                out[i] = scored
        return out

    def score(self, result: StepResult, rows: Seq[int], tokens: Ints, top: int) -> list[TokenLogprobs]:
        with torch.inference_mode():
            return self._scored(self._pick(result.logits, list(rows)), tokens.tolist(), [top] * len(rows))

    def _scored(self, logits: Tensor, tokens: list[int], tops: list[int]) -> list[TokenLogprobs]:
        chosen = self._kernels.log_softmax_gather(logits, torch.tensor(tokens, device=logits.device)).tolist()
        most = min(max(tops), self._vocabulary)
        values, ids = self._kernels.top_logprobs(logits, most) if most else (None, None)
        out = []
        for i, (token, logprob, top) in enumerate(zip(tokens, chosen, tops, strict=True)):
            pairs: tuple[tuple[int, float], ...] = ()
            if top and values is not None and ids is not None:
                pairs = tuple(zip(ids[i, :top].tolist(), values[i, :top].tolist(), strict=True))
            out.append(TokenLogprobs(token, logprob, pairs))
        return out


TECHNIQUE = Technique(
    name="lossless",
    seam="decoding",
    summary="draws from the request's own distribution; verifies drafts without changing it",
    exact=True,
    default=True,
    sets={"decoding.sampler": "lossless"},
    make=lambda parts, options: LosslessSampler(parts.kernels, parts.model.vocabulary, parts.eos),
)
