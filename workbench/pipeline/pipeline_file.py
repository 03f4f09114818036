"""Pipeline files: which notebooks, joined how, with which parameters.

    steps:
      train:
        notebook: train@production          # a promoted version; without @, the notebook as it is
        for_each: {seed: "${seeds}"}        # once for each seed: train[0], train[1] …
        parameters: {seed: "${each.seed}"}
        inputs: {dataset: ingest.dataset}   # STEP.OUTPUT of a step above, or champion:MODEL
      compare:
        inputs: {models: train.checkpoint}  # all of them, if the input is declared with `many`

``${name}`` in a value stands for a pipeline parameter, ``${each.key}`` for the element of a
fan-out, ``${env:NAME}`` or ``${env:NAME|fallback}`` for an environment variable, and
``${name|stem}`` for the last part of a path without its ending. A value that is nothing but one
reference keeps the type of what it stands for.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.core.errors import ContractError, ParameterError
from workbench.pipeline.parameters import did_you_mean

Json = dict[str, Any]
RetryKind = Literal["service", "kernel-died", "out-of-memory", "timed-out", "crashed", "user-error"]
VerdictName = Literal["PASS", "FAIL", "INSUFFICIENT EVIDENCE"]


class _FilePart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PipelineParameter(_FilePart):
    """A typed parameter; ``minimum``, ``maximum`` and ``choices`` bound each item of a list."""

    type: Literal["str", "int", "float", "bool", "list"] = "str"
    items: Literal["str", "int", "float", "bool"] = "str"
    default: str | int | float | bool | tuple[str | int | float | bool, ...] | None = None
    choices: tuple[str | int, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    help: str = ""


class Condition(_FilePart):
    """Run the step only when the gate report ``gates`` (``STEP.OUTPUT``) has such a verdict."""

    gates: str
    verdict: tuple[VerdictName, ...] = ("PASS",)


class StepResources(_FilePart):
    """What this step needs here; what is not given is taken from the notebook's contract."""

    threads: int | None = Field(default=None, ge=1)
    memory_gib: float | None = Field(default=None, gt=0)
    gpus: float | None = Field(default=None, ge=0)
    timeout_s: float | None = Field(default=None, gt=0)


class StepDefinition(_FilePart):
    """One step.

    Attributes:
        notebook: Stem of a notebook, or ``NAME@VERSION`` or ``NAME@ALIAS`` of a promoted one;
            the step's own name when absent.
        inputs: Input to ``STEP.OUTPUT`` of a step above, or ``champion:MODEL``.
        for_each: Key to the list of its values (several keys: every combination), or the name of a
            step above that is itself run for each, to follow it one to one.
        after: Steps above that must have ended well, although nothing is read from them.
        when: A condition on a gate report.
        retries: How often to try again after which kind of failure.
        backoff_s: Pause before the first retry; it doubles with each.
        cache: ``never`` for steps that are run for their side effects.
    """

    notebook: str | None = None
    inputs: dict[str, str] = {}
    parameters: Json = {}
    for_each: str | dict[str, Any] | None = None
    after: tuple[str, ...] = ()
    when: Condition | None = None
    resources: StepResources = StepResources()
    retries: dict[RetryKind, int] = {"service": 1}
    backoff_s: float = Field(default=1.0, ge=0)
    cache: Literal["auto", "never"] = "auto"


class Schedule(_FilePart):
    """When schedulers should run the pipeline: a cron expression of five fields."""

    cron: str
    timezone: str = "UTC"


class PipelineDefinition(_FilePart):
    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[\w.-]+$")
    help: str = ""
    notebooks: str = "../notebooks/steps"
    parameters: dict[str, PipelineParameter] = {}
    schedule: Schedule | None = None
    steps: dict[str, StepDefinition]


def read_pipeline_file(path: Path) -> PipelineDefinition:
    """Read a pipeline file; raises `ContractError` that names the key and what was expected."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _yaml_loader())  # noqa: S506 - safe loaders
        return PipelineDefinition.model_validate(content)
    except FileNotFoundError as error:
        raise ContractError("no such pipeline file", where=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ContractError(f"the file is not valid YAML: {error}", where=path) from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ContractError(f"{key}: {problem['msg']}", where=path) from error


def pipeline_json_schema() -> Json:
    """The form of a pipeline file, for editors that complete and check it."""
    schema = PipelineDefinition.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _yaml_loader() -> Any:
    """The safe loader, in C where it was built: ten times as fast on a file of a thousand steps."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


# ---- The values in a pipeline: parameters from texts, and what ``${…}`` stands for.


_REFERENCE = re.compile(r"\$\{(env:\w+|[\w.]+)(?:\|([^}]*))?\}")
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE", re.IGNORECASE
)
_ITEM_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_TRUE_WORDS, _FALSE_WORDS = ("true", "yes", "1"), ("false", "no", "0")


def resolve_parameters(definition: PipelineDefinition, given: Mapping[str, Any]) -> Json:
    """Pipeline parameters from ``-p key=value`` texts and defaults, typed and checked."""
    known = list(definition.parameters)
    for name in given:
        if name not in known:
            raise ParameterError(
                f"unknown parameter {name!r}{did_you_mean(name, known)}",
                where=definition.name,
                hint=f"Its parameters are: {', '.join(known) or 'none'}",
            )
    values: Json = {}
    for name, declared in definition.parameters.items():
        value: Any = given.get(name, declared.default)
        if name not in given:
            value = substitute(value, values)
        values[name] = _typed_value(name, value, declared)
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
        return _resolve_reference(whole, known)
    return _REFERENCE.sub(lambda match: _resolve_text(match, known), value)


def _resolve_text(match: re.Match[str], known: Mapping[str, Any]) -> str:
    text = str(_resolve_reference(match, known))
    if match.group(2) is None or match.group(1).startswith("env:"):
        return text
    if match.group(2) == "stem":
        return Path(text).stem
    raise ContractError(
        f"unknown filter {match.group(2)!r}", where=match.group(0), hint="The only one is `stem`"
    )


def _resolve_reference(match: re.Match[str], known: Mapping[str, Any]) -> Any:
    name = match.group(1)
    if name.startswith("env:"):
        return _environment_variable(name.removeprefix("env:"), match.group(2), match.group(0))
    if name in known:
        return known[name]
    if name.startswith("each."):
        raise ContractError(
            f"{match.group(0)} stands for nothing here",
            hint="Give the step `for_each` with this key",
        )
    raise ContractError(
        f"{match.group(0)} is not a pipeline parameter{did_you_mean(name, list(known))}"
    )


def _environment_variable(name: str, fallback: str | None, where: str) -> str:
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


def _typed_value(name: str, value: Any, declared: PipelineParameter) -> Any:
    if value is None:
        raise ParameterError(f"parameter {name!r} is required", hint=f"Pass -p {name}=…")
    if declared.type != "list":
        return _typed_item(name, value, declared.type, declared)
    items = [_typed_item(name, item, declared.items, declared) for item in _parse_list(name, value)]
    if not items:
        raise ParameterError(f"parameter {name!r} is an empty list", hint=f"Pass -p {name}=a,b")
    return items


def _parse_list(name: str, value: Any) -> list[Any]:
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


def _typed_item(name: str, value: Any, kind: str, declared: PipelineParameter) -> Any:
    try:
        value = _convert_item(value, kind)
    except (ValueError, TypeError) as error:
        raise ParameterError(f"parameter {name!r} must be {kind}, got {value!r}") from error
    if declared.choices and value not in declared.choices:
        choices = [str(choice) for choice in declared.choices]
        raise ParameterError(
            f"parameter {name!r} is {value!r}{did_you_mean(str(value), choices)}",
            hint=f"It can be: {', '.join(choices)}",
        )
    low, high = declared.minimum, declared.maximum
    if (low is not None and value < low) or (high is not None and value > high):
        raise ParameterError(f"parameter {name!r} is {value}, outside {low} … {high}")
    return value


def _convert_item(value: Any, kind: str) -> Any:
    if kind == "bool" and isinstance(value, str):
        if value.lower() not in _TRUE_WORDS + _FALSE_WORDS:
            raise ValueError(value)
        return value.lower() in _TRUE_WORDS
    if kind == "int" and isinstance(value, float) and value != int(value):
        raise ValueError(value)
    return _ITEM_TYPES[kind](value)
