"""What a pipeline would run and why: parameters and joints checked first, then step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.errors import ContractError
from workbench.pipeline import contract as contracts
from workbench.pipeline import definition as definitions
from workbench.pipeline import keys
from workbench.pipeline.contract import StepContract
from workbench.pipeline.definition import PipelineDefinition, StepDefinition
from workbench.pipeline.keys import KeyIndex, StepKey
from workbench.pipeline.parameters import nearest
from workbench.records.base import Ref
from workbench.records.store import Store
from workbench.records.types import Release, StepRun
from workbench.workspace import Workspace

Json = dict[str, Any]
Outputs = Mapping[str, Mapping[str, Ref]]

_CHAMPION = "champion:"


@dataclass(frozen=True)
class PlannedStep:
    """One step with everything resolved that can be. ``key`` is None below a step still to run."""

    name: str
    contract: StepContract
    parameters: Json
    timeout_s: float
    inputs: dict[str, Ref | None]
    action: Literal["run", "skip"]
    reasons: tuple[str, ...]
    key: StepKey | None = None
    cached: StepRun | None = None


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline: every parameter valid, every joint of the right kind."""

    definition: PipelineDefinition
    parameters: Json
    contracts: dict[str, StepContract]
    step_parameters: dict[str, Json]

    @property
    def name(self) -> str:
        return self.definition.name

    def definition_of(self, step: str) -> StepDefinition:
        return self.definition.steps[step]


def load(path: Path, given: dict[str, str], *, base: Path) -> Pipeline:
    """Read and check a pipeline whole; nothing is started when this raises.

    Args:
        given: Pipeline parameters as texts.
        base: Folder that relative paths among the given parameters start from. Paths that the
            pipeline file itself names start from the project, the folder above the file's.
    """
    definition = definitions.read(path)
    values = definitions.resolve_parameters(definition, given)
    definition = definitions.with_inputs(definition, values)
    folder = (path.parent / definition.notebooks).resolve()
    found: dict[str, StepContract] = {}
    step_parameters: dict[str, Json] = {}
    for name, step in definition.steps.items():
        contract = contracts.read(folder / f"{step.notebook or name}.ipynb")
        _check_joints(name, step, contract, found)
        checked = contract.validate(definitions.substitute(step.parameters, values))
        project = path.resolve().parent.parent
        step_parameters[name] = _with_paths(contract, checked, step, given, base, project)
        found[name] = contract
    return Pipeline(definition, values, found, step_parameters)


def resolve(pipeline: Pipeline, name: str, outputs: Outputs, place: Workspace) -> PlannedStep:
    """What to do about one step, given the outputs of the steps above it that are known."""
    definition, contract = pipeline.definition_of(name), pipeline.contracts[name]
    timeout = definition.timeout_s or contract.declaration.resources.timeout_s
    parameters = pipeline.step_parameters[name]

    def planned(action: Literal["run", "skip"], *reasons: str, **more: Any) -> PlannedStep:
        return PlannedStep(name, contract, parameters, timeout, inputs, action, reasons, **more)

    inputs, pending = _inputs(definition, outputs, place)
    if pending:
        return planned("run", f"after {', '.join(pending)}")
    key = keys.compute(contract, parameters, inputs)
    index = KeyIndex(place)
    cached = index.find(key)
    if cached:
        return planned("skip", "nothing changed", key=key, cached=cached)
    if index.run_ref(key):
        return planned("run", "an output is missing from the store", key=key)
    latest = index.latest(pipeline.name, name)
    if latest is None:
        return planned("run", "never run before", key=key)
    reasons = key.differs_from(latest) or ["it did not finish last time"]
    return planned("run", *reasons, key=key)


def plan(pipeline: Pipeline, place: Workspace) -> list[PlannedStep]:
    """Every step in order, as far as outputs are known without running anything."""
    outputs: dict[str, dict[str, Ref]] = {}
    steps = []
    for name in pipeline.definition.steps:
        step = resolve(pipeline, name, outputs, place)
        if step.cached:
            outputs[name] = step.cached.outputs
        steps.append(step)
    return steps


def _check_joints(
    name: str, step: StepDefinition, contract: StepContract, above: dict[str, StepContract]
) -> None:
    declared = contract.declaration.inputs
    for given in step.inputs:
        if given not in declared:
            raise ContractError(
                f"step {name!r} has no input {given!r}{nearest(given, list(declared))}",
                where=contract.notebook.name,
            )
    for wanted, about in declared.items():
        source = step.inputs.get(wanted)
        if source is None:
            if not about.optional:
                raise ContractError(f"step {name!r}: input {wanted!r} is not joined to anything")
        elif not source.startswith(_CHAMPION):
            _check_source(name, wanted, source, about.kind, above)


def _check_source(
    name: str, wanted: str, source: str, kind: str, above: dict[str, StepContract]
) -> None:
    upstream, _, output = source.partition(".")
    joint = f"step {name!r}, input {wanted!r}"
    if upstream not in above:
        hint = f"Steps above it: {', '.join(above) or 'none'}"
        raise ContractError(
            f"{joint}: no step {upstream!r} above{nearest(upstream, list(above))}", hint=hint
        )
    made = above[upstream].declaration.outputs
    if output not in made:
        raise ContractError(
            f"{joint}: {upstream!r} has no output {output!r}{nearest(output, list(made))}"
        )
    if made[output].kind != kind:
        raise ContractError(f"{joint} takes a {kind}, but {source} is a {made[output].kind}")


def _with_paths(
    contract: StepContract,
    parameters: Json,
    step: StepDefinition,
    given: dict[str, str],
    base: Path,
    project: Path,
) -> Json:
    """Make path parameters absolute: from the caller's folder if the caller gave the value."""
    made = dict(parameters)
    for name in keys.path_parameters(contract, parameters):
        template = str(step.parameters.get(name, ""))
        by_caller = any(f"${{{pipeline_name}}}" in template for pipeline_name in given)
        declared = contract.declaration.paths[name]
        made[name] = keys.absolute_path(
            name, parameters[name], declared.unless, base if by_caller else project
        )
    return made


def _inputs(
    definition: StepDefinition, outputs: Outputs, place: Workspace
) -> tuple[dict[str, Ref | None], list[str]]:
    """Resolved inputs, and the names of steps that have to run before the rest is known."""
    known: dict[str, Ref | None] = {}
    pending: list[str] = []
    for name, source in definition.inputs.items():
        if source.startswith(_CHAMPION):
            continue
        step, _, output = source.partition(".")
        if step in outputs:
            known[name] = outputs[step].get(output)
        elif step not in pending:
            pending.append(step)
    if not pending:
        for name, source in definition.inputs.items():
            if source.startswith(_CHAMPION):
                model = source.removeprefix(_CHAMPION)
                known[name] = _champion(place, model, {ref for ref in known.values() if ref})
    return known, pending


def _champion(place: Workspace, model: str, candidates: set[Ref]) -> Ref | None:
    """The bundle that was champion before any of ``candidates`` was released under ``model``.

    Read from the release records, which the registry only mirrors; so a rerun meets the same
    champion as the run before it, also after that run's own candidate was promoted.
    """
    store, champion = Store(place), None
    for ref in store.refs(Release.KIND):
        release = store.get(ref, Release)
        if release.model != model:
            continue
        if release.bundle in candidates:
            break
        if release.promoted:
            champion = release.bundle
    return champion
