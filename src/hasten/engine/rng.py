"""Random numbers that depend on a seed and a counter only, so that a request draws the same ones however it is scheduled."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def mix(seed: int, counter: int) -> int:
    """64 well-mixed bits of (seed, counter): SplitMix64 (Steele et al., 2014) applied to both in turn."""
    z = seed & _MASK
    for word in (0, counter):
        z = (z + word * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return z


def key(seed: int, counter: int) -> int:
    """The bits of `mix` as a signed number, as int64 holds them."""
    bits = mix(seed, counter)
    return bits - (1 << 64) if bits >> 63 else bits


def uniform(seed: int, counter: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    return (mix(seed, counter) >> 11) * 2.0**-53
