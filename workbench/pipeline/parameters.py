"""Typed parameters of a notebook, read from its ``parameters`` cell without executing it.

The cell holds annotated literals only (``epochs: int = 12``). Annotations may use the built-in
types, ``list``, ``dict``, ``Literal``, ``Path``, ``Annotated`` and ``Field``; anything else is
refused, so that reading a contract can never run code.
"""

from __future__ import annotations

import ast
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from workbench.errors import ContractError, ParameterError

_ALLOWED: dict[str, Any] = {
    "Annotated": Annotated,
    "Field": Field,
    "Literal": Literal,
    "Optional": Optional,
    "Path": Path,
    "bool": bool,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "str": str,
}
_ANNOTATION_NODES = (
    ast.Name,
    ast.Load,
    ast.Subscript,
    ast.Tuple,
    ast.BinOp,
    ast.BitOr,
    ast.Constant,
    ast.Call,
    ast.keyword,
    ast.UnaryOp,
    ast.USub,
)


def model_of(source: str, *, where: str) -> type[BaseModel]:
    """A pydantic model of the parameters cell ``source``; ``where`` names it in errors."""
    fields: dict[str, Any] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            raise _refused("only annotated assignments are allowed", statement, where)
        if statement.value is None:
            raise _refused("a parameter needs a default", statement, where)
        annotation = _annotation(statement.annotation, where)
        try:
            default = ast.literal_eval(statement.value)
        except ValueError as error:
            raise _refused("a default must be a literal", statement, where) from error
        fields[statement.target.id] = (annotation, default)
    model: type[BaseModel] = create_model(
        "Parameters",
        __config__=ConfigDict(extra="forbid", validate_default=True, frozen=True),
        **fields,
    )
    validate(model, {}, where=where)
    return model


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


def _annotation(node: ast.expr, where: str) -> Any:
    for part in ast.walk(node):
        if not isinstance(part, _ANNOTATION_NODES):
            raise _refused("this annotation is not allowed", node, where)
        if isinstance(part, ast.Name) and part.id not in _ALLOWED:
            raise _refused(f"{part.id!r} is not an allowed type", node, where)
        if isinstance(part, ast.Call) and getattr(part.func, "id", None) != "Field":
            raise _refused("only Field(...) may be called", node, where)
    code = compile(ast.Expression(node), where, "eval")
    return eval(code, {"__builtins__": {}}, _ALLOWED)  # noqa: S307 - whitelisted just above


def _refused(what: str, node: ast.AST, where: str) -> ContractError:
    line = getattr(node, "lineno", 0)
    text = ast.unparse(node)
    return ContractError(
        f"{what}: {text!r}",
        where=f"{where}, parameters cell, line {line}",
        hint="Write it like `epochs: int = 12`",
    )


def _explain(problem: Any, known: list[str]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown parameter {name!r}{nearest(name, known)}"
    return f"parameter {name!r}: {problem['msg']}, got {problem['input']!r}"


def _known(model: type[BaseModel]) -> str:
    names = ", ".join(model.model_fields) or "none"
    return f"Its parameters are: {names}"
