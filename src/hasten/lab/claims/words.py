"""How figures and thresholds read, in the terminal and on the pages."""

from __future__ import annotations

from hasten.lab.claims.base import Requirement
from hasten.lab.claims.result import Figure


def number(value: float, unit: str) -> str:
    """Three significant digits, with its unit."""
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {unit}" if unit and unit not in "x%" else digits + unit


def required(figure: Figure | Requirement) -> str:
    parts = []
    if figure.at_least is not None:
        parts.append(f"at least {number(figure.at_least, figure.unit)}")
    if figure.at_most is not None:
        parts.append(f"at most {number(figure.at_most, figure.unit)}")
    return " and ".join(parts) or "reported only"


def measured(figure: Figure) -> str:
    """The median and its interval: of which rounds, how sure."""
    middle = number(figure.median, figure.unit)
    count = len(figure.samples)
    if count == 1:
        return middle
    ends = f"{number(figure.low, figure.unit)} to {number(figure.high, figure.unit)}"
    return f"{middle} ({ends}; {count} rounds, {figure.confidence:.0%} sure)"
