"""Typed parameters of a notebook, read from its ``parameters`` cell without executing it.

The cell holds annotated literals only (``epochs: int = 12``). Annotations may use what
`parameter_types` lets pass; all else is refused, so that reading a contract can never run a
notebook's code. A notebook sees each value in its JSON form, by hand and in production alike: a
``datetime`` is the text that ``datetime.fromisoformat`` reads, a model is the mapping that
``Model(**value)`` takes.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from workbench.errors import ContractError, ParameterError
from workbench.pipeline.contracts import parameter_types

_CONFIG = ConfigDict(
    extra="forbid",
    validate_default=True,
    frozen=True,
    allow_inf_nan=False,  # JSON has none, and a key could not name them
    protected_namespaces=(),
)


def model_of(
    source: str, *, where: str, imports: Mapping[str, str] | None = None
) -> type[BaseModel]:
    """A pydantic model of the parameters cell ``source``; ``where`` names it in errors.

    Args:
        imports: What names in the notebook stand for, see `parameter_types.imports_in`.

    Raises:
        ContractError: Something other than an annotated literal stands in the cell.
        ParameterError: A default is not of its type.
    """
    fields: dict[str, Any] = {}
    for statement in _statements(source, where):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            raise parameter_types.refused(
                "only annotated assignments are allowed", statement, where
            )
        if statement.value is None:
            raise parameter_types.refused("a parameter needs a default", statement, where)
        name = statement.target.id
        if name in fields or name.startswith("_"):
            what = "is given twice" if name in fields else "cannot start with an underscore"
            raise parameter_types.refused(f"parameter {name!r} {what}", statement, where)
        annotation = parameter_types.read(statement.annotation, imports or {}, where)
        try:
            default = ast.literal_eval(statement.value)
        except ValueError as error:
            raise parameter_types.refused(
                "a default must be a literal", statement, where
            ) from error
        fields[name] = (annotation, default)
    model = _model(fields, where)
    validate(model, {}, where=where)
    return model


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a notebook's parameters, for editors and forms."""
    return model.model_json_schema()


def validate(model: type[BaseModel], given: dict[str, Any], *, where: str) -> dict[str, Any]:
    """All parameters as JSON values, defaults filled in; raises `ParameterError` naming each."""
    try:
        return model.model_validate(given).model_dump(mode="json")
    except ValidationError as error:
        lines = [_explain(problem, list(model.model_fields)) for problem in error.errors()]
        raise ParameterError("; ".join(lines), where=where, hint=_known(model)) from error


def nearest(name: str, known: list[str]) -> str:
    """`` (did you mean …?)`` when something known is spelled much like ``name``."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _statements(source: str, where: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError as error:
        raise ContractError(
            f"the parameters cell is not Python: {error.msg}",
            where=f"{where}, parameters cell, line {error.lineno}",
            hint="It holds annotated literals only, like `epochs: int = 12`",
        ) from error


def _model(fields: dict[str, Any], where: str) -> type[BaseModel]:
    try:
        model: type[BaseModel] = create_model("Parameters", __config__=_CONFIG, **fields)
    except (TypeError, ValueError, NameError, AttributeError, PydanticUserError) as error:
        first = str(error).splitlines()[0]
        raise ContractError(
            f"the parameters make no model: {first}", where=f"{where}, parameters cell"
        ) from error
    return model


def _explain(problem: Any, known: list[str]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown parameter {name!r}{nearest(name, known)}"
    return f"parameter {name!r}: {problem['msg']}, got {problem['input']!r}"


def _known(model: type[BaseModel]) -> str:
    names = ", ".join(model.model_fields) or "none"
    return f"Its parameters are: {names}"
