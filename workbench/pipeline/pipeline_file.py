"""Pipeline files: which notebooks run, how they are connected, with which parameters.

    steps:
      train:
        notebook: train@production          # a promoted version; without @, the notebook as it is
        for_each: {seed: "${seeds}"}        # once for each seed: train[0], train[1] …
        parameters: {seed: "${each.seed}"}
        inputs: {dataset: ingest.dataset}   # STEP.OUTPUT, champion:MODEL or record:REFERENCE
      compare:
        inputs: {models: train.checkpoint}  # all of them, if the input is declared with `many`

``${name}`` in a value stands for a pipeline parameter, ``${each.key}`` for the value of a fan-out,
``${env:NAME}`` or ``${env:NAME|fallback}`` for an environment variable, and ``${name|stem}`` for
the last part of a path without its extension. A value that is exactly one reference keeps its
type. ``${env:NAME}`` of a variable that holds a secret stays a reference for `Step.secret`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from workbench.core import secret_scan
from workbench.core.errors import ContractError, ParameterError
from workbench.core.names import check_name, check_path
from workbench.core.parsing import read_yaml
from workbench.core.text import did_you_mean, path_hint
from workbench.core.types import Json
from workbench.pipeline import parameters
from workbench.pipeline.parameters import describe_value_error

__all__ = ()

_RetryKind = Literal[
    "service", "kernel-died", "out-of-memory", "timed-out", "crashed", "user-error"
]
_VerdictName = Literal["PASS", "FAIL", "INSUFFICIENT EVIDENCE"]

_REFERENCE = re.compile(r"\$\{(env:\w+|[\w.]+)(?:\|([^}]*))?\}")
_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}


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
    """Run the step only if the gate report ``gates`` (``STEP.OUTPUT``) has such a verdict."""

    gates: str
    verdict: tuple[_VerdictName, ...] = ("PASS",)


class StepResources(_FilePart):
    """Resources of this step; what is not given is taken from the notebook's contract."""

    threads: int | None = Field(default=None, ge=1)
    memory_gib: float | None = Field(default=None, gt=0)
    gpus: float | None = Field(default=None, ge=0)
    timeout_s: float | None = Field(default=None, gt=0)


class StepDefinition(_FilePart):
    """One step.

    Attributes:
        notebook: Stem of a notebook, or ``NAME@VERSION`` or ``NAME@ALIAS`` of a promoted one;
            default: the step's name.
        inputs: Input to ``STEP.OUTPUT`` of an earlier step, ``champion:MODEL``, ``incidents`` (all
            active ones), or, for what is there already, ``record:REFERENCE``, as ``record:name@2``.
        for_each: Key to the list of its values (several keys: every combination), or the name of an
            earlier step with a fan-out, to follow it one to one.
        after: Earlier steps that must have succeeded although nothing is read from them.
        when: A condition on a gate report.
        retries: Number of retries by kind of failure.
        backoff_s: Pause before the first retry, in seconds; doubles with each retry.
        cache: ``never`` for steps that are run for their side effects.
    """

    notebook: str | None = None
    inputs: dict[str, str] = {}
    parameters: Json = {}
    for_each: str | dict[str, Any] | None = None
    after: tuple[str, ...] = ()
    when: Condition | None = None
    resources: StepResources = StepResources()
    retries: dict[_RetryKind, int] = {"service": 1}
    backoff_s: float = Field(default=1.0, ge=0)
    cache: Literal["auto", "never"] = "auto"


class Schedule(_FilePart):
    """When a scheduler should run the pipeline: a cron expression of five fields."""

    cron: str
    timezone: str = "UTC"


class PipelineDefinition(_FilePart):
    """A pipeline file. ``notebooks`` is a folder relative to the file."""

    schema_version: Literal[1] = 1
    name: str
    help: str = ""
    notebooks: str = "../notebooks/steps"
    parameters: dict[str, PipelineParameter] = {}
    schedule: Schedule | None = None
    steps: dict[str, StepDefinition]


def read_pipeline_file(path: Path) -> PipelineDefinition:
    """Read a pipeline file; raises `ContractError` that names the key and what was expected."""
    try:
        content = read_yaml(path)
        definition = PipelineDefinition.model_validate(content)
        _check_names(definition)
        return definition
    except ParameterError as error:
        raise ContractError(error.what, where=path) from error
    except FileNotFoundError as error:
        raise ContractError("no such pipeline file", where=path, hint=path_hint(path)) from error
    except OSError as error:
        raise ContractError(
            f"cannot read the pipeline file: {error.strerror or error}",
            where=path,
            hint="Name a YAML file such as pipelines/data_engine.yaml",
        ) from error
    except yaml.YAMLError as error:
        raise ContractError(f"the file is not valid YAML: {error}", where=path) from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ContractError(f"{key}: {problem['msg']}", where=path) from error


def _check_names(definition: PipelineDefinition) -> None:
    """Steps name folders of a run, and all names stand in files that schedulers read."""
    check_name(definition.name, "pipeline name")
    for name in definition.parameters:
        check_name(name, "parameter name")
    for name, step in definition.steps.items():
        check_name(name, "step name")
        if "." in name:  # STEP.OUTPUT would be ambiguous, and a step called run.json possible
            raise ParameterError(f"invalid step name {name!r}: it has a dot")
        parts = (step.notebook or name).split("/")
        check_path("/".join(part for part in parts if part != ".."), "notebook of a step")
        for key in step.for_each if isinstance(step.for_each, dict) else ():
            check_name(key, "key of for_each")


def pipeline_json_schema() -> Json:
    """The JSON schema of pipeline files, for editors that complete and check them."""
    schema = PipelineDefinition.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def resolve_parameters(definition: PipelineDefinition, given: Mapping[str, Any]) -> Json:
    """The values of all pipeline parameters.

    Args:
        definition: The pipeline file.
        given: Values by name; strings from a command line are converted to the declared type.

    Raises:
        ParameterError: A name is unknown, or a value is missing or invalid.
    """
    known = list(definition.parameters)
    for name in given:
        if name not in known:
            raise ParameterError(
                f"unknown parameter {name!r}",
                where=definition.name,
                hint=did_you_mean(name, known),
            )
    values: Json = {}
    for name, declared in definition.parameters.items():
        value = given[name] if name in given else substitute(declared.default, values)
        parameters.require_no_secrets({name: value}, where=definition.name)
        values[name] = _validated(name, value, declared)
    return values


def substitute(value: Any, known: Mapping[str, Any], secrets: Collection[str] = ()) -> Any:
    """``value`` with every ``${…}`` inside it replaced, in lists and mappings too.

    Args:
        value: What the pipeline file says.
        known: Pipeline parameters, and the fan-out's values as ``each.KEY``.
        secrets: Environment variables that are secrets beside those whose name says so:
            ``${env:NAME}`` alone stays a reference, see `Step.secret`.

    Raises:
        ContractError: A reference or filter is unknown, or names a secret.
        ParameterError: An environment variable is not set.
    """
    if isinstance(value, dict):
        return {key: substitute(part, known, secrets) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [substitute(part, known, secrets) for part in value]
    if not isinstance(value, str):
        return value
    reference = secret_scan.REFERENCE.match(value)
    if reference and (reference[1] in secrets or secret_scan.is_secret_name(reference[1])):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole and (not whole.group(2) or whole.group(1).startswith("env:")):
        return _resolve(whole, known)
    return _REFERENCE.sub(lambda match: _resolve_as_text(match, known), value)


def _resolve_as_text(match: re.Match[str], known: Mapping[str, Any]) -> str:
    text = str(_resolve(match, known))
    if match.group(2) is None or match.group(1).startswith("env:"):
        return text
    if match.group(2) == "stem":
        return Path(text).stem
    raise ContractError(
        f"unknown filter {match.group(2)!r}",
        where=match.group(0),
        hint="The only filter is `stem`",
    )


def _resolve(match: re.Match[str], known: Mapping[str, Any]) -> Any:
    name = match.group(1)
    if name.startswith("env:"):
        return _environment_variable(name.removeprefix("env:"), match.group(2), match.group(0))
    if name in known:
        return known[name]
    if name.startswith("each."):
        raise ContractError(
            f"{match.group(0)} is not defined for this step",
            hint="Give the step `for_each` with this key",
        )
    raise ContractError(
        f"{match.group(0)} is not a pipeline parameter", hint=did_you_mean(name, known)
    )


def _environment_variable(name: str, fallback: str | None, where: str) -> str:
    if secret_scan.is_secret_name(name):
        raise ContractError(
            f"{name} looks like a secret, and parameters are stored in records and logs",
            where=where,
            hint="Write nothing but ${env:NAME} as the value, declare NAME under `secrets` in the "
            "notebook's contract, and use step.secret(…)",
        )
    value = os.environ.get(name, fallback)
    if value is None:
        raise ParameterError(
            f"environment variable {name} is not set",
            where=where,
            hint=f"Set it, or write ${{env:{name}|fallback}}",
        )
    return value


def _validated(name: str, value: Any, declared: PipelineParameter) -> Any:
    if value is None:
        raise ParameterError(f"parameter {name!r} is required", hint=f"Pass -p {name}=…")
    many = declared.type == "list"
    item: Any = _TYPES[declared.items if many else declared.type]
    adapter = TypeAdapter[Any](
        list[item] if many else item, config=ConfigDict(coerce_numbers_to_str=True)
    )
    try:
        converted = adapter.validate_python(_parse_list(name, value) if many else value)
    except ValidationError as error:
        problem = error.errors()[0]
        position = f"[{problem['loc'][0]}]" if problem["loc"] else ""
        raise ParameterError(
            f"parameter {name + position!r} {describe_value_error(problem)}"
        ) from error
    if many and not converted:
        raise ParameterError(f"parameter {name!r} is an empty list", hint=f"Pass -p {name}=a,b")
    for one in converted if many else [converted]:
        _check_allowed(name, one, declared)
    return converted


def _check_allowed(name: str, value: Any, declared: PipelineParameter) -> None:
    if declared.choices and value not in declared.choices:
        choices = [str(choice) for choice in declared.choices]
        raise ParameterError(
            f"parameter {name!r} cannot be {value!r}", hint=did_you_mean(str(value), choices)
        )
    low, high = declared.minimum, declared.maximum
    if low is not None and value < low:
        raise ParameterError(f"parameter {name!r} must be ≥ {low:g}, got {value}")
    if high is not None and value > high:
        raise ParameterError(f"parameter {name!r} must be ≤ {high:g}, got {value}")


def _parse_list(name: str, value: Any) -> list[Any]:
    """A list from JSON (``[1, 2]``) or from items separated by commas (``1,2``)."""
    if isinstance(value, list | tuple):
        return list(value)
    text = str(value).strip()
    if not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        items: list[Any] = json.loads(text)
    except ValueError as error:
        raise ParameterError(f"parameter {name!r} is not a valid JSON list: {error}") from error
    return items
