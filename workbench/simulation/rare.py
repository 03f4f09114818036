"""Rare events: what an active search should find in a pool of ordinary driving.

Each lasts ``EVENT_SECONDS`` in view, so that a handful of frames of one drive show it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from workbench.errors import ParameterError
from workbench.simulation import hazards
from workbench.simulation.scenario import Actor, Event, Scenario, Waypoint

EVENT_SECONDS = 1.5
EVENTS = ("animal", "cut-in", "occluded-pedestrian", "construction")
"""Those of the built-in profiles."""
LONG_TAIL = (*EVENTS, "animal-at-night", *hazards.ACTORS)
"""All there are."""


@dataclass(frozen=True)
class Setting:
    """What an event needs around it; None leaves the drive as it is."""

    place: str | None = None
    light: str | None = None
    weather: str | None = None
    parking: bool = False


_SETTINGS = {
    "animal": Setting("country"),
    "cut-in": Setting("avenue", "night", "clear"),
    "occluded-pedestrian": Setting("town", "day", parking=True),
    "construction": Setting("avenue"),
    "animal-at-night": Setting("country", "night"),
    "debris": Setting("avenue"),
    "truck-across": Setting("country"),
    "wrong-way": Setting("avenue"),
    "filtering-motorcycle": Setting("avenue", "night", "clear"),
    "cyclist-in-fog": Setting("country", "dusk", "fog"),
    "ball-child": Setting("town", "day"),
}


def setting(event: str | None) -> Setting:
    if event is None:
        return Setting()
    if event not in _SETTINGS:
        raise ParameterError(
            "unknown rare event", where=event, hint=f"Known are {', '.join(LONG_TAIL)}"
        )
    return _SETTINGS[event]


def add(event: str, scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """``scenario`` with the event at a random moment of it."""
    latest = max(scenario.duration_s - EVENT_SECONDS, 0.0)
    frame = round(float(rng.uniform(0.15, 0.85)) * latest * scenario.frame_rate)
    start = frame / scenario.frame_rate
    end = start + EVENT_SECONDS - 0.5 / scenario.frame_rate
    actors = _ACTORS[event](scenario, rng, start, end)
    marked = Event(event, start, end, actors[0].track)
    kept = _clear(scenario, event, start, end)
    return replace(
        scenario,
        actors=(*kept, *actors),
        events=(*scenario.events, marked),
        construction=event == "construction",
    )


def _track(scenario: Scenario, event: str, number: int = 0) -> str:
    return f"{scenario.drive}/{event}-{number}"


def _animal(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A deer runs onto the road from a side, ahead of the ego vehicle."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(12, 22))
    side = 1.0 if rng.random() < 0.5 else -1.0
    speed = float(rng.uniform(3.5, 5.5))
    middle = scenario.ego_d_m + float(rng.uniform(-1.0, 1.5))
    reach = speed * (end - start)
    path = (
        Waypoint(start, s, middle + side * reach * 0.75),
        Waypoint(end, s + 1.0, middle - side * reach * 0.25),
    )
    look = int(rng.integers(1 << 30))
    return (Actor(_track(scenario, "animal"), "animal", "deer", path, None, look),)


def _cut_in(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A car comes over from the lane to the left, close ahead."""
    speed = scenario.ego_speed_mps + 1.0
    ahead = scenario.ego_speed_mps * start + float(rng.uniform(9, 13))
    left = scenario.ego_d_m + scenario.road.lane_width_m
    reach = ahead + speed * (end - start)
    later = scenario.duration_s + 1.0
    path = (
        Waypoint(start - 2.0, ahead - 2.0 * (speed + 3.0), left),
        Waypoint(start, ahead, left),
        Waypoint(end, reach, scenario.ego_d_m),
        Waypoint(later, reach + (later - end) * (speed + 3.0), scenario.ego_d_m),
    )
    look = int(rng.integers(1 << 30))
    return (Actor(_track(scenario, "cut-in"), "car", "hatchback", path, None, look),)


def _occluded_pedestrian(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A child steps out from behind a parked van."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(9, 14))
    kerb = -(scenario.road.edge_m - 1.2)
    path = (Waypoint(start, s, kerb + 0.95), Waypoint(end, s, kerb + 2.5))
    look = int(rng.integers(1 << 30))
    child = Actor(_track(scenario, "occluded-pedestrian"), "pedestrian", "child", path, None, look)
    spot = (Waypoint(0.0, s - 3.4, kerb),)
    return child, Actor(_track(scenario, "occluder"), "car", "van", spot, 0.0, look + 1)


def _works(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """Cones that taper towards a barrier on the right of the ego lane."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(14, 18))
    d = scenario.ego_d_m - scenario.road.lane_width_m / 2
    placed = [("barrier", s + 9.0, d + 0.9)]
    placed += [("cone", s + 2.2 * k, d - 1.2 + 0.42 * k) for k in range(4)]
    return tuple(
        Actor(
            _track(scenario, "works", number),
            "construction",
            shape,
            (Waypoint(start, along, across), Waypoint(end, along, across)),
            0.0,
            int(rng.integers(1 << 30)),
        )
        for number, (shape, along, across) in enumerate(placed)
    )


_ACTORS: dict[str, hazards.Happening] = {
    **hazards.ACTORS,
    "animal-at-night": _animal,
    "animal": _animal,
    "cut-in": _cut_in,
    "occluded-pedestrian": _occluded_pedestrian,
    "construction": _works,
}


def _clear(scenario: Scenario, event: str, start: float, end: float) -> tuple[Actor, ...]:
    """Everybody who is not in the way of the event."""
    kept = []
    for actor in scenario.actors:
        path = actor.path
        standing = len(path) == 1
        in_lane = abs(path[0].d_m - scenario.ego_d_m) < scenario.road.lane_width_m / 2
        beside = event == "cut-in" and (
            abs(path[0].d_m - scenario.ego_d_m - scenario.road.lane_width_m) < 1.6
        )
        if not standing and (in_lane or beside):
            continue
        near = abs(path[0].s_m - scenario.ego_speed_mps * end - 10.0) < 14.0
        right = path[0].d_m < scenario.ego_d_m - 1.0
        if standing and near and right and event == "occluded-pedestrian" and actor.cls == "car":
            continue
        kept.append(actor)
    return tuple(kept)
