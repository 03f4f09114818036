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

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.errors import ContractError

Json = dict[str, Any]
Retriable = Literal["service", "kernel-died", "out-of-memory", "timed-out", "crashed", "user-error"]
VerdictWord = Literal["PASS", "FAIL", "INSUFFICIENT EVIDENCE"]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PipelineParameter(_Declared):
    """A typed parameter; ``minimum``, ``maximum`` and ``choices`` bound each item of a list."""

    type: Literal["str", "int", "float", "bool", "list"] = "str"
    items: Literal["str", "int", "float", "bool"] = "str"
    default: str | int | float | bool | tuple[str | int | float | bool, ...] | None = None
    choices: tuple[str | int, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    help: str = ""


class Condition(_Declared):
    """Run the step only when the gate report ``gates`` (``STEP.OUTPUT``) has such a verdict."""

    gates: str
    verdict: tuple[VerdictWord, ...] = ("PASS",)


class StepResources(_Declared):
    """What this step needs here; what is not given is taken from the notebook's contract."""

    threads: int | None = Field(default=None, ge=1)
    memory_gib: float | None = Field(default=None, gt=0)
    gpus: float | None = Field(default=None, ge=0)
    timeout_s: float | None = Field(default=None, gt=0)


class StepDefinition(_Declared):
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
    retries: dict[Retriable, int] = {"service": 1}
    backoff_s: float = Field(default=1.0, ge=0)
    cache: Literal["auto", "never"] = "auto"


class Schedule(_Declared):
    """When schedulers should run the pipeline: a cron expression of five fields."""

    cron: str
    timezone: str = "UTC"


class PipelineDefinition(_Declared):
    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[\w.-]+$")
    help: str = ""
    notebooks: str = "../notebooks/steps"
    parameters: dict[str, PipelineParameter] = {}
    schedule: Schedule | None = None
    steps: dict[str, StepDefinition]


def read(path: Path) -> PipelineDefinition:
    """Read a pipeline file; raises `ContractError` that names the key and what was expected."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _loader())  # noqa: S506 - safe loaders
        return PipelineDefinition.model_validate(content)
    except FileNotFoundError as error:
        raise ContractError("no such pipeline file", where=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ContractError(f"the file is not valid YAML: {error}", where=path) from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ContractError(f"{key}: {problem['msg']}", where=path) from error


def json_schema() -> Json:
    """The form of a pipeline file, for editors that complete and check it."""
    schema = PipelineDefinition.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _loader() -> Any:
    """The safe loader, in C where it was built: ten times as fast on a file of a thousand steps."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
