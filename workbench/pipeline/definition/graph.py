"""A pipeline with everything checked that can be checked before anything starts.

Reading a pipeline file makes a graph of steps: notebooks read, parameters valid, every joint of the
right kind, fan-outs written out. A step that is run for each of some values becomes one step a
value, named ``train[0]``, ``train[1]`` ….
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import digest
from workbench.errors import ContractError
from workbench.pipeline.contracts import contract as contracts
from workbench.pipeline.contracts.contract import StepContract
from workbench.pipeline.contracts.parameters import nearest
from workbench.pipeline.definition import file as definitions
from workbench.pipeline.definition import values
from workbench.pipeline.definition.file import Condition, PipelineDefinition, StepDefinition
from workbench.pipeline.definition.joints import Source, join
from workbench.pipeline.planning import keys

Json = dict[str, Any]

_NOT_IN_NAMES = re.compile(r"[^\w.+-]+")
_LONGEST_NAME = 40


@dataclass(frozen=True)
class Resources:
    threads: int
    memory_gib: float
    gpus: float
    timeout_s: float


@dataclass(frozen=True)
class Step:
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
    sources: dict[str, Source]
    needs: tuple[str, ...]
    when: tuple[tuple[str, str], ...]
    resources: Resources

    @property
    def condition(self) -> Condition | None:
        return self.definition.when


@dataclass(frozen=True)
class Pipeline:
    """``steps`` in an order in which each comes after all that it needs."""

    definition: PipelineDefinition
    parameters: Json
    steps: dict[str, Step]
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
                f"no step {name!r}{nearest(name, known)}",
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


def load(path: Path, given: Mapping[str, Any], *, base: Path) -> Pipeline:
    """Read and check a pipeline whole; nothing is started when this raises.

    Args:
        given: Pipeline parameters, as texts from a command line or as values.
        base: Folder that relative paths among the given parameters start from. Paths that the
            pipeline file itself names start from the project, the folder above the file's.
    """
    return build(definitions.read(path), given, file=path, base=base)


def build(
    definition: PipelineDefinition, given: Mapping[str, Any], *, file: Path, base: Path
) -> Pipeline:
    """As `load`, for a definition made in Python; ``file`` is where it would lie."""
    known = values.resolve_parameters(definition, given)
    builder = _Builder(definition, known, given, file.resolve(), base)
    for name, step in definition.steps.items():
        builder.add(name, step)
    return Pipeline(definition, known, builder.steps, file.resolve())


class _Builder:
    """Adds steps in the order of the file; a joint can only lead to a step above."""

    def __init__(
        self,
        definition: PipelineDefinition,
        known: Json,
        given: Mapping[str, Any],
        file: Path,
        base: Path,
    ) -> None:
        self.steps: dict[str, Step] = {}
        self._known = known
        self._given = given
        self._base = base
        self._project = file.parent.parent
        self._notebooks = (file.parent / definition.notebooks).resolve()
        self._of: dict[str, list[Step]] = {}
        self._read: dict[str, StepContract] = {}

    def add(self, name: str, definition: StepDefinition) -> None:
        contract = self._contract(definition.notebook or name)
        elements = list(self._elements(name, definition))
        names = _names(name, elements)
        made = []
        for step_name, each in zip(names, elements, strict=True):
            step = self._step(step_name, name, each, definition, contract)
            made.append(step)
        self.steps.update({step.name: step for step in made})
        self._of[name] = made

    def _step(
        self, name: str, base: str, each: Json, definition: StepDefinition, contract: StepContract
    ) -> Step:
        known = {**self._known, **{f"each.{key}": value for key, value in each.items()}}
        inputs = values.substitute(definition.inputs, known)
        follows = definition.for_each if isinstance(definition.for_each, str) else None
        sources = join(base, inputs, contract, self._of, each if follows else None)
        when = self._gates(base, definition, each)
        needs = [step for source in sources.values() for step, _ in source.outputs]
        needs += [step.name for above in definition.after for step in self._named(base, above)]
        needs += [step for step, _ in when]
        checked = contract.validate(values.substitute(definition.parameters, known))
        return Step(
            name=name,
            base=base,
            each=each,
            definition=definition,
            contract=contract,
            parameters=self._with_paths(contract, checked, definition),
            sources=sources,
            needs=tuple(dict.fromkeys(needs)),
            when=when,
            resources=_resources(definition, contract),
        )

    def _contract(self, notebook: str) -> StepContract:
        if notebook not in self._read:
            name, at, _ = notebook.partition("@")
            if at:
                from workbench.pipeline import promotion

                path = promotion.resolve(self._project, notebook).path
            else:
                path = self._notebooks / f"{notebook}.ipynb"
            self._read[notebook] = contracts.read(path, name=Path(name).name)
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
                listed = values.substitute(given, self._known)
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

    def _named(self, name: str, above: str) -> list[Step]:
        known = self._of
        if above not in known:
            raise ContractError(
                f"step {name!r}: no step {above!r} above{nearest(above, list(known))}",
                hint=f"Steps above it: {', '.join(known) or 'none'}",
            )
        return known[above]

    def _with_paths(
        self, contract: StepContract, parameters: Json, definition: StepDefinition
    ) -> Json:
        """Make path parameters absolute: from the caller's folder if the caller gave the value."""
        made = dict(parameters)
        for name in keys.path_parameters(contract, parameters):
            template = str(definition.parameters.get(name, ""))
            by_caller = any(f"${{{given}}}" in template for given in self._given)
            unless = contract.declaration.paths[name].unless
            base = self._base if by_caller else self._project
            made[name] = keys.absolute_path(name, parameters[name], unless, base)
        return made


def _names(name: str, elements: list[Json]) -> list[str]:
    """``name`` when it runs once, else ``name[value]``; values alike in writing get a digest."""
    if elements == [{}]:
        return [name]
    written = [
        ",".join(_NOT_IN_NAMES.sub("-", str(value))[:_LONGEST_NAME] for value in each.values())
        for each in elements
    ]
    return [
        f"{name}[{text}]"
        if written.count(text) == 1
        else f"{name}[{text}-{digest.of_json(each)[:6]}]"
        for text, each in zip(written, elements, strict=True)
    ]


def _resources(definition: StepDefinition, contract: StepContract) -> Resources:
    given, declared = definition.resources, contract.declaration.resources
    return Resources(
        threads=given.threads or declared.threads,
        memory_gib=given.memory_gib or declared.memory_gib,
        gpus=declared.gpus if given.gpus is None else given.gpus,
        timeout_s=given.timeout_s or declared.timeout_s,
    )
