"""The sampler: draws each row's token from the request's own distribution with the request's own random numbers.

Raw logits are reshaped (penalties, bias), masked by constraints, then filtered and drawn from by the kernel. The random number
of a draw is a function of the request's seed and the draw's number, so preemption, chunking, batch mates and drafts change
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hasten.engine.decoding.base import Drawn, Row, TokenLogprobs, fill
from hasten.engine.executors.base import StepResult
from hasten.engine.kv.base import Ints
from hasten.engine.rng import key
from hasten.engine.technique import Technique
from hasten.kernels import Kernels

_NEVER = float("-inf")
_KNOBS = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64)
"""Of temperature, top_k, top_p, min_p and the key of the draw."""


class LosslessSampler:
    """`eos`: the tokens that end a sequence, withheld until `min_tokens` are out."""

    def __init__(self, kernels: Kernels, vocabulary: int, eos: frozenset[int]) -> None:
        self._kernels = kernels
        self._vocabulary = vocabulary
        self._eos = eos
        self._masks = np.empty((0, (vocabulary + 31) // 32), dtype=np.int32)

    def draw(self, result: StepResult, rows: Seq[Row]) -> Drawn:
        """One token a row. Masks are written into the step's logits themselves: at a large vocabulary a copy costs more than
        the masks."""
        with torch.inference_mode():
            logits = self._pick(result.logits, [row.logits_row for row in rows])
            scored = [i for i, row in enumerate(rows) if row.sequence.request.sampling.logprobs is not None]
            raw = logits[scored] if scored else logits
            shaped = self._reshape(logits, rows)
            self._mask(shaped, rows)
            try:
                tokens = self._kernels.sample(shaped, *self.knobs(rows, logits.device)).tolist()
            except ValueError:  # a row that cannot be drawn from must not end the others
                tokens = [self._draw_alone(shaped[i : i + 1], rows[i : i + 1]) for i in range(len(rows))]
            tokens = self._decide(shaped, rows, tokens)
            return Drawn(tokens, self._logprobs(raw, rows, scored, tokens))

    def _decide(self, shaped: Tensor, rows: Seq[Row], tokens: list[int]) -> list[int]:
        """What to say in the end, given `shaped` [rows, vocabulary], the logits that `tokens` were drawn from: `tokens`. A
        sampler that is not lossless may say what was drafted instead."""
        return tokens

    def _draw_alone(self, logits: Tensor, rows: Seq[Row]) -> int:
        try:
            return int(self._kernels.sample(logits, *self.knobs(rows, logits.device))[0])
        except ValueError:
            return -1

    @staticmethod
    def _pick(logits: Tensor, wanted: list[int]) -> Tensor:
        if wanted == list(range(len(logits))):
            return logits
        return logits[torch.tensor(wanted, device=logits.device)]

    @staticmethod
    def knobs(rows: Seq[Row], device: torch.device) -> list[Tensor]:
        """Temperature, top_k, top_p, min_p and the random number of each row, as `Kernels.sample` takes them."""
        params = [row.sequence.request.sampling for row in rows]
        if not any(p.temperature for p in params):  # the likeliest tokens, whatever else is set
            return [torch.zeros(len(rows), dtype=dtype, device=device) for dtype in _KNOBS]
        draws = [
            key(row.sequence.seed, row.sequence.output_length + len(row.path)) if p.temperature > 0 else 0
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
        if row.constraint is None and self._too_short(row):
            logits[torch.tensor(self._stops(row), dtype=torch.int64, device=device)] = _NEVER

    @staticmethod
    def _too_short(row: Row) -> bool:
        return row.sequence.output_length + len(row.path) < row.sequence.request.sampling.min_tokens

    def _stops(self, row: Row) -> list[int]:
        return [token for token in (*self._eos, *row.sequence.request.sampling.stop_token_ids) if token < self._vocabulary]

    def _mask(self, logits: Tensor, rows: Seq[Row]) -> None:
        """Forbid in place what the rows' constraints do not allow."""
        held = [i for i, row in enumerate(rows) if row.constraint is not None]
        if not held:
            return
        if len(held) > len(self._masks):
            self._masks = np.empty((2 * len(held), self._masks.shape[1]), dtype=np.int32)
        masks = self._masks[: len(held)]
        fill([rows[i].constraint for i in held], masks)
        for i, mask in zip(held, masks, strict=True):
            self._mark_stops(mask, rows[i])
        self._kernels.apply_mask(
            logits, torch.from_numpy(masks).to(logits.device), torch.tensor(held, dtype=torch.int64, device=logits.device)
        )

    def _mark_stops(self, mask: npt.NDArray[np.int32], row: Row) -> None:
        """A request's own stop tokens are legal where the text may end. Until `min_tokens` are out what ends it is withheld,
        unless nothing else is legal."""
        words = mask.view(np.uint32)
        asked = [token for token in row.sequence.request.sampling.stop_token_ids if token not in self._eos]
        if asked:
            ended = row.constraint.ended
            for token in asked:
                bit = np.uint32(1 << (token % 32))
                words[token // 32] = words[token // 32] | bit if ended else words[token // 32] & ~bit
        if self._too_short(row):
            longer = words.copy()
            for token in self._stops(row):
                longer[token // 32] &= ~np.uint32(1 << (token % 32))
            if longer.any():
                words[:] = longer

    # -- log-probabilities ----------------------------------------------------------------------------------------------

    def _logprobs(self, raw: Tensor, rows: Seq[Row], scored: list[int], tokens: list[int]) -> list[TokenLogprobs | None]:
        """Of the rows `scored`, whose logits are `raw`, where a token was drawn."""
        out: list[TokenLogprobs | None] = [None] * len(rows)
        if scored:
            tops = [rows[i].sequence.request.sampling.logprobs or 0 for i in scored]
            found = self._scored(raw, [max(tokens[i], 0) for i in scored], tops)
            for i, score in zip(scored, found, strict=True):
                out[i] = score if tokens[i] >= 0 else None
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
