"""Parameters of notebooks as people write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench.core.errors import ContractError, ParameterError
from workbench.pipeline.ipynb import load_notebook
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


def test_parameters_beside_magics_and_in_blocks_can_be_set() -> None:
    model = untyped_parameters_model(
        "%matplotlib inline\n!ls\na = 1; b = 2\nif a:\n    c = 1\n    %time\nelse:\n    d = 2\n"
        "try:\n    e = 1\nexcept OSError:\n    f = 2\ndef g():\n    h = 1"
    )
    assert set(model.model_fields) == set("abcdef")


@pytest.mark.parametrize(
    ("code", "value", "words"),
    [
        ("a: int = 1", True, "'a' must be a number, got True.*yes, no, on and off"),
        ("a: float | None = 1.0", False, "'a' must be a number, got False"),
        (
            "a: str = ''",
            7,
            "'a' must be a valid string, got 7.*Correct the value; put text in quotes",
        ),
        ("a: int = 1", "x", r"unable to parse string as an integer, got 'x' \(s\)$"),
    ],
)
def test_a_value_of_another_type_is_refused_in_words(code: str, value: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        validate_parameters(parameters_model(code, where="n"), {"a": value}, where="s")
    assert validate_parameters(
        parameters_model("a: bool = True", where="n"), {"a": False}, where="s"
    )


def test_names_of_parameters_are_compared_as_python_compares_them() -> None:
    model = parameters_model("gr\u00f6\u00dfe: int = 1", where="n")
    assert validate_parameters(model, {"gro\u0308\u00dfe": 2}, where="s") == {"gr\u00f6\u00dfe": 2}


def test_a_parameter_may_be_named_like_a_method_of_pydantic(
    recwarn: pytest.WarningsRecorder,
) -> None:
    model = parameters_model("schema: str = ''", where="ingest")
    assert validate_parameters(model, {}, where="ingest") == {"schema": ""}
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a notebook: it is empty"),
        ('{\n<<<<<<< HEAD\n"cells": []}', "line 2 is not JSON"),
        ('{"cells": [{"cell_type": "code"}]}', "cell 1 has no 'source'"),
        ('{"cells": [{"cell_type": "code", "source": [1]}]}', "cell 1: 1 where a text is expected"),
        ('{"cells": [], "metadata": {"x": NaN}}', "not JSON compliant"),
        ('{"worksheets": []}', "it has no 'cells'"),
        ('\ufeff{"cells": []}', "Unexpected UTF-8 BOM"),
        (
            '{"cells": [{"cell_type": "code", "source": "", "metadata": {"tags": null}}]}',
            "cell 1: None where a list is expected",
        ),
    ],
)
def test_what_is_wrong_with_a_notebook_file_is_said(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "n.ipynb").write_text(text)
    with pytest.raises(ContractError, match=words):
        load_notebook(tmp_path / "n.ipynb")
