"""Tries values that no parameter should take. They are refused before a kernel starts, or here
it is said that they would not be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workbench.errors import ParameterError
from workbench.pipeline.checking.findings import Finding
from workbench.pipeline.contracts.contract import StepContract

_NONSENSE: tuple[Any, ...] = ({"no": {"such": []}}, "no such value \x00", [[[]]], -(10**15), None)


def check(contract: StepContract) -> Iterator[Finding]:
    """A finding for each parameter that takes whatever it is given."""
    valid = contract.validate({})
    for name in contract.parameters.model_fields:
        if all(_takes(contract, {**valid, name: value}) for value in _NONSENSE):
            yield Finding("accepts-anything", f"parameter `{name}` takes any value")


def _takes(contract: StepContract, values: dict[str, Any]) -> bool:
    try:
        contract.validate(values)
    except ParameterError:
        return False
    return True
