"""ASAM OpenSCENARIO XML (1.x) in: what this can play becomes cases, the rest is refused in words.

Two kinds of files are played:

    parameter variation   ``ParameterValueDistribution`` with deterministic sets, ranges and value
                          sets, whose ``Scenario_ID`` is a code of the grid; each combination is a
                          case. Parameters: ``Ego_speed_kph``, ``ImpactLocation``,
                          ``Target_init_speed_kph``, ``Target_final_speed_kph``,
                          ``VRU_finalSpeed_kph``, ``LightingConditions``, ``ImpactSide``.
    storyboard            an entity ``Ego`` and one target, each with a WorldPosition or
                          LanePosition and an absolute speed in ``Init``; both drive straight on

Everything else is refused: stochastic distributions, catalogs and controllers that the outcome
depends on, events, routes, triggers other than a stop, lateral actions, expressions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from workbench.core.errors import DataError
from workbench.core.parsing import read_regular
from workbench.simulation.cases import Case, Target, all_cases
from workbench.simulation.play import EGO_WIDTH_M

__all__ = ()

_MAX_BYTES = 4 * 2**20
_MAX_CASES = 2000
_LANE_WIDTH_M = 3.5
_KNOWN = {
    *("Scenario_ID", "Ego_speed_kph", "ImpactLocation", "Target_init_speed_kph", "ImpactSide"),
    *("Target_final_speed_kph", "VRU_finalSpeed_kph", "LightingConditions"),
}
_IGNORED = {  # of the simulator's bodies and paths, which this renderer has its own of
    *("Target_catalogName", "Target_catalogEntry", "Target_length", "Target_width"),
    *("Target_BBcenter_x", "isTargetbraking", "Target_time_headway", "Target_deceleration"),
    *("VRU_initLatDist", "VRU_accelerationDist", "VRU_trajectoryOrientation", "RoadNetwork"),
    *("Target_steadyStateDist", "Target_accelerationDist", "Target_trajectory"),
    *("Trajectory_R1", "Trajectory_R2", "Trajectory_alpha", "Trajectory_beta"),
}
_NOT_PLAYED = {
    "Stochastic": "stochastic distributions: a case has to be the same each time",
    "ControllerAction": "controllers",
    "SynchronizeAction": "synchronised motion outside the grid's own scenarios",
    "LaneChangeAction": "lane changes",
    "LateralAction": "lateral actions",
    "RoutingAction": "routes and trajectories",
    "TrafficAction": "traffic sources",
    "Event": "events: only motion from Init is played",
    "CatalogReference": "catalog references in a storyboard",
}


@dataclass(frozen=True)
class ReadScenarios:
    """Cases of a file, and what it has that is not played, with the reason."""

    cases: tuple[Case, ...]
    refused: tuple[str, ...]


def read_cases(path: Path) -> ReadScenarios:
    """Read an OpenSCENARIO XML file.

    Raises:
        DataError: It is not OpenSCENARIO XML, is too large, or declares a document type.
    """
    content = read_regular(path, max_bytes=_MAX_BYTES)
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise DataError("XML with a document type is not read", where=path)
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 - no entities, see above
    except ElementTree.ParseError as error:
        raise DataError(f"not XML: {error}", where=path) from error
    if root.tag != "OpenSCENARIO":
        raise DataError(f"not OpenSCENARIO XML: its root is {root.tag}", where=path)
    header = root.find("FileHeader")
    if header is None or header.get("revMajor") != "1":
        raise DataError("only OpenSCENARIO XML 1.x is read", where=path)
    refused = [
        f"<{tag}>: {why} are not played"
        for tag, why in _NOT_PLAYED.items()
        if next(root.iter(tag), None) is not None
    ]
    if root.find("ParameterValueDistribution") is not None:
        cases, more = _from_variation(root)
        return ReadScenarios(cases, (*refused, *more))
    if refused:
        return ReadScenarios((), tuple(refused))
    try:
        return ReadScenarios((_from_storyboard(root, path.stem),), ())
    except _Unplayable as error:
        return ReadScenarios((), (str(error),))


class _Unplayable(Exception):
    """Why a file or combination cannot be played."""


def _from_variation(root: ElementTree.Element) -> tuple[tuple[Case, ...], list[str]]:
    refused: list[str] = []
    groups: list[list[dict[str, str]]] = []
    for part in root.iter("DeterministicSingleParameterDistribution"):
        name = part.get("parameterName", "")
        groups.append([{name: value} for value in _values(part)])
    for part in root.iter("DeterministicMultiParameterDistribution"):
        groups.append(
            [
                {one.get("parameterRef", ""): one.get("value", "") for one in row}
                for row in part.iter("ParameterValueSet")
            ]
        )
    names = {name for group in groups for row in group for name in row}
    refused += [
        f"parameter {name}: not known, so the cases would not be the file's"
        for name in sorted(names - _KNOWN - _IGNORED)
    ]
    count = math.prod(len(group) for group in groups)
    if refused or not groups or count > _MAX_CASES:
        why = [f"{count} combinations: more than {_MAX_CASES}"] if count > _MAX_CASES else []
        return (), refused + why or ["no deterministic distribution"]
    cases: dict[str, Case] = {}
    for rows in itertools.product(*groups):
        values = {name: value for row in rows for name, value in row.items()}
        try:
            case = _case_of(values)
        except (_Unplayable, ValueError) as error:
            refused.append(f"{values.get('Scenario_ID', 'a combination')}: {error}")
            continue
        cases[case.id] = case
    return tuple(cases.values()), list(dict.fromkeys(refused))


def _values(part: ElementTree.Element) -> Iterator[str]:
    for element in part.iter("Element"):
        yield element.get("value", "")
    for spread in part.iter("DistributionRange"):
        limits = spread.find("Range")
        step = float(spread.get("stepWidth", "0"))
        if limits is not None and step > 0:
            low, high = float(limits.get("lowerLimit", "0")), float(limits.get("upperLimit", "0"))
            for number in range(min(int((high - low) / step + 1e-9), _MAX_CASES) + 1):
                yield f"{low + number * step:g}"


def _case_of(values: dict[str, str]) -> Case:
    """The grid's case with these values, or one of the same code with other numbers."""
    code = values.get("Scenario_ID", "")
    family = [case for case in all_cases() if case.code == code]
    if not family:
        raise _Unplayable(f"scenario {code!r} is not in the grid")
    light = {"Night": "night", "Sunny": "day", "": "day"}.get(values.get("LightingConditions", ""))
    side = {"-1": "nearside", "1": "farside"}.get(values.get("ImpactSide", ""), "")
    if light is None:
        raise _Unplayable(f"light {values['LightingConditions']!r}")
    ego, impact = float(values["Ego_speed_kph"]), float(values.get("ImpactLocation", "50"))
    if not 0 < ego <= 250 or not -100 <= impact <= 200:
        raise _Unplayable(f"ego speed {ego:g} km/h or impact {impact:g} % is out of range")
    speed = next(
        (
            float(values[name])
            for name in ("VRU_finalSpeed_kph", "Target_init_speed_kph", "Target_final_speed_kph")
            if name in values
        ),
        None,
    )
    fits = [
        case
        for case in family
        if (case.ego_kmh, case.impact, case.light) == (ego, impact, light)
        and (not side or case.side == side)
        and speed in (None, case.target_kmh)
    ]
    if fits:
        return fits[0]
    base = next((case for case in family if case.side == side), family[0])
    changed = {
        "id": f"{code}-{ego:g}kmh-{impact:g}%-{light}-other",
        "ego_kmh": ego,
        "impact": impact,
        "light": light,
        "target_kmh": base.target_kmh if speed is None else speed,
    }
    return base.model_copy(update=changed)


@dataclass(frozen=True)
class _Start:
    """Position in metres, heading in radians and speed in m/s of an entity in Init."""

    x: float
    y: float
    heading: float
    speed: float


def _from_storyboard(root: ElementTree.Element, name: str) -> Case:
    starts = {
        private.get("entityRef", ""): _start(private)
        for private in root.iterfind("Storyboard/Init/Actions/Private")
    }
    others = [one for one in starts if one != "Ego"]
    if "Ego" not in starts or len(others) != 1:
        raise _Unplayable(f"entities {', '.join(starts) or 'none'}: Ego and one target are played")
    ego, target = starts["Ego"], starts[others[0]]
    if ego.speed <= 0:
        raise _Unplayable("the ego does not move")
    kind = _target_kind(root, others[0])
    turn = math.degrees(math.remainder(target.heading - ego.heading, 2 * math.pi))
    c, s = math.cos(ego.heading), math.sin(ego.heading)
    ahead = c * (target.x - ego.x) + s * (target.y - ego.y)
    left = -s * (target.x - ego.x) + c * (target.y - ego.y)
    shared = {
        "id": f"{name}-{ego.speed * 3.6:g}kmh",
        "code": name,
        "title": f"OpenSCENARIO {name}",
        "range": "extended",
        "target": kind,
        "ego_kmh": ego.speed * 3.6,
        "target_kmh": target.speed * 3.6,
        "light": "day",
    }
    if abs(turn) < 10 or abs(turn) > 170:
        along = abs(turn) < 10
        if ahead <= 0 or (along and target.speed >= ego.speed):
            raise _Unplayable("the ego never reaches the target")
        impact = 100 * (left / EGO_WIDTH_M + 0.5)
        if not -50 <= impact <= 150:
            raise _Unplayable(f"the ego passes the target {abs(left):.1f} m aside")
        return Case(**shared, motion="along" if along else "oncoming", impact=impact)  # type: ignore[arg-type]
    if 80 <= abs(turn) <= 100 and target.speed > 0:
        way = 1.0 if turn > 0 else -1.0
        meets = left + way * target.speed * ahead / ego.speed
        impact = 100 * (way * meets / EGO_WIDTH_M + 0.5)
        if ahead <= 0 or not -50 <= impact <= 150:
            raise _Unplayable("ego and target do not meet")
        side = "nearside" if way > 0 else "farside"
        return Case(**shared, motion="crossing", side=side, impact=impact)  # type: ignore[arg-type]
    raise _Unplayable(f"target heads {turn:.0f}° to the ego: only 0, 90 and 180° are played")


def _start(private: ElementTree.Element) -> _Start:
    world, lane = private.find(".//WorldPosition"), private.find(".//LanePosition")
    speed = private.find(".//AbsoluteTargetSpeed")
    try:
        if world is not None:
            x, y, heading = (float(world.get(key, "0")) for key in ("x", "y", "h"))
        elif lane is not None:
            number = int(lane.get("laneId", "0"))
            x = float(lane.get("s", "0"))
            y = math.copysign((abs(number) - 0.5) * _LANE_WIDTH_M, number)
            y += float(lane.get("offset", "0"))
            heading = 0.0 if number < 0 else math.pi
        else:
            raise _Unplayable(f"{private.get('entityRef')} has no WorldPosition or LanePosition")
        return _Start(x, y, heading, 0.0 if speed is None else float(speed.get("value", "0")))
    except ValueError as error:
        raise _Unplayable(f"{private.get('entityRef')}: expressions are not evaluated") from error


def _target_kind(root: ElementTree.Element, name: str) -> Target:
    for entity in root.iter("ScenarioObject"):
        if entity.get("name") == name:
            if entity.find("Pedestrian") is not None:
                return "adult"
            vehicle = entity.find("Vehicle")
            kinds: dict[str, Target] = {
                "car": "car",
                "bicycle": "bicycle",
                "motorbike": "motorcycle",
            }
            category = "" if vehicle is None else vehicle.get("vehicleCategory", "")
            if category in kinds:
                return kinds[category]
            raise _Unplayable(f"target of the category {category or 'none'!r}")
    raise _Unplayable(f"no ScenarioObject {name}")
