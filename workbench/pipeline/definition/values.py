"""The values in a pipeline: parameters from texts, and what ``${…}`` stands for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import ContractError, ParameterError
from workbench.pipeline.contracts.parameters import nearest
from workbench.pipeline.definition.file import PipelineDefinition, PipelineParameter

Json = dict[str, Any]

_REFERENCE = re.compile(r"\$\{(env:\w+|[\w.]+)(?:\|([^}]*))?\}")
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE", re.IGNORECASE
)
_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def resolve_parameters(definition: PipelineDefinition, given: Mapping[str, Any]) -> Json:
    """Pipeline parameters from ``-p key=value`` texts and defaults, typed and checked."""
    known = list(definition.parameters)
    for name in given:
        if name not in known:
            raise ParameterError(
                f"unknown parameter {name!r}{nearest(name, known)}",
                where=definition.name,
                hint=f"Its parameters are: {', '.join(known) or 'none'}",
            )
    values: Json = {}
    for name, declared in definition.parameters.items():
        value: Any = given.get(name, declared.default)
        if name not in given:
            value = substitute(value, values)
        values[name] = _typed(name, value, declared)
    return values


def substitute(value: Any, known: Mapping[str, Any]) -> Any:
    """``value`` with every ``${…}`` inside it replaced, through lists and mappings."""
    if isinstance(value, dict):
        return {key: substitute(part, known) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [substitute(part, known) for part in value]
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole and (not whole.group(2) or whole.group(1).startswith("env:")):
        return _lookup(whole, known)
    return _REFERENCE.sub(lambda match: _text(match, known), value)


def _text(match: re.Match[str], known: Mapping[str, Any]) -> str:
    text = str(_lookup(match, known))
    if match.group(2) is None or match.group(1).startswith("env:"):
        return text
    if match.group(2) == "stem":
        return Path(text).stem
    raise ContractError(
        f"unknown filter {match.group(2)!r}", where=match.group(0), hint="The only one is `stem`"
    )


def _lookup(match: re.Match[str], known: Mapping[str, Any]) -> Any:
    name = match.group(1)
    if name.startswith("env:"):
        return _variable(name.removeprefix("env:"), match.group(2), match.group(0))
    if name in known:
        return known[name]
    if name.startswith("each."):
        raise ContractError(
            f"{match.group(0)} stands for nothing here",
            hint="Give the step `for_each` with this key",
        )
    raise ContractError(f"{match.group(0)} is not a pipeline parameter{nearest(name, list(known))}")


def _variable(name: str, fallback: str | None, where: str) -> str:
    if _SECRET_NAME.search(name):
        raise ContractError(
            f"{name} looks like a secret, and a parameter is written down everywhere",
            where=where,
            hint="Declare it under `secrets` in the notebook's contract and use step.secret(…)",
        )
    value = os.environ.get(name, fallback)
    if value is None:
        raise ParameterError(
            f"the environment variable {name} is not set",
            where=where,
            hint=f"Set it, or write ${{env:{name}|fallback}}",
        )
    return value


def _typed(name: str, value: Any, declared: PipelineParameter) -> Any:
    if value is None:
        raise ParameterError(f"parameter {name!r} is required", hint=f"Pass -p {name}=…")
    if declared.type != "list":
        return _single(name, value, declared.type, declared)
    items = [_single(name, item, declared.items, declared) for item in _listed(name, value)]
    if not items:
        raise ParameterError(f"parameter {name!r} is an empty list", hint=f"Pass -p {name}=a,b")
    return items


def _listed(name: str, value: Any) -> list[Any]:
    """A list from JSON text (``[1, 2]``) or from items with commas between (``1,2``)."""
    if isinstance(value, list | tuple):
        return list(value)
    text = str(value).strip()
    if not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        listed: list[Any] = json.loads(text)
    except ValueError as error:
        raise ParameterError(f"parameter {name!r} is not a JSON list: {error}") from error
    return listed


def _single(name: str, value: Any, kind: str, declared: PipelineParameter) -> Any:
    try:
        value = _convert(value, kind)
    except (ValueError, TypeError) as error:
        raise ParameterError(f"parameter {name!r} must be {kind}, got {value!r}") from error
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
    if kind == "int" and isinstance(value, float) and value != int(value):
        raise ValueError(value)
    return _TYPES[kind](value)
