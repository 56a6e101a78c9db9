"""Conditions on numbers as languages of texts, against Decimal on a dense grid."""

import json
import re
import time
from decimal import Decimal
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.decoding.constraints import numbers
from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.languages import Expr, both, either, without
from hasten.engine.decoding.constraints.native import Language

TEXT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", re.ASCII)
WHOLES = ["", "0", "00", "1", "2", "7", "9", "10", "12", "13", "99", "100", "101", "120", "1000"]
FRACTIONS = ["", ".", ".0", ".00", ".5", ".50", ".05", ".49", ".51", ".500", ".9", ".99", ".001", ".25"]
GRID = ["".join(parts) for parts in product(("", "-", "+"), WHOLES, FRACTIONS)]
DECIMALS = ["0.5", "-0.5", "12.49", "12.50", "-12.05", "99.99", "1E+2", "1e-3", "-0", "0.050"]
BOUNDS = [0, 1, -1, 9, 10, 12, -12, 100, *map(Decimal, DECIMALS)]
STEPS = [1, 2, 3, 7, 10, 100, 77, *map(Decimal, ["0.5", "0.01", "2.50", "0.003", "1E+1", "12.5", "1.1"])]
EXACT = st.decimals(allow_nan=False, allow_infinity=False, places=4)


def check(expr: Expr, condition) -> None:
    language = Language(expr)
    for text in GRID:
        expected = bool(TEXT.fullmatch(text)) and condition(Decimal(text))
        assert language.match(text.encode())[1] == expected, text


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds(bound):
    check(numbers.at_least(bound), lambda value: value >= bound)
    check(numbers.at_least(bound, exclusive=True), lambda value: value > bound)
    check(numbers.at_most(bound), lambda value: value <= bound)
    check(numbers.at_most(bound, exclusive=True), lambda value: value < bound)
    check(numbers.equal(bound), lambda value: value == bound)


@pytest.mark.parametrize(
    "step", [1, 2, 3, 7, 10, 100, 77, *map(Decimal, ["0.5", "0.01", "2.50", "0.003", "1E+1", "12.5", "1.1"])]
)
def test_multiples(step):
    check(numbers.multiple_of(step), lambda value: value % step == 0)


def test_combinations():
    check(both(numbers.DECIMAL, without(numbers.at_least(10))), lambda value: value < 10)
    check(both(numbers.DECIMAL, without(numbers.INTEGRAL)), lambda value: value % 1 != 0)
    half = Decimal("0.5")
    between = both(numbers.at_least(-3 * half), numbers.at_most(12, exclusive=True), numbers.multiple_of(half))
    check(between, lambda value: -1.5 <= value < 12 and value % half == 0)
    check(both(numbers.DECIMAL, without(either(numbers.equal(1), numbers.equal(12)))), lambda value: value not in (1, 12))
    assert Language(both(numbers.at_least(2), numbers.at_most(1))).states == 0
    assert Language(both(numbers.INTEGER, numbers.at_least(Decimal("0.1")), numbers.at_most(Decimal("0.9")))).states == 0


@settings(max_examples=100)
@given(EXACT, EXACT)
def test_bounds_of_any_precision(bound, value):
    text = format(value, "f")
    for other in (text, text.rstrip("0").rstrip(".")):
        assert Language(numbers.at_least(bound)).match(other.encode())[1] == (value >= bound)
        assert Language(numbers.at_most(bound, exclusive=True)).match(other.encode())[1] == (value < bound)
    assert Language(numbers.at_most(value)).match(text.encode())[1]


@given(st.text("-+0123.eE", max_size=6))
def test_numbers_of_json(text):
    try:
        valid = not isinstance(json.loads(text), str)
    except ValueError:
        valid = False
    assert Language(numbers.NUMBER).match(text.encode())[1] == valid
    assert Language(numbers.INTEGER).match(text.encode())[1] == (valid and not set(text) & set(".eE"))
    assert Language(numbers.DECIMAL).match(text.encode())[1] == (valid and not set(text) & set("eE"))


def test_literals():
    def texts(value) -> set[str]:
        expr = numbers.literal(value)
        return set(expr[1])

    assert texts(1) == {"1"}
    assert texts(Decimal("1.0")) == {"1", "1.0"}
    assert texts(Decimal("-2.50")) == {"-2.5"}
    assert texts(Decimal("1E+3")) == {"1000", "1000.0"}
    assert texts(Decimal("1e-3")) == {"0.001"}
    assert texts(9223372036854775807) == {"9223372036854775807"}


def test_refusals():
    for step in (0, -1, Decimal("0.0"), 10_001, Decimal("123.4567")):
        with pytest.raises(GrammarError, match="multipleOf"):
            numbers.multiple_of(step)
    for bound in (Decimal("1E+100000000"), Decimal("1e-100000"), 10**5000):
        with pytest.raises(GrammarError, match="digits"):
            numbers.at_least(bound)
    with pytest.raises(GrammarError):
        numbers.at_most(Decimal("Infinity"))


def test_large_moduli_compile_in_time():
    start = time.perf_counter()
    language = Language(numbers.multiple_of(9973))
    assert language.match(str(9973 * 12345).encode())[1] and not language.match(b"9974")[1]
    assert time.perf_counter() - start < 2.0
