"""A pipeline with everything checked that can be checked before anything starts.

Reading a pipeline file makes a graph of steps: notebooks read, parameters valid, every input
connected to an output of the right kind, fan-outs expanded. A step that is run for each of several
values becomes one step per value, named ``train[0]``, ``train[1]`` ….
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core import digest
from workbench.core.errors import ContractError
from workbench.core.text import did_you_mean, short_repr
from workbench.core.types import Json
from workbench.pipeline.contract import Input, Resources, StepContract, read_contract
from workbench.pipeline.parameters import require_no_secrets
from workbench.pipeline.pipeline_file import (
    PipelineDefinition,
    StepDefinition,
    read_pipeline_file,
    resolve_parameters,
    substitute,
)

__all__ = ["Pipeline", "load_pipeline"]

_CHAMPION_PREFIX = "champion:"
_RECORD_PREFIX = "record:"
_INCIDENTS = "incidents"
_NOT_IN_NAMES = re.compile(r"[^\w.+-]+")
_MAX_NAME_LENGTH = 40
_MAX_TEXT_BYTES = 120  # with the step's name, less than the 255 that a file name may have


@dataclass(frozen=True)
class _InputSource:
    """Where one input comes from.

    Attributes:
        outputs: Pairs of step and output; several only where the input takes many.
        champion: The model whose champion it is, instead.
        record: Reference of a record that is there already, instead; nothing if it is empty.
        kind: Kind of record that the step takes.
        incidents: Whether it is all active incidents, instead.
    """

    outputs: tuple[tuple[str, str], ...] = ()
    champion: str | None = None
    record: str | None = None
    kind: str = ""
    incidents: bool = False
    many: bool = False


@dataclass(frozen=True)
class PipelineStep:
    """One step to run: a step of the file, or one step of its fan-out.

    Attributes:
        base: The step's name in the file.
        each: The values of the fan-out that this step stands for.
        parameters: Validated, with absolute paths.
        needs: Steps that must be done before this one can be decided on.
        when: Gate reports that the step's condition reads, as pairs of step and output.
    """

    name: str
    base: str
    each: Json
    definition: StepDefinition
    contract: StepContract
    parameters: Json
    sources: dict[str, _InputSource]
    needs: tuple[str, ...]
    when: tuple[tuple[str, str], ...]
    resources: Resources


@short_repr
@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline; ``steps`` are in an order in which each comes after all that it needs."""

    definition: PipelineDefinition
    parameters: Json
    steps: dict[str, PipelineStep]
    file: Path

    @property
    def name(self) -> str:
        return self.definition.name

    def named(self, name: str) -> list[str]:
        """The names of one step, or of all steps of a fan-out; raises `ContractError`."""
        names = [step.name for step in self.steps.values() if name in (step.name, step.base)]
        if not names:
            known = [*self.definition.steps, *self.steps]
            raise ContractError(
                f"no step {name!r}", where=self.file.name, hint=did_you_mean(name, known)
            )
        return names

    def below(self, names: list[str]) -> set[str]:
        """``names`` and every step that needs one of them, directly or not."""
        selected = set(names)
        for step in self.steps.values():
            if selected.intersection(step.needs):
                selected.add(step.name)
        return selected


def load_pipeline(path: Path, given: Mapping[str, Any], *, base: Path) -> Pipeline:
    """Read and check a whole pipeline; nothing is started.

    Args:
        path: The pipeline file.
        given: Pipeline parameters, as strings from a command line or as values.
        base: Folder that relative paths among the given parameters start from. Paths in the
            pipeline file start from the project, the folder above the file's.

    Raises:
        ContractError: The file, a notebook or a connection between steps is invalid.
        ParameterError: A parameter is unknown, missing or invalid.
    """
    definition, file = read_pipeline_file(path), path.resolve()
    known = resolve_parameters(definition, given)
    builder = _GraphBuilder(definition, known, given, file, base)
    for name, step in definition.steps.items():
        builder.add(name, step)
    secrets = {s for step in builder.steps.values() for s in step.contract.declaration.secrets}
    require_no_secrets(known, secrets, where=file.name)
    return Pipeline(definition, known, builder.steps, file)


class _GraphBuilder:
    """Adds steps in the order of the file; an input can only come from an earlier step."""

    def __init__(
        self,
        definition: PipelineDefinition,
        known: Json,
        given: Mapping[str, Any],
        file: Path,
        base: Path,
    ) -> None:
        self.steps: dict[str, PipelineStep] = {}
        self._known = known
        self._given = given
        self._base = base
        self._project = file.parent.parent
        self._notebooks = (file.parent / definition.notebooks).resolve()
        self._expanded: dict[str, list[PipelineStep]] = {}
        self._contracts: dict[str, StepContract] = {}

    def add(self, name: str, definition: StepDefinition) -> None:
        contract = self._contract(definition.notebook or name)
        elements = list(self._elements(name, definition))
        steps = [
            self._step(step_name, name, each, definition, contract)
            for step_name, each in zip(_step_names(name, elements), elements, strict=True)
        ]
        self.steps.update({step.name: step for step in steps})
        self._expanded[name] = steps

    def _step(
        self, name: str, base: str, each: Json, definition: StepDefinition, contract: StepContract
    ) -> PipelineStep:
        known = {**self._known, **{f"each.{key}": value for key, value in each.items()}}
        follows = isinstance(definition.for_each, str)
        inputs = substitute(definition.inputs, known)
        sources = self._sources(base, inputs, contract, each if follows else None)
        when = self._gates(base, definition, each)
        needs = [step for source in sources.values() for step, _ in source.outputs]
        needs += [s.name for after in definition.after for s in self._earlier(base, after)]
        needs += [step for step, _ in when]
        values = contract.validate(
            substitute(definition.parameters, known, contract.declaration.secrets)
        )
        resources = definition.resources.model_dump(exclude_none=True)
        return PipelineStep(
            name=name,
            base=base,
            each=each,
            definition=definition,
            contract=contract,
            parameters=self._with_absolute_paths(contract, values, definition),
            sources=sources,
            needs=tuple(dict.fromkeys(needs)),
            when=when,
            resources=contract.declaration.resources.model_copy(update=resources),
        )

    def _contract(self, notebook: str) -> StepContract:
        if notebook not in self._contracts:
            name, at, _ = notebook.partition("@")
            if at:
                from workbench.pipeline import promoted_steps

                path = promoted_steps.resolve_step(self._project, notebook).path
            else:
                path = self._notebooks / f"{notebook}.ipynb"
            self._contracts[notebook] = read_contract(path, name=Path(name).name)
        return self._contracts[notebook]

    def _elements(self, name: str, definition: StepDefinition) -> Iterator[Json]:
        """The values that the step is run for; a single empty element when it is run once."""
        over = definition.for_each
        if over is None:
            yield {}
        elif isinstance(over, str):
            followed = self._earlier(name, over)
            if not followed[0].each:
                raise ContractError(f"step {name!r} follows {over!r}, which is run only once")
            yield from (step.each for step in followed)
        else:
            lists = {}
            for key, given in over.items():
                values = substitute(given, self._known)
                if not isinstance(values, list) or not values:
                    raise ContractError(
                        f"step {name!r}: for_each needs a list for {key!r}, got {values!r}",
                        hint="Write a list, or ${name} of a parameter of type list",
                    )
                lists[key] = list(dict.fromkeys(values))
            for combination in itertools.product(*lists.values()):
                yield dict(zip(lists, combination, strict=True))

    def _sources(
        self, step: str, inputs: Mapping[str, str], contract: StepContract, same_each: Json | None
    ) -> dict[str, _InputSource]:
        """Where each input comes from; ``same_each`` is given where a step follows a fan-out."""
        declared = contract.declaration.inputs
        for given in inputs:
            if given not in declared:
                raise ContractError(
                    f"step {step!r} has no input {given!r}",
                    where=contract.notebook.name,
                    hint=did_you_mean(given, declared),
                )
        sources = {}
        for name, declaration in declared.items():
            if name in inputs:
                sources[name] = self._source(step, name, inputs[name], declaration, same_each)
            elif not declaration.optional:
                raise ContractError(f"step {step!r}: input {name!r} is not connected")
        return sources

    def _source(
        self, step: str, name: str, text: str, declaration: Input, same_each: Json | None
    ) -> _InputSource:
        if text.startswith(_CHAMPION_PREFIX):
            return _InputSource(champion=text.removeprefix(_CHAMPION_PREFIX))
        if text == _INCIDENTS:
            return _InputSource(incidents=True)
        if text.startswith(_RECORD_PREFIX):
            reference = text.removeprefix(_RECORD_PREFIX).strip()
            if not reference and not declaration.optional:
                raise ContractError(
                    f"step {step!r}, input {name!r} needs a {declaration.kind}",
                    hint=f"Give a reference: {_RECORD_PREFIX}KIND/PREFIX or {_RECORD_PREFIX}NAME@N",
                )
            return _InputSource(record=reference, kind=declaration.kind)
        upstream, _, output = text.partition(".")
        context = f"step {step!r}, input {name!r}"
        steps = self._earlier(step, upstream, context=context)
        outputs = steps[0].contract.declaration.outputs
        if output not in outputs:
            raise ContractError(
                f"{context}: {upstream!r} has no output {output!r}",
                hint=did_you_mean(output, outputs),
            )
        kind = outputs[output].kind
        if kind != declaration.kind:
            raise ContractError(f"{context} takes a {declaration.kind}, but {text} is a {kind}")
        if same_each is not None and steps[0].each:
            steps = [one for one in steps if one.each == same_each]
            if not steps:
                raise ContractError(f"{context}: {upstream!r} is run for other values")
        if steps[0].each and same_each is None and not declaration.many:
            raise ContractError(
                f"{context} takes one record, but {upstream!r} is run {len(steps)} times",
                hint=f"Declare the input with `many`, or give the step `for_each: {upstream}`",
            )
        outputs_of_steps = tuple((one.name, output) for one in steps)
        return _InputSource(outputs_of_steps, many=declaration.many)

    def _gates(
        self, name: str, definition: StepDefinition, each: Json
    ) -> tuple[tuple[str, str], ...]:
        """The gate reports that the step's condition reads, as pairs of step and output."""
        if definition.when is None:
            return ()
        upstream, _, output = definition.when.gates.partition(".")
        steps = self._earlier(name, upstream)
        declared = steps[0].contract.declaration.outputs.get(output)
        if declared is None or declared.kind != "gates":
            raise ContractError(f"step {name!r}: {definition.when.gates} is not a gate report")
        same = [step for step in steps if each and step.each == each]
        return tuple((step.name, output) for step in same or steps)

    def _earlier(self, name: str, other: str, *, context: str | None = None) -> list[PipelineStep]:
        """The steps of an earlier entry of the file; raises `ContractError`."""
        known = self._expanded
        if other not in known:
            raise ContractError(
                f"{context or f'step {name!r}'}: no earlier step {other!r}",
                hint=did_you_mean(other, known),
            )
        return known[other]

    def _with_absolute_paths(
        self, contract: StepContract, parameters: Json, definition: StepDefinition
    ) -> Json:
        """Path parameters start from the caller's folder if the caller gave the value."""
        absolute = dict(parameters)
        for name in contract.path_parameters(parameters):
            template = str(definition.parameters.get(name, ""))
            by_caller = any(f"${{{given}}}" in template for given in self._given)
            base = self._base if by_caller else self._project
            absolute[name] = contract.absolute_path(name, parameters[name], base)
        return absolute


def _step_names(name: str, elements: list[Json]) -> list[str]:
    """``name`` for a step that runs once, else ``name[value]``, cut and told apart by a digest."""
    if elements == [{}]:
        return [name]
    texts = [
        ",".join(_NOT_IN_NAMES.sub("-", str(value))[:_MAX_NAME_LENGTH] for value in each.values())
        for each in elements
    ]
    return [
        f"{name}[{text}]"
        if texts.count(text) == 1 and len(text.encode()) <= _MAX_TEXT_BYTES
        else f"{name}[{_cut(text)}-{digest.of_json(each)[:6]}]"
        for text, each in zip(texts, elements, strict=True)
    ]


def _cut(text: str) -> str:
    return text.encode()[:_MAX_TEXT_BYTES].decode(errors="ignore")
