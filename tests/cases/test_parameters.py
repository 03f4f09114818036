"""Parameters of notebooks as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.core.errors import ParameterError
from workbench.pipeline.parameters import (
    parameters_model,
    untyped_parameters_model,
    validate_parameters,
)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, {"x": float("-inf")}]])
def test_nan_and_infinity_are_refused_by_name(value: Any) -> None:
    model = untyped_parameters_model("a = 1\nb = 2")
    with pytest.raises(ParameterError, match=r"parameter 'a': -?(nan|inf) is not a number"):
        validate_parameters(model, {"a": value, "b": 3}, where="step")


@pytest.mark.parametrize("value", [123456789012345678901234567890, [2**53], {"x": -(2**53)}])
def test_integers_that_json_cannot_hold_are_refused_by_name(value: Any) -> None:
    for model in (untyped_parameters_model("a = 1"), parameters_model("a: Any = 1", where="n")):
        with pytest.raises(ParameterError, match=r"parameter 'a': -?\d+ is an integer of 2\^53"):
            validate_parameters(model, {"a": value}, where="step")


def test_every_form_of_assignment_makes_parameters() -> None:
    model = untyped_parameters_model(
        "msg = 'a=b'\nlow = high = 3\nleft, right = 1, 2\n[first, *rest] = [1, 2]\n"
        "rate: float = 0.5\nspan = dict(a=1)\nitems = {}\nitems['x'] = 1"
    )
    names = {"msg", "low", "high", "left", "right", "first", "rest", "rate", "span", "items"}
    assert set(model.model_fields) == names


def test_a_parameter_may_be_named_like_a_method_of_pydantic(
    recwarn: pytest.WarningsRecorder,
) -> None:
    model = parameters_model("schema: str = ''", where="ingest")
    assert validate_parameters(model, {}, where="ingest") == {"schema": ""}
    assert not recwarn.list
