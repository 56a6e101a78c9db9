"""Drawing tokens: against an independent implementation that sorts, and against the distribution it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from hasten.engine.rng import key
from hasten.kernels import reference

FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


def kept_tokens(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[np.ndarray, np.ndarray]:
    """(ids in token order, their unnormalised probabilities), by sorting everything."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    p = np.exp((logits[order].astype(np.float64) - logits.max()) / np.float64(np.float32(temperature)))
    if top_k > 0:
        order, p = order[:top_k], p[:top_k]
    if top_p < 1:
        before = np.concatenate([[0], np.cumsum(p)[:-1]])
        keep = before < np.float64(np.float32(top_p)) * p.sum()
        keep[0] = True
        order, p = order[keep], p[keep]
    keep = p >= np.float64(np.float32(min_p))
    order, p = order[keep], p[keep]
    by_id = np.argsort(order)
    return order[by_id], p[by_id]


def mixed(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def earliness(key: int, token: int) -> float:
    """-log of an exponentially distributed number that belongs to the key and the token, in plain Python."""
    x = mixed((token + key) % 2**32) ^ (key >> 32) % 2**32
    v = (mixed(x) * 2**21 + mixed(x ^ 0x9E3779B9) // 2**11 + 0.5) / 2**53
    return -math.log(-math.log1p(-v))


def lead(ids: np.ndarray, p: np.ndarray, key: int, token: int) -> float:
    """By how much (log p - log E) a token wins the race of the kept ones, or loses it if negative; -inf if it is not kept."""
    if token not in ids:
        return -np.inf
    with np.errstate(divide="ignore"):
        scores = np.log(p) + np.array([earliness(key, int(t)) for t in ids])
    mine = ids == token
    return float(scores[mine][0] - max(scores[~mine], default=-np.inf))


def keys_of(rng: np.random.Generator, rows: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(-(2**63), 2**63, rows))


def draw(kernels, logits, temperature, top_k, top_p, min_p, keys) -> torch.Tensor:
    rows = logits.shape[0]
    return kernels.sample(
        logits,
        torch.full((rows,), temperature, dtype=torch.float32),
        torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p, dtype=torch.float32),
        torch.full((rows,), min_p, dtype=torch.float32),
        torch.as_tensor(keys, dtype=torch.int64).expand(rows).contiguous(),
    )


@FEW
@given(
    vocabulary=st.sampled_from([1, 2, 17, 64, 100, 1000, 5000]),
    spread=st.sampled_from([0.0, 0.3, 1.0, 3.0, 10.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 0, 1, 2, 40, 400, 9999]),
    top_p=st.sampled_from([1.0, 1.0, 0.999, 0.9, 0.5, 0.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.5, 1.0]),
    hidden=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_draws_as_sorting_would(vocabulary, spread, temperature, top_k, top_p, min_p, hidden, seed, kernels, dtype):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.standard_normal((6, vocabulary)).astype(np.float32) * spread).to(dtype)
    if hidden:
        logits[torch.from_numpy(rng.random((6, vocabulary)) < 0.5)] = -torch.inf
        logits[:, int(rng.integers(vocabulary))] = 1.0
    keys = keys_of(rng, 6)
    keys[:4] = torch.tensor([0, -1, -(2**63), 2**32 - 1])
    drawn = draw(kernels, logits, temperature, top_k, top_p, min_p, keys)
    assert drawn.dtype == torch.int64
    for row in range(6):
        plain = logits[row].float().numpy()
        token = int(drawn[row])
        # A threshold may fall the other way by rounding; then so does one a millionth lower or higher.
        accepted = False
        for nudge in (0.0, -1e-5, 1e-5):
            p_cut = top_p if top_p in (0.0, 1.0) else top_p + nudge
            ids, p = kept_tokens(plain, temperature, top_k, p_cut, max(0.0, min_p - abs(nudge)) if min_p else 0.0)
            accepted |= lead(ids, p, int(keys[row]), token) > -1e-4 and plain[token] > -np.inf
        assert accepted, (row, token)


def test_greedy_takes_the_first_maximum(kernels, dtype):
    logits = torch.randn(6, 3000).to(dtype)
    for row, ties in enumerate([(0,), (5, 6), (63, 64), (100, 2999), (2999,), (1, 2, 3)]):
        logits[row, list(ties)] = 50.0
    logits[5, 10:] = -torch.inf
    assert draw(kernels, logits, 0.0, 3, 0.5, 0.1, 99).tolist() == [0, 5, 63, 100, 2999, 1]


def test_ties_keep_lower_ids(kernels, dtype):
    logits = torch.zeros(64, 400).to(dtype)
    logits[:, 300] = 1.0
    rng = np.random.default_rng(0)
    assert set(draw(kernels, logits, 1.0, 5, 1.0, 0.0, keys_of(rng, 64)).tolist()) == {0, 1, 2, 3, 300}
    # p = e for one token and 1 for 399: half the mass is reached by token 300 and the first 198 others
    wide = draw(kernels, logits[:1].expand(5000, -1), 1.0, 0, 0.5, 0.0, keys_of(rng, 5000))
    assert sorted(set(wide.tolist())) == [*range(199), 300]


@pytest.mark.parametrize("seeds", ["one seed, many draws", "many seeds, one draw"])
def test_distribution(kernels, seeds):
    """Chi-square of what is drawn with the keys that the engine uses."""
    logits = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 30)).astype(np.float32)) * 2
    count = 20_000
    keys = [key(5, i) if seeds.startswith("one") else key(i, 0) for i in range(count)]
    drawn = draw(kernels, logits.expand(count, -1).contiguous(), 0.8, 0, 1.0, 0.0, keys)
    counts = torch.bincount(drawn, minlength=30).numpy()
    expected = torch.softmax(logits[0].double() / 0.8, -1).numpy() * count
    assert chisquare(counts, expected).pvalue > 1e-3


def test_successive_draws_are_independent(kernels):
    """Chi-square of pairs: draws next to each other of one seed, and tokens next to each other in the vocabulary."""
    logits, count = torch.zeros(1, 8).expand(40_000, -1).contiguous(), 40_000
    drawn = draw(kernels, logits, 1.0, 0, 1.0, 0.0, [key(11, i) for i in range(count)]).numpy()
    pairs = np.zeros((8, 8))
    np.add.at(pairs, (drawn[:-1], drawn[1:]), 1)
    assert chi2_contingency(pairs).pvalue > 1e-3


def test_like_distributions_draw_alike(kernels):
    """With equal keys two rows agree at least as often as (1 - d) / (1 + d), d their total variation distance."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 500, generator=generator) * 2
    other = logits + torch.randn(1, 500, generator=generator) * 0.5
    keys = [key(i, 3) for i in range(4000)]
    mine, theirs = (draw(kernels, x.expand(4000, -1).contiguous(), 1.0, 0, 1.0, 0.0, keys) for x in (logits, other))
    distance = float((torch.softmax(logits, -1) - torch.softmax(other, -1)).abs().sum()) / 2
    least = (1 - distance) / (1 + distance)
    assert least - 0.03 < float((mine == theirs).double().mean()) <= 1 - distance + 0.03


def test_large_vocabulary(native_kernels, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 151_936, generator=generator) * 2).to(dtype)
    logits[1] = 0.0
    keys = [-5, 2**40 + 7]
    for top_k, top_p, min_p in ((0, 1.0, 0.0), (50, 1.0, 0.0), (3000, 0.9, 0.0), (0, 0.9, 0.0), (0, 0.99, 0.01), (0, 1.0, 0.1)):
        drawn = draw(native_kernels, logits, 0.9, top_k, top_p, min_p, keys)
        for row in range(2):
            ids, p = kept_tokens(logits[row].float().numpy(), 0.9, top_k, top_p, min_p)
            assert lead(ids, p, keys[row], int(drawn[row])) > -1e-4, (top_k, top_p, min_p, row)


def test_extreme_parameters(kernels):
    logits = torch.tensor([[1.0, 3.0, 2.0, -torch.inf, -3e38]]).expand(4, -1).contiguous()
    for temperature in (1e-30, 1e-6, 1e4, 3e38):
        drawn = draw(kernels, logits, temperature, 0, 1.0, 0.0, [0, 3, 6, -1])
        assert 3 not in drawn.tolist()
        if temperature < 1:
            assert drawn.tolist() == [1] * 4
    huge = torch.tensor([[3e38, -3e38, 3e38, 0.0]])
    assert draw(kernels, huge, 1.0, 2, 0.4, 0.0, 9).item() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_rows_that_cannot_be_sampled(kernels, dtype, bad):
    for temperature in (0.0, 1.0):
        logits = torch.randn(3, 200).to(dtype)
        if bad is None:
            logits[1] = -torch.inf
        else:
            logits[1, 77] = bad
        with pytest.raises(ValueError, match="row 1"):
            draw(kernels, logits, temperature, 0, 0.9, 0.0, 5)


def test_log_probabilities(kernels, dtype):
    logits, tokens = torch.randn(4, 300).to(dtype), torch.tensor([0, 299, 7, 7])
    every = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(
        kernels.log_softmax_gather(logits, tokens).double(), every[torch.arange(4), tokens], atol=1e-5, rtol=0
    )
    values, ids = kernels.top_logprobs(logits, 5)
    assert values.dtype == torch.float32 and values.shape == ids.shape == (4, 5)
    torch.testing.assert_close(values.double(), every.gather(1, ids), atol=1e-5, rtol=0)
    assert (values.diff(dim=-1) <= 0).all() and torch.equal(values[:, 0], values.amax(-1))


def test_arrivals_are_what_they_are_said_to_be():
    """All 53 bits of them: an independent computation in plain Python."""
    keys = keys_of(np.random.default_rng(7), 5)
    keys[:2] = torch.tensor([0, -1])
    found = reference.earliness(keys, 300)
    expected = [[earliness(int(key), token) for token in range(300)] for key in keys]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)
