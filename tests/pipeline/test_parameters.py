"""Typed parameters: read without running, refused before anything starts."""

from __future__ import annotations

import pytest

from workbench.errors import ContractError, ParameterError
from workbench.pipeline import parameters

CELL = '''
"""What to train on."""
steps: int = 10
rate: float = 0.1
roles: list[Literal["seed", "train"]] = ["seed"]
note: str | None = None
limit: Annotated[int, Field(ge=1)] = 5
where: Path = "somewhere"
'''


def test_defaults_and_given_values_come_back_as_json() -> None:
    model = parameters.model_of(CELL, where="x")
    values = parameters.validate(model, {"steps": "12", "note": "hi"}, where="x")
    assert values == {
        "steps": 12,
        "rate": 0.1,
        "roles": ["seed"],
        "note": "hi",
        "limit": 5,
        "where": "somewhere",
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stpes": 3}, "did you mean 'steps'"),
        ({"steps": "many"}, "'steps'"),
        ({"roles": ["blind"]}, "'roles.0'"),
        ({"limit": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_refused_and_named(given: dict[str, object], words: str) -> None:
    model = parameters.model_of(CELL, where="x")
    with pytest.raises(ParameterError, match=words):
        parameters.validate(model, given, where="x")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("n = 3", "annotated"),
        ("n: int", "default"),
        ("n: int = 1 + m", "literal"),
        ("n: __import__('os').system('x') = 3", "not allowed|may be called"),
        ("n: [x for x in ()] = 3", "not allowed"),
        ("n: open('x') = 3", "not an allowed type|may be called"),
        ("n: eval = 3", "'eval' is not an allowed type"),
    ],
)
def test_what_is_no_annotated_literal_is_refused(cell: str, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        parameters.model_of(cell, where="x")


def test_a_default_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ParameterError, match="'n'"):
        parameters.model_of("n: int = 'three'", where="x")
