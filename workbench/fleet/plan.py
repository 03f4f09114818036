"""A rollout plan: which releases go to which vehicles, in which stages, judged how."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import yaml
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from workbench.core.errors import ParameterError
from workbench.core.parsing import read_yaml
from workbench.fleet.canary import CanaryRule
from workbench.fleet.components import Name, Range, VehicleProfile
from workbench.records.base import FrozenModel

__all__ = ()

_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*([smhd])$")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_METRICS = ("late", "fallbacks", "near_misses")


def _duration(value: object) -> object:
    if isinstance(value, timedelta) or (isinstance(value, str) and value.startswith("P")):
        return value  # as a plan is stored: ISO 8601
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a duration is a number with s, m, h or d, such as 12h")
    return timedelta(**{_UNITS[match.group(2)]: float(match.group(1))})


Duration = Annotated[timedelta, BeforeValidator(_duration)]
"""``90s``, ``30m``, ``12h`` or ``3d`` of the fleet's clock."""

Size = Annotated[str, BeforeValidator(str), Field(pattern=r"^(all|[1-9]\d*|\d+(\.\d+)?%)$")]
"""Number of vehicles, a share of the cohort such as ``5%``, or ``all``."""


class PlanComponent(FrozenModel):
    """One release of the plan.

    Attributes:
        release: Any reference to a release record, such as ``models:/front-camera@champion``.
        requires: Range of release versions by kind of ECU; ``conflicts`` likewise.
        model_year: Range of model years.
        calibrations: Camera calibrations that it was made for; all if empty.
        min_proof: Least state in the target matrix that may be sent.
    """

    ecu: Name
    release: str
    requires: dict[Name, Range] = {}
    conflicts: dict[Name, Range] = {}
    model_year: Range = ""
    calibrations: tuple[str, ...] = ()
    min_proof: Literal["verified", "linted", "untested"] = "linted"


class Stage(FrozenModel):
    """One stage.

    Attributes:
        where: The cohort: values that a vehicle must have by name, one or a list of them; model
            years also as a range.
        size: Vehicles of the cohort that get the update, drawn at random.
        control: Vehicles of the cohort that are compared and get nothing; the others by default.
        soak: Time that the stage lasts at least.
        approval: Persons, one of whom has to approve before the stage begins.
        installed: Share of the vehicles that have to run the update at the end of the soak time.
        reporting: Share of them that has to have reported; a silent vehicle is not healthy.
        max_fell_back: Share of the vehicles that may fall back.
        judge: Comparison with vehicles that do not have the update.
        on_failure: What happens to the rollout when the stage fails.
    """

    name: str
    where: dict[
        Literal["site", "region", "model_year", "id", "hardware"], str | int | list[str | int]
    ] = {}
    size: Size = "all"
    control: Size = "all"
    soak: Duration = timedelta(0)
    approval: tuple[str, ...] = ()
    installed: float = Field(default=0.95, ge=0, le=1)
    reporting: float = Field(default=0.9, ge=0, le=1)
    max_fell_back: float = Field(default=0.05, ge=0, lt=1)
    judge: CanaryRule | None = None
    on_failure: Literal["pause", "abort", "rollback"] = "pause"

    @model_validator(mode="after")
    def _check(self) -> Stage:
        if self.judge is not None:
            unknown = set(self.judge.metrics) - set(_METRICS)
            if unknown:
                known = ", ".join(_METRICS)
                raise ValueError(
                    f"no metric {', '.join(sorted(unknown))} in reports; known: {known}"
                )
            if self.soak < timedelta(days=self.judge.looks):
                raise ValueError(
                    "a judge needs a soak time of a day for each look: reports are daily"
                )
        return self

    def matches(self, vehicle: VehicleProfile) -> bool:
        """Whether a vehicle is in the cohort."""
        return all(_matches(vehicle, name, value) for name, value in self.where.items())


class Plan(FrozenModel):
    """A rollout plan.

    Attributes:
        poll: Time between two polls of a vehicle.
        report_delay: How long a look waits for the reports of its last day.
    """

    schema_version: Literal[1]
    name: Name
    components: tuple[PlanComponent, ...] = Field(min_length=1)
    poll: Duration = timedelta(minutes=10)
    report_delay: Duration = timedelta(hours=2)
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Plan:
        for what, names in (
            ("ECU", [one.ecu for one in self.components]),
            ("stage", [one.name for one in self.stages]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"a plan names each {what} once")
        return self


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        ParameterError: The file cannot be read or is invalid; the message names the key.
    """
    try:
        return Plan.model_validate(read_yaml(path))
    except OSError as error:
        raise ParameterError("rollout plan cannot be read", where=path) from error
    except yaml.YAMLError as error:
        raise ParameterError("rollout plan is not YAML", where=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ParameterError(f"rollout plan: {first['msg']}", where=f"{path}, {key}") from error


def _matches(vehicle: VehicleProfile, name: str, value: str | int | list[str | int]) -> bool:
    wanted = value if isinstance(value, list) else [value]
    if name == "hardware":
        return any(ecu.hardware in wanted for ecu in vehicle.ecus.values())
    if name == "model_year":
        return any(_in_range(vehicle.model_year, one) for one in wanted)
    return str(getattr(vehicle, name)) in map(str, wanted)


def _in_range(year: int, wanted: str | int) -> bool:
    try:
        return Version(str(year)) in SpecifierSet(str(wanted))
    except InvalidSpecifier:
        return str(year) == str(wanted)
