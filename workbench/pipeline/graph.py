"""A pipeline with everything checked that can be checked before anything starts.

Reading a pipeline file makes a graph of steps: notebooks read, parameters valid, every input connected
to an output of the right kind, fan-outs expanded. A step that is run for each of some values becomes
one step a value, named ``train[0]``, ``train[1]`` ….
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from workbench.core import digest
from workbench.core.errors import ContractError
from workbench.pipeline import cache, pipeline_file
from workbench.pipeline import contract as contracts
from workbench.pipeline.contract import Input, StepContract
from workbench.pipeline.parameters import did_you_mean
from workbench.pipeline.pipeline_file import Condition, PipelineDefinition, StepDefinition

Json = dict[str, Any]

_CHAMPION_PREFIX = "champion:"


@dataclass(frozen=True)
class InputSource:
    """Where one input comes from.

    Attributes:
        outputs: Pairs of step and output; several only where the input takes many.
        champion: Model whose champion it is, instead.
    """

    outputs: tuple[tuple[str, str], ...] = ()
    champion: str | None = None
    many: bool = False


class UpstreamStep(Protocol):
    """What a joint needs to know about a step above."""

    @property
    def name(self) -> str: ...
    @property
    def each(self) -> Json: ...
    @property
    def contract(self) -> StepContract: ...


def connect_inputs(
    step: str,
    inputs: Mapping[str, str],
    contract: StepContract,
    above: Mapping[str, Sequence[UpstreamStep]],
    same_each: Json | None,
) -> dict[str, InputSource]:
    """The sources of all inputs of ``step``; raises `ContractError` naming the joint.

    Args:
        above: Steps above by their name in the file, fan-outs written out.
        same_each: The element, when the step follows a fan-out one to one.
    """
    declared = contract.declaration.inputs
    for given in inputs:
        if given not in declared:
            raise ContractError(
                f"step {step!r} has no input {given!r}{did_you_mean(given, list(declared))}",
                where=contract.notebook.name,
                hint=f"Its inputs are: {', '.join(declared) or 'none'}",
            )
    sources = {}
    for name, about in declared.items():
        if name in inputs:
            sources[name] = _connect_input(step, name, inputs[name], about, above, same_each)
        elif not about.optional:
            raise ContractError(f"step {step!r}: input {name!r} is not joined to anything")
    return sources


def _connect_input(
    step: str,
    name: str,
    text: str,
    about: Input,
    above: Mapping[str, Sequence[UpstreamStep]],
    same_each: Json | None,
) -> InputSource:
    if text.startswith(_CHAMPION_PREFIX):
        return InputSource(champion=text.removeprefix(_CHAMPION_PREFIX))
    upstream, _, output = text.partition(".")
    joint = f"step {step!r}, input {name!r}"
    if upstream not in above:
        raise ContractError(
            f"{joint}: no step {upstream!r} above{did_you_mean(upstream, list(above))}",
            hint=f"Steps above it: {', '.join(above) or 'none'}",
        )
    steps = above[upstream]
    made = steps[0].contract.declaration.outputs
    if output not in made:
        raise ContractError(
            f"{joint}: {upstream!r} has no output {output!r}{did_you_mean(output, list(made))}"
        )
    if made[output].kind != about.kind:
        raise ContractError(f"{joint} takes a {about.kind}, but {text} is a {made[output].kind}")
    if same_each is not None and steps[0].each:
        steps = [one for one in steps if one.each == same_each]
        if not steps:
            raise ContractError(f"{joint}: {upstream!r} is run for other values")
    if steps[0].each and same_each is None and not about.many:
        raise ContractError(
            f"{joint} takes one record, but {upstream!r} is run {len(steps)} times",
            hint=f"Declare the input with `many`, or give the step `for_each: {upstream}`",
        )
    return InputSource(outputs=tuple((one.name, output) for one in steps), many=about.many)


# ---- A pipeline with everything checked that can be checked before anything starts.
#
# Reading a pipeline file makes a graph of steps: notebooks read, parameters valid, every joint of the
# right kind, fan-outs written out. A step that is run for each of some values becomes one step a
# value, named ``train[0]``, ``train[1]`` ….


_NAME_SEPARATORS = re.compile(r"[^\w.+-]+")
_MAX_NAME_LENGTH = 40


@dataclass(frozen=True)
class GrantedResources:
    threads: int
    memory_gib: float
    gpus: float
    timeout_s: float


@dataclass(frozen=True)
class PipelineStep:
    """One step to run: a step of the file, or one of its fan-out.

    Attributes:
        base: The step's name in the file.
        each: The values of the fan-out that this one stands for.
        needs: Steps that have to be done before this one can be decided on.
    """

    name: str
    base: str
    each: Json
    definition: StepDefinition
    contract: StepContract
    parameters: Json
    sources: dict[str, InputSource]
    needs: tuple[str, ...]
    when: tuple[tuple[str, str], ...]
    resources: GrantedResources

    @property
    def condition(self) -> Condition | None:
        return self.definition.when


@dataclass(frozen=True)
class Pipeline:
    """``steps`` in an order in which each comes after all that it needs."""

    definition: PipelineDefinition
    parameters: Json
    steps: dict[str, PipelineStep]
    file: Path

    @property
    def name(self) -> str:
        return self.definition.name

    def named(self, name: str) -> list[str]:
        """The steps that ``name`` means: one, or all of a fan-out; raises naming the nearest."""
        found = [step.name for step in self.steps.values() if name in (step.name, step.base)]
        if not found:
            known = [*self.definition.steps, *self.steps]
            raise ContractError(
                f"no step {name!r}{did_you_mean(name, known)}",
                where=self.file.name,
                hint=f"Its steps are: {', '.join(self.definition.steps)}",
            )
        return found

    def below(self, names: list[str]) -> set[str]:
        """``names`` and every step that needs one of them, however far down."""
        found = set(names)
        for step in self.steps.values():
            if found.intersection(step.needs):
                found.add(step.name)
        return found


def load_pipeline(path: Path, given: Mapping[str, Any], *, base: Path) -> Pipeline:
    """Read and check a pipeline whole; nothing is started when this raises.

    Args:
        given: Pipeline parameters, as texts from a command line or as values.
        base: Folder that relative paths among the given parameters start from. Paths that the
            pipeline file itself names start from the project, the folder above the file's.
    """
    return build_pipeline(pipeline_file.read_pipeline_file(path), given, file=path, base=base)


def build_pipeline(
    definition: PipelineDefinition, given: Mapping[str, Any], *, file: Path, base: Path
) -> Pipeline:
    """As `load`, for a definition made in Python; ``file`` is where it would lie."""
    known = pipeline_file.resolve_parameters(definition, given)
    builder = _GraphBuilder(definition, known, given, file.resolve(), base)
    for name, step in definition.steps.items():
        builder.add(name, step)
    return Pipeline(definition, known, builder.steps, file.resolve())


class _GraphBuilder:
    """Adds steps in the order of the file; a joint can only lead to a step above."""

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
        self._of: dict[str, list[PipelineStep]] = {}
        self._read: dict[str, StepContract] = {}

    def add(self, name: str, definition: StepDefinition) -> None:
        contract = self._contract(definition.notebook or name)
        elements = list(self._elements(name, definition))
        names = _step_names(name, elements)
        made = []
        for step_name, each in zip(names, elements, strict=True):
            step = self._step(step_name, name, each, definition, contract)
            made.append(step)
        self.steps.update({step.name: step for step in made})
        self._of[name] = made

    def _step(
        self, name: str, base: str, each: Json, definition: StepDefinition, contract: StepContract
    ) -> PipelineStep:
        known = {**self._known, **{f"each.{key}": value for key, value in each.items()}}
        inputs = pipeline_file.substitute(definition.inputs, known)
        follows = definition.for_each if isinstance(definition.for_each, str) else None
        sources = connect_inputs(base, inputs, contract, self._of, each if follows else None)
        when = self._gates(base, definition, each)
        needs = [step for source in sources.values() for step, _ in source.outputs]
        needs += [step.name for above in definition.after for step in self._named(base, above)]
        needs += [step for step, _ in when]
        checked = contract.validate(pipeline_file.substitute(definition.parameters, known))
        return PipelineStep(
            name=name,
            base=base,
            each=each,
            definition=definition,
            contract=contract,
            parameters=self._with_paths(contract, checked, definition),
            sources=sources,
            needs=tuple(dict.fromkeys(needs)),
            when=when,
            resources=_granted_resources(definition, contract),
        )

    def _contract(self, notebook: str) -> StepContract:
        if notebook not in self._read:
            name, at, _ = notebook.partition("@")
            if at:
                from workbench.pipeline import promoted_steps

                path = promoted_steps.resolve_step(self._project, notebook).path
            else:
                path = self._notebooks / f"{notebook}.ipynb"
            self._read[notebook] = contracts.read_contract(path, name=Path(name).name)
        return self._read[notebook]

    def _elements(self, name: str, definition: StepDefinition) -> Iterator[Json]:
        """What the step is run for; a single empty element when it is run once."""
        over = definition.for_each
        if over is None:
            yield {}
        elif isinstance(over, str):
            followed = self._named(name, over)
            if not followed[0].each:
                raise ContractError(f"step {name!r} follows {over!r}, which is run only once")
            yield from (step.each for step in followed)
        else:
            lists = {}
            for key, given in over.items():
                listed = pipeline_file.substitute(given, self._known)
                if not isinstance(listed, list) or not listed:
                    raise ContractError(
                        f"step {name!r}: for_each needs a list for {key!r}, got {listed!r}",
                        hint="Write a list, or ${name} of a parameter of type list",
                    )
                lists[key] = list(dict.fromkeys(listed))
            for combination in itertools.product(*lists.values()):
                yield dict(zip(lists, combination, strict=True))

    def _gates(
        self, name: str, definition: StepDefinition, each: Json
    ) -> tuple[tuple[str, str], ...]:
        """The gate reports that the step's condition reads, as pairs of step and output."""
        if definition.when is None:
            return ()
        above, _, output = definition.when.gates.partition(".")
        steps = self._named(name, above)
        made = steps[0].contract.declaration.outputs.get(output)
        if made is None or made.kind != "gates":
            raise ContractError(f"step {name!r}: {definition.when.gates} is not a gate report")
        same = [step for step in steps if each and step.each == each]
        return tuple((step.name, output) for step in same or steps)

    def _named(self, name: str, above: str) -> list[PipelineStep]:
        known = self._of
        if above not in known:
            raise ContractError(
                f"step {name!r}: no step {above!r} above{did_you_mean(above, list(known))}",
                hint=f"Steps above it: {', '.join(known) or 'none'}",
            )
        return known[above]

    def _with_paths(
        self, contract: StepContract, parameters: Json, definition: StepDefinition
    ) -> Json:
        """Make path parameters absolute: from the caller's folder if the caller gave the value."""
        made = dict(parameters)
        for name in cache.path_parameters(contract, parameters):
            template = str(definition.parameters.get(name, ""))
            by_caller = any(f"${{{given}}}" in template for given in self._given)
            unless = contract.declaration.paths[name].unless
            base = self._base if by_caller else self._project
            made[name] = cache.absolute_path(name, parameters[name], unless, base)
        return made


def _step_names(name: str, elements: list[Json]) -> list[str]:
    """``name`` when it runs once, else ``name[value]``; values alike in writing get a digest."""
    if elements == [{}]:
        return [name]
    written = [
        ",".join(
            _NAME_SEPARATORS.sub("-", str(value))[:_MAX_NAME_LENGTH] for value in each.values()
        )
        for each in elements
    ]
    return [
        f"{name}[{text}]"
        if written.count(text) == 1
        else f"{name}[{text}-{digest.of_json(each)[:6]}]"
        for text, each in zip(written, elements, strict=True)
    ]


def _granted_resources(definition: StepDefinition, contract: StepContract) -> GrantedResources:
    given, declared = definition.resources, contract.declaration.resources
    return GrantedResources(
        threads=given.threads or declared.threads,
        memory_gib=given.memory_gib or declared.memory_gib,
        gpus=declared.gpus if given.gpus is None else given.gpus,
        timeout_s=given.timeout_s or declared.timeout_s,
    )
