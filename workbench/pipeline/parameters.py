"""Typed parameters of a notebook, read from its ``parameters`` cell without executing it.

The cell holds annotated literals only (``epochs: int = 12``). Annotations may use built-in types
and containers, ``Literal``, ``Optional``, ``Union``, ``Path``, dates and times, ``Annotated`` with
constraints, pydantic's constrained types, and models, dataclasses and enums of a ``workbench``
module. Everything else is rejected, so reading a contract never runs a notebook's code.

A notebook sees each value in its JSON form: a ``datetime`` is the string that
``datetime.fromisoformat`` reads, a model is the mapping that ``Model(**value)`` takes.

A notebook written for papermill alone has no contract and its parameters have no types. A pipeline
can order such notebooks but not connect their inputs and outputs.
"""

from __future__ import annotations

import ast
import copy
import importlib
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from workbench.core import secret_scan
from workbench.core.errors import ContractError, ParameterError
from workbench.core.text import did_you_mean
from workbench.core.types import Json

__all__ = ()

_MAGIC = re.compile(r"^([ \t]*)[%!?].*$", re.MULTILINE)
"""A line of IPython's that is not Python; a magic for the whole cell makes it something else."""

_MAX_EXACT_INTEGER = 2**53
_BUILTIN_TYPES = ("bool", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple")
_TYPING_TYPES = ("Annotated", "Any", "Dict", "List", "Literal", "Optional", "Set", "Tuple", "Union")
_DATETIME_TYPES = ("date", "datetime", "time", "timedelta")
_PYDANTIC_TYPES = (
    "Field",
    "FiniteFloat",
    "NegativeFloat",
    "NegativeInt",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "StringConstraints",
    "confloat",
    "conint",
    "conlist",
    "constr",
)
_CONSTRAINTS = ("Ge", "Gt", "Interval", "Le", "Len", "Lt", "MaxLen", "MinLen", "MultipleOf")
_CALLABLE = {"Field", "StringConstraints", "confloat", "conint", "conlist", "constr", *_CONSTRAINTS}

_ALLOWED: dict[str, str] = {
    **{name: f"builtins.{name}" for name in _BUILTIN_TYPES},
    **{name: f"typing.{name}" for name in _TYPING_TYPES},
    **{name: f"datetime.{name}" for name in _DATETIME_TYPES},
    **{name: f"pydantic.{name}" for name in _PYDANTIC_TYPES},
    **{name: f"annotated_types.{name}" for name in _CONSTRAINTS},
    "Path": "pathlib.Path",
}
"""Short name to qualified name; a name that the notebook imports is looked up by the latter."""

_ORIGINS = {
    **{origin: origin for origin in _ALLOWED.values()},
    "typing_extensions.Literal": "typing.Literal",
}
_ALLOWED_NODES = (
    ast.Name,
    ast.Attribute,
    ast.Load,
    ast.Subscript,
    ast.Tuple,
    ast.List,
    ast.BinOp,
    ast.BitOr,
    ast.Constant,
    ast.Call,
    ast.keyword,
    ast.UnaryOp,
    ast.USub,
)
_MODEL_CONFIG = ConfigDict(
    extra="forbid",
    validate_default=True,
    frozen=True,
    allow_inf_nan=False,  # JSON has neither, and a step key could not contain them
    protected_namespaces=(),
)
_BOUNDS = {
    "greater_than_equal": ("≥", "ge"),
    "less_than_equal": ("≤", "le"),
    "greater_than": (">", "gt"),
    "less_than": ("<", "lt"),
}


def parameters_model(
    source: str, *, where: str, imports: Mapping[str, str] | None = None
) -> type[BaseModel]:
    """A pydantic model of a parameters cell.

    Args:
        source: The cell's code.
        where: The notebook's name, for errors.
        imports: What names in the notebook stand for, see `imports_of_cells`.

    Raises:
        ContractError: The cell holds something other than annotated literals.
        ParameterError: A default is not of its type.
    """
    fields: dict[str, Any] = {}
    for statement in _parse_cell(source, where):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            raise _cell_error("only annotated assignments are allowed", statement, where)
        if statement.value is None:
            raise _cell_error("a parameter needs a default", statement, where)
        name = statement.target.id
        if name in fields or name.startswith("_"):
            what = "is defined twice" if name in fields else "cannot start with an underscore"
            raise _cell_error(f"parameter {name!r} {what}", statement, where)
        annotation = _read_annotation(statement.annotation, imports or {}, where)
        try:
            default = ast.literal_eval(statement.value)
        except ValueError as error:
            raise _cell_error("a default must be a literal", statement, where) from error
        fields[name] = (annotation, default)
    try:
        model = _create_model(_MODEL_CONFIG, fields)
    except (TypeError, ValueError, NameError, AttributeError, PydanticUserError) as error:
        reason = str(error).splitlines()[0]
        raise ContractError(
            f"invalid parameters: {reason}", where=f"{where}, parameters cell"
        ) from error
    validate_parameters(model, {}, where=where)
    return model


def untyped_parameters_model(source: str) -> type[BaseModel]:
    """The names that the parameters cell of a notebook without contract assigns, of any type.

    Unknown names are rejected. A default that is not a literal is left to the cell itself.
    """
    fields: dict[str, Any] = {}
    try:
        statements = ast.parse(_MAGIC.sub(r"\1pass", source)).body
    except SyntaxError:  # a cell magic, or Python 2: papermill runs the cell all the same
        statements = []
    for statement in statements:  # grows while blocks are found
        if isinstance(statement, ast.If | ast.Try | ast.With):
            blocks = ("body", "orelse", "handlers", "finalbody")
            statements += [one for block in blocks for one in getattr(statement, block, ())]
        elif isinstance(statement, ast.ExceptHandler):
            statements += statement.body
        if isinstance(statement, ast.Assign):
            for target in statement.targets:  # of `left, right = 1, 2` as well
                names = (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
                if isinstance(target, ast.Name | ast.Tuple | ast.List):
                    fields.update(dict.fromkeys(names, (Any, None)))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            fields[statement.target.id] = (Any, None)
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    return _create_model(config, fields)


def _create_model(config: ConfigDict, fields: dict[str, Any]) -> type[BaseModel]:
    with warnings.catch_warnings():
        # A parameter may be named like a method of pydantic's that nobody calls, such as `schema`.
        warnings.filterwarnings("ignore", message="Field name .* shadows an attribute")
        model: type[BaseModel] = create_model("Parameters", __config__=config, **fields)
    return model


def require_no_secrets(
    values: Mapping[str, Any], secrets: Iterable[str] = (), *, where: str
) -> None:
    """Refuse values that are, or look like, secrets: parameters are kept in records and logs.

    Args:
        values: Parameters.
        secrets: Environment variables that contracts declare as secrets.
        where: For the message.

    Raises:
        ParameterError: Such a value, or a text that is not UTF-8; the message has its name only.
    """
    for name, value in values.items():
        if not _is_utf8(value):
            raise ParameterError(
                f"parameter {name!r} is not text in UTF-8 and cannot be recorded",
                where=where,
                hint="Rename the file, or set the terminal to UTF-8",
            )
    known = secret_scan.known_in_environment()
    known |= {name: os.environ[name] for name in secrets if os.environ.get(name)}
    for name, value in values.items():
        if reason := secret_scan.secret_in_value(name, value, known):
            variable = name.upper() if name.isidentifier() else "NAME"
            raise ParameterError(
                f"parameter {name!r} {reason}, and parameters are stored in records and logs",
                where=where,
                hint=f"Pass it by reference, as ${{env:{variable}}}, declare {variable} under "
                f"`secrets` in the notebook's contract, and read it with step.secret({name})",
            )


def _is_utf8(value: Any) -> bool:
    """Whether all texts in ``value`` are; the system passes other bytes as half characters."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    return not isinstance(value, list | tuple | set | frozenset) or all(map(_is_utf8, value))


def validate_parameters(model: type[BaseModel], given: Json, *, where: str) -> Json:
    """All parameters as JSON values, defaults filled in; of a model, only the fields given.

    Raises:
        ParameterError: Unknown names, invalid values, or numbers that a record cannot hold; the
            message lists each of them.
    """
    given = {unicodedata.normalize("NFKC", name): value for name, value in given.items()}
    for name, value in given.items():  # pydantic takes `yes` in YAML for the number 1
        field = model.model_fields.get(name)
        types = {field.annotation, *get_args(field.annotation)} if field else set()
        if isinstance(value, bool) and types & {int, float} and bool not in types:
            raise ParameterError(
                f"parameter {name!r} must be a number, got {value}",
                where=where,
                hint="In YAML, yes, no, on and off are flags: put text in quotes",
            )
    try:
        checked = model.model_validate(given)
        _check_recordable(checked.model_dump(), where)
        values = checked.model_dump(mode="json")
        for name, value in checked:
            if isinstance(value, BaseModel):  # what is not given is the notebook's to choose
                values[name] = value.model_dump(mode="json", exclude_unset=True)
        return values
    except ValidationError as error:
        problems = error.errors()
        unknown = [str(p["loc"][0]) for p in problems if p["type"] == "extra_forbidden"]
        raise ParameterError(
            "; ".join(_describe_problem(problem) for problem in problems),
            where=where,
            hint=did_you_mean(unknown[0], model.model_fields)
            if unknown
            else "Correct the value; put text in quotes"
            if any(problem["type"] == "string_type" for problem in problems)
            else None,
        ) from error


def _check_recordable(values: Json, where: str) -> None:
    """Reject numbers that JSON would change in silence: NaN becomes null, 2^53 + 1 another number.

    Raises:
        ParameterError: A value is or contains such a number.
    """
    problems = []
    for name, value in values.items():
        number = _unrecordable_number(value)
        if number is not None:
            limit = "an integer of 2^53 or more" if isinstance(number, int) else "not a number"
            problems.append(f"parameter {name!r}: {number} is {limit} and cannot be recorded")
    if problems:
        raise ParameterError(
            "; ".join(problems),
            where=where,
            hint="Pass it as text, such as '1e30' or 'nan', and convert it in the notebook",
        )


def _unrecordable_number(value: Any) -> float | int | None:
    """The first number in ``value`` that JSON cannot hold exactly."""
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    if isinstance(value, int):
        return value if abs(value) >= _MAX_EXACT_INTEGER else None
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        numbers = (_unrecordable_number(each) for each in value)
        return next((number for number in numbers if number is not None), None)
    return None


def describe_value_error(problem: Any) -> str:
    """One of pydantic's errors in a few words, such as ``must be ≥ 1, got 0``."""
    if problem["type"] in _BOUNDS:
        sign, key = _BOUNDS[problem["type"]]
        bound = problem["ctx"][key]
        message = f"must be {sign} {f'{bound:g}' if isinstance(bound, float) else bound}"
    else:
        message = problem["msg"].replace("Input should be", "must be")
    return f"{message}, got {problem['input']!r}"


def imports_of_cells(sources: Iterable[str]) -> dict[str, str]:
    """Name to qualified name for every import in these cells; cells with errors are skipped."""
    found: dict[str, str] = {}
    for source in sources:
        found.update(_imports_of_cell(source))
    return found


@lru_cache(maxsize=4096)  # notebooks of a team share their first cells
def _imports_of_cell(source: str) -> tuple[tuple[str, str], ...]:
    if "import" not in source:
        return ()
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found.append((alias.asname or alias.name, f"{node.module}.{alias.name}"))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found.append((alias.asname or first, alias.name if alias.asname else first))
    return tuple(found)


def _read_annotation(node: ast.expr, imports: Mapping[str, str], where: str) -> Any:
    """The type of an annotation; raises `ContractError` unless all of it is allowed."""
    for part in ast.walk(node):
        if not isinstance(part, _ALLOWED_NODES):
            raise _cell_error("this annotation is not allowed", node, where)
    reader = _AnnotationReader(node, imports, where)
    tree = reader.visit(copy.deepcopy(node))
    code = compile(ast.fix_missing_locations(ast.Expression(tree)), where, "eval")
    try:
        return eval(code, {"__builtins__": {}}, reader.objects)  # noqa: S307 - only what was allowed
    except (TypeError, ValueError) as error:
        raise _cell_error(f"invalid annotation ({error})", node, where) from error


def _cell_error(what: str, node: ast.AST, where: str) -> ContractError:
    line = getattr(node, "lineno", 0)
    text = ast.unparse(node)
    return ContractError(
        f"{what}: {text!r}",
        where=f"{where}, parameters cell, line {line}",
        hint="Write it like `epochs: int = 12`",
    )


class _AnnotationReader(ast.NodeTransformer):
    """Replaces each name, dotted or not, by a placeholder bound to the allowed object."""

    def __init__(self, node: ast.expr, imports: Mapping[str, str], where: str) -> None:
        self.objects: dict[str, Any] = {}
        self._whole = node
        self._imports = imports
        self._where = where
        self._strings_allowed = False

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return self._replace(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.Name:
        return self._replace(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if self._qualified_name(node.func).rpartition(".")[2] not in _CALLABLE:
            raise _cell_error("only Field(...) and constraints may be called", node, self._where)
        return self._visit_with_strings(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if self._qualified_name(node.value) == "typing.Literal":
            return self._visit_with_strings(node)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        # A string in place of a type is a forward reference, which pydantic would evaluate.
        if isinstance(node.value, str) and not self._strings_allowed:
            raise _cell_error("a type cannot be a string", self._whole, self._where)
        return node

    def _visit_with_strings(self, node: ast.AST) -> ast.AST:
        before, self._strings_allowed = self._strings_allowed, True
        visited = self.generic_visit(node)
        self._strings_allowed = before
        return visited

    def _replace(self, node: ast.expr) -> ast.Name:
        origin = self._qualified_name(node)
        name = f"_{len(self.objects)}"
        self.objects[name] = self._object(origin, node)
        return ast.copy_location(ast.Name(name, ast.Load()), node)

    def _qualified_name(self, node: ast.expr) -> str:
        """The qualified name of what a name or dotted name stands for."""
        text = ast.unparse(node)
        first, dot, rest = text.partition(".")
        if first in self._imports:
            return self._imports[first] + dot + rest
        return _ALLOWED.get(text, text)

    def _object(self, origin: str, node: ast.expr) -> Any:
        module, _, name = _ORIGINS.get(origin, origin).rpartition(".")
        if origin in _ORIGINS:
            return getattr(importlib.import_module(module), name)
        if module.partition(".")[0] == "workbench":
            return self._workbench_object(module, name, node)
        raise _cell_error(f"{ast.unparse(node)!r} is not an allowed type", self._whole, self._where)

    def _workbench_object(self, module: str, name: str, node: ast.expr) -> Any:
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise _cell_error(f"{module} has no {name}", node, self._where) from error
        is_model = isinstance(found, type) and issubclass(found, BaseModel | Enum)
        if is_model or is_dataclass(found):
            return found
        raise _cell_error(f"{name} is not a model, dataclass or enum", node, self._where)


def _parse_cell(source: str, where: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError as error:
        raise ContractError(
            f"the parameters cell is not valid Python: {error.msg}",
            where=f"{where}, parameters cell, line {error.lineno}",
            hint="It holds annotated literals only, like `epochs: int = 12`",
        ) from error


def _describe_problem(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown parameter {name!r}"
    return f"parameter {name!r} {describe_value_error(problem)}"
