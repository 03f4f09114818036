"""What runs on a Ray worker: it says what it is made of, and runs one step by the usual command."""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import Any

from workbench import digest
from workbench.pipeline.planning import environment, modules
from workbench.pipeline.running.executors import alone
from workbench.pipeline.steps.spec import ExitStatus, Failure, StepResult, StepSpec

Json = dict[str, Any]

_NAMED = 4  # differing distributions that a message names one by one


def surroundings() -> Json:
    """All of this machine that can shape a result: its environment and the workbench's own code."""
    return {
        "host": socket.gethostname(),
        "code": _code(),
        "environment": environment.current().model_dump(mode="json"),
    }


def differences(ours: Json, theirs: Json) -> list[str]:
    """What sets a worker apart from the driver, in words; empty when results would be the same."""
    found = []
    mine, other = ours["environment"], theirs["environment"]
    if mine["python"] != other["python"]:
        found.append(f"Python {other['python']} instead of {mine['python']}")
    here, there = set(mine["distributions"]), set(other["distributions"])
    found += _some("lacks", here - there) + _some("has besides", there - here)
    for part, value in mine["machine"].items():
        if other["machine"].get(part) != value:
            found.append(f"{part} {other['machine'].get(part)} instead of {value}")
    if ours["code"] != theirs["code"]:
        found.append("another version of the workbench's own code")
    return found


def run(spec_json: str, driver: Json | None) -> str:
    """Run the step of ``spec_json`` in a process of its own; returns its result as JSON.

    Args:
        driver: The driver's `surroundings`, where it is another machine. They are compared here
            as well, because a worker may join after the others were looked at.
    """
    refused = refusal(driver)
    if refused is not None:
        return refused.model_dump_json()
    return execute(StepSpec.model_validate_json(spec_json)).model_dump_json()


def execute(spec: StepSpec) -> StepResult:
    """Run one step in a process of its own."""
    # Cancelled by Ray with a KeyboardInterrupt, upon which the executor ends the step.
    return alone.execute(spec, _nobody_watches)


def refusal(driver: Json | None) -> StepResult | None:
    """Why nothing may run here for ``driver``: this machine differs from it; None if it may."""
    different = differences(driver, surroundings()) if driver else []
    if not different:
        return None
    failure = Failure(
        kind="contract",
        message=f"worker {socket.gethostname()} is not like the driver: {'; '.join(different)}",
        hint="Install requirements.lock and this version of the workbench there",
    )
    return StepResult.unrun(ExitStatus.CONTRACT, failure)


@lru_cache(maxsize=1)
def _code() -> str:
    sources = {
        str(path.relative_to(modules.ROOT)): digest.of_file(path)
        for path in sorted(modules.ROOT.rglob("*.py"))
    }
    return digest.of_json(sources)


def _some(verb: str, names: set[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(name.partition("#")[0] for name in sorted(names)[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"{verb} {shown}{more}"]


def _nobody_watches() -> None:
    """The driver follows the step's files itself."""
