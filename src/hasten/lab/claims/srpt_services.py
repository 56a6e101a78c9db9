"""What the claim `srpt` runs: services with outputs of unlike length on one engine, and heavy tails for the point that is
real."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hasten.lab.workloads.base import Workload

SERVICES = {"labels": (0.5, 400, 0.5, 8, 0.5), "chat": (0.4, 300, 0.9, 130, 0.86), "reasoning": (0.1, 200, 0.6, 600, 0.7)}
"""By application: share of the requests, then prompt and output: median and spread (sigma of the logarithm). Chat outputs are
those of the Azure conversation trace; the rest is our modelling."""
LONGEST = 2048
BURSTS = 4.0
"""Coefficient of variation of the gaps between arrivals, as in bursts of recorded traffic (BurstGPT, 2025)."""


def services(count: int, rate: float, seed: int, cv: float = BURSTS) -> Workload:
    """`count` requests at `rate` a second, gaps gamma distributed with coefficient of variation `cv`; an application each,
    which alone tells the lengths apart."""
    from hasten.lab.workloads.base import TimedRequest, Workload
    from hasten.lab.workloads.generate import arrivals, lengths

    of_arrivals, of_kinds, of_lengths = np.random.default_rng(seed).spawn(3)
    names = list(SERVICES)
    kinds = of_kinds.choice(len(names), count, p=[service[0] for service in SERVICES.values()])
    drawn = {
        name: (lengths(of_lengths, count, p, p_sigma, LONGEST), lengths(of_lengths, count, o, o_sigma, LONGEST))
        for name, (_, p, p_sigma, o, o_sigma) in SERVICES.items()
    }
    requests = [
        TimedRequest(
            id=str(number),
            arrival_s=float(at_s),
            prompt_tokens=int(drawn[name][0][number]),
            output_tokens=int(drawn[name][1][number]),
            application=name,
        )
        for number, (at_s, name) in enumerate(
            zip(arrivals(of_arrivals, count, rate, cv), [names[k] for k in kinds], strict=True)
        )
    ]
    shares = ", ".join(f"{name} {service[0]:.0%}" for name, service in SERVICES.items())
    return Workload(name="services", requests=requests, source=f"{count} requests: {shares}; seed {seed}")


def heavy(count: int, longest: int, seed: int) -> Workload:
    """Independent requests of which few are long: outputs of median 20 tokens, sigma 1.5."""
    from hasten.lab.workloads.generate import poisson

    return poisson(
        rate=20.0, requests=count, prompt=32, prompt_sigma=0.6, output=20, output_sigma=1.5, longest=longest, seed=seed
    )
