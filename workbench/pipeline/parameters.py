"""Typed parameters of a notebook, read from its ``parameters`` cell without executing it.

The cell holds annotated literals only (``epochs: int = 12``). Annotations may use built-in types and
containers, ``Literal``, ``Optional``, ``Union``, ``Path``, dates and times, ``Annotated`` with
constraints, pydantic's constrained types, and models, dataclasses and enums of a ``workbench``
module; everything else is rejected, so reading a contract never runs a notebook's code. A notebook
sees each value in its JSON form: a ``datetime`` is the string that ``datetime.fromisoformat`` reads, a
model is the mapping that ``Model(**value)`` takes.
"""

from __future__ import annotations

import ast
import copy
import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from workbench.core.errors import ContractError, ParameterError

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
"""Short name to where it lives; a name the notebook imports is looked up by the latter."""

_ORIGINS = {
    **{home: home for home in _ALLOWED.values()},
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
_PACKAGE = "workbench"


def imports_of_cells(sources: Iterable[str]) -> dict[str, str]:
    """Name to dotted origin for every import in these cells; broken cells are passed over."""
    found: dict[str, str] = {}
    for source in sources:
        found.update(_imports_of_cell(source))
    return found


@lru_cache(maxsize=4096)  # the notebooks of a team begin alike
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


def read_annotation(node: ast.expr, imports: Mapping[str, str], where: str) -> Any:
    """The type that ``node`` stands for; raises `ContractError` unless all of it is allowed."""
    for part in ast.walk(node):
        if not isinstance(part, _ALLOWED_NODES):
            raise cell_error("this annotation is not allowed", node, where)
    reader = _AnnotationReader(node, imports, where)
    tree = reader.visit(copy.deepcopy(node))
    code = compile(ast.fix_missing_locations(ast.Expression(tree)), where, "eval")
    try:
        return eval(code, {"__builtins__": {}}, reader.found)  # noqa: S307 - only what was allowed
    except (TypeError, ValueError) as error:
        raise cell_error(f"this annotation means nothing ({error})", node, where) from error


def cell_error(what: str, node: ast.AST, where: str) -> ContractError:
    """The error about a piece of a parameters cell."""
    line = getattr(node, "lineno", 0)
    text = ast.unparse(node)
    return ContractError(
        f"{what}: {text!r}",
        where=f"{where}, parameters cell, line {line}",
        hint="Write it like `epochs: int = 12`",
    )


class _AnnotationReader(ast.NodeTransformer):
    """Replaces each name, dotted or not, by one that stands for the allowed object it means."""

    def __init__(self, node: ast.expr, imports: Mapping[str, str], where: str) -> None:
        self.found: dict[str, Any] = {}
        self._whole = node
        self._imports = imports
        self._where = where
        self._text_allowed = False

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return self._replaced(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.Name:
        return self._replaced(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if self._home(node.func).rpartition(".")[2] not in _CALLABLE:
            raise cell_error("only Field(...) and constraints may be called", node, self._where)
        return self._with_text(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if self._home(node.value) == "typing.Literal":
            return self._with_text(node)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        # A text where a type belongs is a forward reference, which pydantic would evaluate.
        if isinstance(node.value, str) and not self._text_allowed:
            raise cell_error("a type cannot be a text", self._whole, self._where)
        return node

    def _with_text(self, node: ast.AST) -> ast.AST:
        before, self._text_allowed = self._text_allowed, True
        visited = self.generic_visit(node)
        self._text_allowed = before
        return visited

    def _replaced(self, node: ast.expr) -> ast.Name:
        home = self._home(node)
        name = f"_{len(self.found)}"
        self.found[name] = self._object(home, node)
        return ast.copy_location(ast.Name(name, ast.Load()), node)

    def _home(self, node: ast.expr) -> str:
        """Where the thing that a name or dotted name means is defined."""
        text = ast.unparse(node)
        first, dot, rest = text.partition(".")
        if first in self._imports:
            return self._imports[first] + dot + rest
        return _ALLOWED.get(text, text)

    def _object(self, home: str, node: ast.expr) -> Any:
        module, _, name = _ORIGINS.get(home, home).rpartition(".")
        if home in _ORIGINS:
            return getattr(importlib.import_module(module), name)
        if module.partition(".")[0] == _PACKAGE:
            return self._of_ours(module, name, node)
        raise cell_error(f"{ast.unparse(node)!r} is not an allowed type", self._whole, self._where)

    def _of_ours(self, module: str, name: str, node: ast.expr) -> Any:
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise cell_error(f"{module} has no {name}", node, self._where) from error
        is_model = isinstance(found, type) and issubclass(found, BaseModel | Enum)
        if is_model or is_dataclass(found):
            return found
        raise cell_error(f"{name} is no model, dataclass or enum", node, self._where)


# ---- Typed parameters of a notebook, read from its ``parameters`` cell without executing it.
#
# The cell holds annotated literals only (``epochs: int = 12``). Annotations may use what
# `parameter_types` lets pass; all else is refused, so that reading a contract can never run a
# notebook's code. A notebook sees each value in its JSON form, by hand and in production alike: a
# ``datetime`` is the text that ``datetime.fromisoformat`` reads, a model is the mapping that
# ``Model(**value)`` takes.


_MODEL_CONFIG = ConfigDict(
    extra="forbid",
    validate_default=True,
    frozen=True,
    allow_inf_nan=False,  # JSON has none, and a key could not name them
    protected_namespaces=(),
)


def parameters_model(
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
    for statement in _parse_cell(source, where):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            raise cell_error("only annotated assignments are allowed", statement, where)
        if statement.value is None:
            raise cell_error("a parameter needs a default", statement, where)
        name = statement.target.id
        if name in fields or name.startswith("_"):
            what = "is given twice" if name in fields else "cannot start with an underscore"
            raise cell_error(f"parameter {name!r} {what}", statement, where)
        annotation = read_annotation(statement.annotation, imports or {}, where)
        try:
            default = ast.literal_eval(statement.value)
        except ValueError as error:
            raise cell_error("a default must be a literal", statement, where) from error
        fields[name] = (annotation, default)
    model = _create_model(fields, where)
    validate_parameters(model, {}, where=where)
    return model


def parameters_json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a notebook's parameters, for editors and forms."""
    return model.model_json_schema()


def validate_parameters(
    model: type[BaseModel], given: dict[str, Any], *, where: str
) -> dict[str, Any]:
    """All parameters as JSON values, defaults filled in; raises `ParameterError` naming each."""
    try:
        return model.model_validate(given).model_dump(mode="json")
    except ValidationError as error:
        lines = [_error_message(problem, list(model.model_fields)) for problem in error.errors()]
        raise ParameterError(
            "; ".join(lines), where=where, hint=_known_parameters_hint(model)
        ) from error


def did_you_mean(name: str, known: list[str]) -> str:
    """`` (did you mean …?)`` when something known is spelled much like ``name``."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _parse_cell(source: str, where: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError as error:
        raise ContractError(
            f"the parameters cell is not Python: {error.msg}",
            where=f"{where}, parameters cell, line {error.lineno}",
            hint="It holds annotated literals only, like `epochs: int = 12`",
        ) from error


def _create_model(fields: dict[str, Any], where: str) -> type[BaseModel]:
    try:
        model: type[BaseModel] = create_model("Parameters", __config__=_MODEL_CONFIG, **fields)
    except (TypeError, ValueError, NameError, AttributeError, PydanticUserError) as error:
        first = str(error).splitlines()[0]
        raise ContractError(
            f"the parameters make no model: {first}", where=f"{where}, parameters cell"
        ) from error
    return model


def _error_message(problem: Any, known: list[str]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown parameter {name!r}{did_you_mean(name, known)}"
    return f"parameter {name!r}: {problem['msg']}, got {problem['input']!r}"


def _known_parameters_hint(model: type[BaseModel]) -> str:
    names = ", ".join(model.model_fields) or "none"
    return f"Its parameters are: {names}"


# ---- Notebooks written for papermill alone: no contract, and parameters without types.
#
# They run as they are. Nothing says what they read or make, so a pipeline can order them but not join
# them, and their check lists what is missing for a step.


Json = dict[str, Any]


def has_no_contract(content: Json) -> bool:
    """Whether a notebook has no contract at all."""
    return "workbench" not in content["metadata"]


def require_python(content: Json, where: object) -> None:
    """Raises `ContractError` for a notebook in another language: steps run in our own kernel."""
    metadata = content["metadata"]
    language = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get(
        "language"
    )
    if language and str(language).lower() not in ("python", "ipython"):
        raise ContractError(f"the notebook is written in {language}; steps are Python", where=where)


def untyped_parameters_model(source: str) -> type[BaseModel]:
    """The names that a parameters cell assigns, each of any type; unknown names are refused.

    A default counts where it is a literal; another one is left to the cell itself.
    """
    fields: Json = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a magic, or Python 2: papermill runs the cell all the same
        statements = []
    for statement in statements:
        if isinstance(statement, ast.Assign):
            fields.update({t.id: (Any, None) for t in statement.targets if isinstance(t, ast.Name)})
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            fields[statement.target.id] = (Any, None)
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    model: type[BaseModel] = create_model("Parameters", __config__=config, **fields)
    return model
