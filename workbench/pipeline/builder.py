"""Pipelines written in Python; they make the same definition as a file does.

night = PipelineBuilder("night-cut-ins")
seeds = night.parameter("seeds", type="list", items="int", default=[0, 1, 2])
ingest = night.step("ingest")
train = night.step(
    "train",
    for_each={"seed": seeds},
    inputs={"dataset": ingest["dataset"]},
    parameters={"seed": each("seed")},
)
night.write(Path("pipelines/night.yaml"))       # or graph.build(night.definition(), …)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from workbench.core import workspace
from workbench.core.errors import ContractError
from workbench.pipeline.pipeline_file import PipelineDefinition

Json = dict[str, Any]


def each(key: str) -> str:
    """The value of ``key`` in the element of a fan-out that a step is run for."""
    return f"${{each.{key}}}"


def champion(model: str) -> str:
    """The champion of ``model``, as an input."""
    return f"champion:{model}"


@dataclass(frozen=True)
class StepHandle:
    """A step that was added; ``handle["output"]`` joins one of its outputs to an input."""

    name: str

    def __getitem__(self, output: str) -> str:
        return f"{self.name}.{output}"


class PipelineBuilder:
    """Collects parameters and steps; what they may hold is said in `PipelineDefinition`."""

    def __init__(self, name: str, **about: Any) -> None:
        self._content: Json = {"name": name, **about}
        self._parameters: Json = {}
        self._steps: Json = {}

    def parameter(self, name: str, **about: Any) -> str:
        """Add a parameter and return the reference that stands for it."""
        self._parameters[name] = about
        return f"${{{name}}}"

    def step(self, name: str, **about: Any) -> StepHandle:
        """Add a step below those that were added before it."""
        if name in self._steps:
            raise ContractError(f"there is a step {name!r} already", where=self._content["name"])
        after = [
            step.name if isinstance(step, StepHandle) else step for step in about.pop("after", ())
        ]
        follows = about.get("for_each")
        if isinstance(follows, StepHandle):
            about["for_each"] = follows.name
        self._steps[name] = {**about, **({"after": after} if after else {})}
        return StepHandle(name)

    def definition(self) -> PipelineDefinition:
        """The definition, checked; raises `ContractError` naming the key that is wrong."""
        content = {**self._content, "parameters": self._parameters, "steps": self._steps}
        try:
            return PipelineDefinition.model_validate(content)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            raise ContractError(f"{key}: {problem['msg']}", where=self._content["name"]) from error

    def write(self, path: Path) -> None:
        """Write the pipeline as a file; what has its default value is left out."""
        content = self.definition().model_dump(mode="json", exclude_defaults=True)
        text = yaml.safe_dump({"schema_version": 1, **content}, sort_keys=False, allow_unicode=True)
        workspace.write_atomic(path, text.encode())
