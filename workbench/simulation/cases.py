"""Test cases of crash avoidance: a grid as data, expanded to cases with stable ids.

The grid is ``euro_ncap.yaml`` beside this module. An id names what varies, as in
``CPNA-20kmh-50%-night``: code, ego speed, impact location, light; where they vary also the target's
speed and side, and ``fcw`` where the driver is warned instead of the car braking.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from workbench.core.errors import ParameterError
from workbench.core.parsing import read_yaml
from workbench.core.text import did_you_mean
from workbench.records.base import FrozenModel

__all__ = ["Case", "all_cases", "find_cases"]

GRID_FILE = Path(__file__).with_name("euro_ncap.yaml")

Target = Literal["adult", "child", "bicycle", "motorcycle", "car"]
Motion = Literal["crossing", "along", "braking", "oncoming", "turning"]
Side = Literal["nearside", "farside", ""]
_STEP_KMH = 10


class Case(FrozenModel):
    """One test: who moves how, and how fast.

    Attributes:
        range: ``standard`` or ``extended``.
        function: ``AEB``: the car brakes; ``FCW``: it warns the driver.
        ego_kmh: Speed of the ego, km/h; the same for ``target_kmh``.
        impact: Where the target meets the ego's front, % of its width; 50 is the middle.
        light: ``day`` or ``night``; at night with ``streetlights`` or without.
        obstructed: Whether parked cars hide the target at first.
        headway_s: Of a target ahead that brakes with ``target_mps2``.
    """

    id: str
    code: str
    title: str
    range: Literal["standard", "extended"]
    function: Literal["AEB", "FCW"] = "AEB"
    target: Target
    motion: Motion
    side: Side = ""
    ego_kmh: float
    target_kmh: float
    impact: float = 50
    light: Literal["day", "night"] = "day"
    streetlights: bool = False
    obstructed: bool = False
    headway_s: float = 0
    target_mps2: float = 0


class _Range(FrozenModel):
    first: int = Field(alias="from")
    last: int = Field(alias="to")

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        return iter(range(self.first, self.last + 1, _STEP_KMH))


class _Grid(FrozenModel):
    range: Literal["standard", "extended"]
    function: Literal["AEB", "FCW"] = "AEB"
    ego_kmh: _Range | tuple[int, ...]
    target_kmh: int | tuple[int, ...] | dict[int, int] | Literal["same"]
    impact: tuple[int, ...] = ()
    light: tuple[Literal["day", "night"], ...] = ()

    def target_speeds(self, ego: int) -> tuple[int, ...]:
        if self.target_kmh == "same":
            return (ego,)
        if isinstance(self.target_kmh, dict):
            return (self.target_kmh[ego],)
        return (self.target_kmh,) if isinstance(self.target_kmh, int) else self.target_kmh


class _Family(FrozenModel):
    code: str
    title: str
    target: Target
    motion: Motion
    sides: tuple[Side, ...] = ("",)
    streetlights: bool = False
    obstructed: bool = False
    headway_s: float = 0
    target_mps2: float = 0
    grids: tuple[_Grid, ...]

    def cases(self) -> Iterator[Case]:
        shared = self.model_dump(exclude={"sides", "grids"})
        for grid in self.grids:
            several = isinstance(grid.target_kmh, tuple)
            for ego in grid.ego_kmh:
                for speed in grid.target_speeds(ego):
                    for side in self.sides:
                        for impact in grid.impact or (None,):
                            for light in grid.light or (None,):
                                parts = [self.code, f"{ego}kmh"]
                                parts += [f"target{speed}kmh"] if several else []
                                parts += [side] if len(self.sides) > 1 else []
                                parts += [] if impact is None else [f"{impact}%"]
                                parts += [light] if light else []
                                parts += ["fcw"] if grid.function == "FCW" else []
                                yield Case(
                                    **shared,
                                    id="-".join(parts),
                                    range=grid.range,
                                    function=grid.function,
                                    side=side,
                                    ego_kmh=ego,
                                    target_kmh=speed,
                                    impact=50 if impact is None else impact,
                                    light=light or "day",
                                )


class _File(FrozenModel):
    schema_version: Literal[1]
    version: str
    families: tuple[_Family, ...]


def load_cases(path: Path) -> tuple[Case, ...]:
    """Expand a grid file.

    Raises:
        ParameterError: The file has unknown keys or values, or two cases have one id.
    """
    try:
        grid = _File.model_validate(read_yaml(path))
    except (OSError, ValidationError) as error:
        raise ParameterError(
            "grid of scenarios cannot be read", where=f"{path}: {error}"
        ) from error
    cases = tuple(case for family in grid.families for case in family.cases())
    ids = [case.id for case in cases]
    if len(set(ids)) != len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise ParameterError(f"two cases are {twice}", where=path)
    return cases


@lru_cache(maxsize=1)
def all_cases() -> tuple[Case, ...]:
    """The cases of the built-in grid, standard range and extended range."""
    return load_cases(GRID_FILE)


def find_cases(patterns: Sequence[str], cases: Iterable[Case] | None = None) -> tuple[Case, ...]:
    """Cases by id, code or pattern (``CP*-night``), in the grid's order; all without patterns.

    Raises:
        ParameterError: A pattern matches nothing.
    """
    known = tuple(all_cases() if cases is None else cases)
    if not patterns:
        return known
    chosen: set[str] = set()
    for pattern in patterns:
        found = {case.id for case in known if pattern == case.code or fnmatchcase(case.id, pattern)}
        if not found:
            names = [case.id for case in known] + sorted({case.code for case in known})
            raise ParameterError(
                f"no scenario {pattern!r}",
                hint=f"{did_you_mean(pattern, names)}; `workbench scenarios list` has all ids",
            )
        chosen |= found
    return tuple(case for case in known if case.id in chosen)
