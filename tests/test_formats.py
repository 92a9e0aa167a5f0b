"""The formats of `storage` as docs/formats.md specifies them, read by NumPy and Python alone."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from tools import formats

pytestmark = pytest.mark.api

VECTORS = json.loads(formats.PATH.read_text("utf-8"))
CASES = [
    pytest.param(name, case, id=f"{name}-{case['row']}-{'random' if i % 2 else 'nearest'}")
    for name, cases in VECTORS["formats"].items()
    for i, case in enumerate(cases)
]
FRACTION = {"UE8M8": 8, "UE5M3": 3, "SE8M7": 7, "SE4M3": 3}  # bits
BINADES = {"UE5M3": 31, "SE4M3": 15}  # below that of a block's largest
LEAST = {"UE5M3": 0, "SE4M3": 3}  # shared exponent


def numbers(bits):
    return np.array(bits, np.uint32).view(np.float32)


def power(n: int) -> Fraction:
    return Fraction(2) ** n


def shared(name: str, block: np.ndarray) -> int:
    """The shared exponent of a block."""
    if not name.startswith("S"):
        block = np.where(block < 0, np.nan, block)
    finite = block[np.isfinite(block)]
    largest = float(np.abs(finite).max(initial=0))
    if name == "UE5M3" and len(finite) < len(block):
        exponent = 255
    elif largest < 2.0**-126:
        exponent = 0
    else:
        # Rounded up to three bits of fraction, which may lift it to the next power of two.
        significand, exponent = math.frexp(largest)
        exponent += 126 + (Fraction(significand) > Fraction(15, 16))
    return max(exponent - BINADES[name], LEAST[name])


def decoded(name: str, code: int, base: int) -> float:
    """The number of a code: its sign, and a fraction at an exponent of float32."""
    bits = FRACTION[name]
    signed, width = name.startswith("S"), 8 if name in BINADES else 16
    sign = -1 if signed and code >> (width - 1) else 1
    magnitude = code & ((1 << (width - signed)) - 1)
    exponent, fraction = magnitude >> bits, magnitude & ((1 << bits) - 1)
    if name == "SE4M3" and code == 128:
        return math.nan
    if name == "SE4M3" and exponent == 0:
        return sign * float(fraction * power(base - 129))
    exponent += base
    if exponent == 255:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * float(fraction * power(-126 - bits))
    return sign * float((power(bits) + fraction) * power(exponent - 127 - bits))


def encoded(name: str, v: np.float32, word: int, base: int) -> int:
    """The code of a number, rounded by a random word."""
    bits, size = FRACTION[name], abs(float(v))
    signed, width = name.startswith("S"), 8 if name in BINADES else 16
    sign = int(np.signbit(v)) << (width - 1) if signed else 0
    infinity = (255 - base) << bits
    if name == "SE4M3" and not math.isfinite(size):
        return 128
    # Without a sign it is one for all of them, and what is negative is one; others keep theirs.
    if math.isnan(size) or (v < 0 and not signed):
        return sign | infinity | 1 << (bits - 1)
    if math.isinf(size):
        return sign | infinity
    gradual = name == "SE4M3"
    if gradual and size < 2.0**-126:
        size = 0.0
    exponent = max(math.frexp(size)[1] + 126 if size else 0, 1, base + gradual)
    spacing = power(exponent - 127 - bits)
    whole = math.floor(Fraction(size) / spacing + Fraction(kept(word, bits, name), 2**32))
    code = whole + ((exponent - base - 1) << bits)
    code = max(min(code, infinity - 1, (1 << (width - signed)) - 1), 0)
    return sign | code if code else 0


def kept(word: int, bits: int, name: str) -> int:
    """The upper bits of a word: as many as float32's fraction has beyond the code's, or all."""
    unused = 0 if name == "SE4M3" else 32 - (23 - bits)
    return word >> unused << unused


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_reader_of_the_page_makes_the_same_codes(name, case):
    v, block = numbers(case["numbers"]), VECTORS["block"]
    starts = range(0, len(v), block)
    bases = [shared(name, v[i : i + block]) if name in BINADES else 0 for i in starts]
    assert case.get("exponents", [0] * len(bases)) == bases
    each = [base for base in bases for _ in range(block)][: len(v)]
    expected = [
        encoded(name, x, word, base) for x, word, base in zip(v, case["words"], each, strict=True)
    ]
    assert case["codes"] == expected
    back = [decoded(name, code, base) for code, base in zip(case["codes"], each, strict=True)]
    np.testing.assert_array_equal(numbers(case["decoded"]), np.array(back, np.float32))


def test_the_vectors_are_what_the_package_makes_today():
    assert formats.PATH.read_text("utf-8") == formats.text(), "python -m tools.formats"
    assert set(VECTORS["formats"]) == set(FRACTION) and VECTORS["version"] == formats.VERSION


@pytest.mark.parametrize("name", FRACTION)
def test_the_vectors_hold_what_is_special(name):
    cases = VECTORS["formats"][name]
    codes = {code for case in cases for code in case["codes"]}
    back = np.concatenate([numbers(case["decoded"]) for case in cases])
    v = np.concatenate([numbers(case["numbers"]) for case in cases])
    assert len(codes) > 50 and np.isnan(back).any()
    assert np.isinf(back).any() == (name != "SE4M3")
    assert (back < 0).any() == name.startswith("S") and (v < 0).any()
    assert ((back > v) & (v > 0)).any() and ((back < v) & (v > 0)).any()
