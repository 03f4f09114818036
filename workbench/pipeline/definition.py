"""Pipeline files: which notebooks, joined how, with which parameters.

``${name}`` in a value stands for a pipeline parameter and ``${name|stem}`` for the last part of a
path without its ending. A value that is nothing but ``${name}`` keeps the parameter's type.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.errors import ContractError, ParameterError
from workbench.pipeline.parameters import nearest

Json = dict[str, Any]

_REFERENCE = re.compile(r"\$\{(\w+)(?:\|(\w+))?\}")
_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PipelineParameter(_Declared):
    type: Literal["str", "int", "float", "bool"] = "str"
    default: str | int | float | bool | None = None
    choices: tuple[str | int, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    help: str = ""


class StepDefinition(_Declared):
    """One step: ``inputs`` name ``step.output`` of a step above, or ``champion:MODEL``."""

    notebook: str | None = None
    inputs: dict[str, str] = {}
    parameters: Json = {}
    timeout_s: float | None = None


class PipelineDefinition(_Declared):
    schema_version: Literal[1] = 1
    name: str
    help: str = ""
    notebooks: str = "../notebooks/steps"
    parameters: dict[str, PipelineParameter] = {}
    steps: dict[str, StepDefinition]


def read(path: Path) -> PipelineDefinition:
    """Read a pipeline file; raises `ContractError` that names the key and what was expected."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return PipelineDefinition.model_validate(content)
    except FileNotFoundError as error:
        raise ContractError("no such pipeline file", where=path) from error
    except yaml.YAMLError as error:
        raise ContractError(f"the file is not valid YAML: {error}", where=path) from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ContractError(f"{key}: {problem['msg']}", where=path) from error


def resolve_parameters(definition: PipelineDefinition, given: dict[str, str]) -> Json:
    """Pipeline parameters from ``-p key=value`` texts and defaults, typed and checked."""
    known = list(definition.parameters)
    for name in given:
        if name not in known:
            raise ParameterError(
                f"unknown parameter {name!r}{nearest(name, known)}",
                where=definition.name,
                hint=f"Its parameters are: {', '.join(known)}",
            )
    values: Json = {}
    for name, declared in definition.parameters.items():
        value: Any = given.get(name, declared.default)
        if isinstance(value, str) and name not in given:
            value = substitute(value, values)
        values[name] = _typed(name, value, declared)
    return values


def with_inputs(definition: PipelineDefinition, parameters: Json) -> PipelineDefinition:
    """The definition with ``${…}`` replaced in what the inputs of its steps are joined to."""
    steps = {
        name: step.model_copy(update={"inputs": substitute(step.inputs, parameters)})
        for name, step in definition.steps.items()
    }
    return definition.model_copy(update={"steps": steps})


def substitute(value: Any, parameters: Json) -> Any:
    """``value`` with every ``${…}`` inside it replaced, through lists and mappings."""
    if isinstance(value, dict):
        return {key: substitute(part, parameters) for key, part in value.items()}
    if isinstance(value, list):
        return [substitute(part, parameters) for part in value]
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole and not whole.group(2):
        return _lookup(whole.group(1), parameters)
    return _REFERENCE.sub(lambda match: _text(match, parameters), value)


def _text(match: re.Match[str], parameters: Json) -> str:
    text = str(_lookup(match.group(1), parameters))
    if match.group(2) is None:
        return text
    if match.group(2) == "stem":
        return Path(text).stem
    raise ContractError(f"unknown filter {match.group(2)!r}", where=match.group(0))


def _lookup(name: str, parameters: Json) -> Any:
    if name not in parameters:
        raise ContractError(
            f"${{{name}}} is not a pipeline parameter{nearest(name, list(parameters))}"
        )
    return parameters[name]


def _typed(name: str, value: Any, declared: PipelineParameter) -> Any:
    if value is None:
        raise ParameterError(f"parameter {name!r} is required", hint=f"Pass -p {name}=…")
    try:
        value = _convert(value, declared.type)
    except ValueError as error:
        raise ParameterError(
            f"parameter {name!r} must be {declared.type}, got {value!r}"
        ) from error
    if declared.choices and value not in declared.choices:
        choices = [str(choice) for choice in declared.choices]
        raise ParameterError(
            f"parameter {name!r} is {value!r}{nearest(str(value), choices)}",
            hint=f"It can be: {', '.join(choices)}",
        )
    low, high = declared.minimum, declared.maximum
    if (low is not None and value < low) or (high is not None and value > high):
        raise ParameterError(f"parameter {name!r} is {value}, outside {low} … {high}")
    return value


def _convert(value: Any, kind: str) -> Any:
    if kind == "bool" and isinstance(value, str):
        if value.lower() not in _TRUE + _FALSE:
            raise ValueError(value)
        return value.lower() in _TRUE
    return _TYPES[kind](value)
