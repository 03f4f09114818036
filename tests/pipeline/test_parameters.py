"""Typed parameters are read without running the notebook and checked before anything starts."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from workbench.core.errors import ContractError, ParameterError
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


def test_defaults_and_given_values_are_json() -> None:
    model = parameters.parameters_model(CELL, where="x")
    values = parameters.validate_parameters(model, {"steps": "12", "note": "hi"}, where="x")
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
        ({"stpes": 3}, "Did you mean 'steps'"),
        ({"steps": "many"}, "'steps'"),
        ({"roles": ["blind"]}, "'roles.0'"),
        ({"limit": 0}, "must be ≥ 1"),
    ],
)
def test_an_invalid_value_is_rejected_by_name(given: dict[str, object], words: str) -> None:
    model = parameters.parameters_model(CELL, where="x")
    with pytest.raises(ParameterError, match=words):
        parameters.validate_parameters(model, given, where="x")


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
        ("n: os.PathLike = 3", "not an allowed type"),
        ("n: '__import__(\"os\").abort()' = 3", "cannot be a string"),
        ("n: list['__import__(\"os\").abort()'] = 3", "cannot be a string"),
        ("n: int = 3\nn: int = 4", "defined twice"),
        ("_n: int = 3", "underscore"),
        ("n: int = = 3", "not valid Python"),
        ("n: conint(3, 4) = 3", "invalid (annotation|parameters)"),
    ],
)
def test_only_annotated_literals_are_accepted(cell: str, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        parameters.parameters_model(cell, where="x")


def test_a_default_of_the_wrong_type_is_rejected() -> None:
    with pytest.raises(ParameterError, match="'n'"):
        parameters.parameters_model("n: int = 'three'", where="x")


MODERN = """
when: datetime = "2026-01-31T06:00:00"
day: dt.date = "2026-01-31"
pause: timedelta = "PT5M"
limit: Optional[float] = None
either: Union[int, str] = 3
pair: tuple[int, int] = (3, 4)
many: list[tuple[str, float]] = [("night", 0.5)]
shares: dict[str, PositiveFloat] = {"seed": 0.5}
count: Annotated[int, Gt(0), Le(10)] = 3
word: Annotated[str, StringConstraints(pattern="^[a-z]+$")] = "calm"
box: Box = {"x": 1, "y": 2, "w": 3, "h": 4}
role: records.Role = "seed"
"""
IMPORTS = [
    "import datetime as dt\nfrom datetime import datetime, timedelta",
    "from workbench.records.frames import Box\nimport workbench.records.frames as records",
    "%matplotlib inline",
]


def modern() -> type[BaseModel]:
    return parameters.parameters_model(
        MODERN, where="x", imports=parameters.imports_of_cells(IMPORTS)
    )


def test_rich_types_survive_a_json_round_trip() -> None:
    model = modern()
    values = parameters.validate_parameters(model, {"pair": [5, 6], "limit": 2}, where="x")
    assert values["when"] == "2026-01-31T06:00:00"
    assert (values["day"], values["pause"], values["limit"]) == ("2026-01-31", "PT5M", 2.0)
    assert (values["pair"], values["many"]) == ([5, 6], [["night", 0.5]])
    assert values["role"] == "seed"
    assert parameters.validate_parameters(model, values, where="x") == values


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"when": "yesterday"}, "'when'"),
        ({"pair": [1, 2, 3]}, "'pair'"),
        ({"shares": {"seed": -1}}, "'shares.seed'"),
        ({"count": 11}, "'count'"),
        ({"word": "LOUD"}, "'word'"),
        ({"box": {"x": 1}}, "'box"),
        ({"role": "nobody"}, "'role'"),
        ({"limit": float("inf")}, "'limit'"),
    ],
)
def test_rich_types_are_enforced(given: dict[str, object], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        parameters.validate_parameters(modern(), given, where="x")


def test_the_schema_is_json_schema() -> None:
    schema = modern().model_json_schema()
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["when"]["format"] == "date-time"
    assert properties["count"]["maximum"] == 10
    assert properties["pair"]["prefixItems"] == [{"type": "integer"}] * 2
    assert set(schema["$defs"]) >= {"Box", "Role"}


def test_a_name_means_what_the_notebook_imports() -> None:
    imports = parameters.imports_of_cells(["from shutil import rmtree as Path"])
    with pytest.raises(ContractError, match="not an allowed type"):
        parameters.parameters_model("where: Path = 'x'", where="x", imports=imports)
    ours = parameters.imports_of_cells(["from workbench.core.workspace import write_atomic"])
    with pytest.raises(ContractError, match="not a model"):
        parameters.parameters_model("n: write_atomic = 3", where="x", imports=ours)
