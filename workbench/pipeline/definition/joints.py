"""What the inputs of a step are joined to, checked for name, kind and number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workbench.errors import ContractError
from workbench.pipeline.contracts.contract import Input, StepContract
from workbench.pipeline.contracts.parameters import nearest

Json = dict[str, Any]

_CHAMPION = "champion:"


@dataclass(frozen=True)
class Source:
    """Where one input comes from.

    Attributes:
        outputs: Pairs of step and output; several only where the input takes many.
        champion: Model whose champion it is, instead.
    """

    outputs: tuple[tuple[str, str], ...] = ()
    champion: str | None = None
    many: bool = False


class Above(Protocol):
    """What a joint needs to know about a step above."""

    @property
    def name(self) -> str: ...
    @property
    def each(self) -> Json: ...
    @property
    def contract(self) -> StepContract: ...


def join(
    step: str,
    inputs: Mapping[str, str],
    contract: StepContract,
    above: Mapping[str, Sequence[Above]],
    same_each: Json | None,
) -> dict[str, Source]:
    """The sources of all inputs of ``step``; raises `ContractError` naming the joint.

    Args:
        above: Steps above by their name in the file, fan-outs written out.
        same_each: The element, when the step follows a fan-out one to one.
    """
    declared = contract.declaration.inputs
    for given in inputs:
        if given not in declared:
            raise ContractError(
                f"step {step!r} has no input {given!r}{nearest(given, list(declared))}",
                where=contract.notebook.name,
                hint=f"Its inputs are: {', '.join(declared) or 'none'}",
            )
    sources = {}
    for name, about in declared.items():
        if name in inputs:
            sources[name] = _source(step, name, inputs[name], about, above, same_each)
        elif not about.optional:
            raise ContractError(f"step {step!r}: input {name!r} is not joined to anything")
    return sources


def _source(
    step: str,
    name: str,
    text: str,
    about: Input,
    above: Mapping[str, Sequence[Above]],
    same_each: Json | None,
) -> Source:
    if text.startswith(_CHAMPION):
        return Source(champion=text.removeprefix(_CHAMPION))
    upstream, _, output = text.partition(".")
    joint = f"step {step!r}, input {name!r}"
    if upstream not in above:
        raise ContractError(
            f"{joint}: no step {upstream!r} above{nearest(upstream, list(above))}",
            hint=f"Steps above it: {', '.join(above) or 'none'}",
        )
    steps = above[upstream]
    made = steps[0].contract.declaration.outputs
    if output not in made:
        raise ContractError(
            f"{joint}: {upstream!r} has no output {output!r}{nearest(output, list(made))}"
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
    return Source(outputs=tuple((one.name, output) for one in steps), many=about.many)
