"""Canonical JSON equals RFC 8785, whichever encoder is used."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.core import digest
from workbench.core.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(-1e-3, 1e-3)
    | st.floats(1e14, 1e22)
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.integers(-9, 9).map(float)
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner) | st.tuples(inner, inner),
    max_leaves=12,
)


class Light(StrEnum):
    NIGHT = "night"


@settings(max_examples=500)
@given(VALUES)
def test_equal_to_the_reference_implementation(value: Any) -> None:
    assert digest.canonical_json(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    "value",
    [
        -0.0, 1e-4, 9.9e-5, 1e-7, 1e16, 2.0**53, 1e21, 0.1 + 0.2, np.float64(0.5), True,
        "\x7f\x1f\u2028\u20ac\U0001f600\"\\/", {"\U0001f600": 1, "\ufb33": 2}, Light.NIGHT,
        {Light.NIGHT: [Light.NIGHT]},
    ],
)  # fmt: skip
def test_unusual_values(value: Any) -> None:
    assert digest.canonical_json(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("value", [2**53, -(2**53), float("nan"), float("inf"), "\ud800", {1: 2}])
def test_values_that_json_cannot_hold_are_errors(value: Any) -> None:
    with pytest.raises(DataError, match="canonical JSON"):
        digest.canonical_json([value])
