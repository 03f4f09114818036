"""Rare events that a search for interesting frames should find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from workbench.core.errors import ParameterError
from workbench.simulation.scenario import OBSTACLE, Actor, Event, Scenario, Waypoint

EventActors = Callable[[Scenario, np.random.Generator, float, float], tuple[Actor, ...]]


def _track_name(scenario: Scenario, event: str, number: int = 0) -> str:
    return f"{scenario.drive}/{event}-{number}"


def _random_look(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 30))


def _debris(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """Crates that fell off a lorry lie in the ego lane; no class of the schema is theirs."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(9, 14))
    d = scenario.ego_d_m + float(rng.uniform(-0.9, 0.9))
    path = (Waypoint(start, s, d), Waypoint(end, s, d))
    name = _track_name(scenario, "debris")
    return (Actor(name, OBSTACLE, "load", path, float(rng.uniform(-40, 40)), _random_look(rng)),)


def _truck_across(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A lorry has jackknifed and stands across the road."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(13, 20))
    d = scenario.ego_d_m + float(rng.uniform(-0.8, 1.6))
    path = (Waypoint(start, s, d), Waypoint(end, s, d))
    heading = (90.0 if rng.random() < 0.5 else -90.0) + float(rng.uniform(-18, 18))
    return (
        Actor(
            _track_name(scenario, "truck-across"),
            "truck",
            "box-truck",
            path,
            heading,
            _random_look(rng),
        ),
    )


def _wrong_way(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A car comes towards the ego vehicle in its own lane."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(9, 14))
    speed = float(rng.uniform(4, 7))
    d = scenario.ego_d_m + float(rng.uniform(-0.5, 0.5))
    path = (Waypoint(start, s + speed * (end - start), d), Waypoint(end, s, d))
    shape = str(rng.choice(["sedan", "hatchback", "suv"]))
    return (Actor(_track_name(scenario, "wrong-way"), "car", shape, path, None, _random_look(rng)),)


def _filtering_motorcycle(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A motorcycle rides past at night, between the ego lane and the one to its left."""
    ahead = scenario.ego_speed_mps * start + float(rng.uniform(5.5, 7.0))
    speed = scenario.ego_speed_mps + float(rng.uniform(2.5, 4.5))
    d = scenario.ego_d_m + 0.47 * scenario.road.lane_width_m
    path = (Waypoint(start, ahead, d), Waypoint(end, ahead + speed * (end - start), d))
    name = _track_name(scenario, "filtering-motorcycle")
    return (Actor(name, "motorcycle", "motorcycle", path, None, _random_look(rng)),)


def _cyclist_in_fog(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A cyclist ahead on a country road, in fog at dusk."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(8, 12))
    speed = float(rng.uniform(4, 6))
    d = scenario.ego_d_m - float(rng.uniform(0.2, 1.0))
    path = (Waypoint(start, s - speed * (end - start), d), Waypoint(end, s, d))
    name = _track_name(scenario, "cyclist-in-fog")
    return (Actor(name, "cyclist", "bicycle", path, None, _random_look(rng)),)


def _ball(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A child runs onto the road after a ball."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(8, 12))
    side = 1.0 if rng.random() < 0.3 else -1.0
    speed = float(rng.uniform(2.6, 3.4))
    last = scenario.ego_d_m + side * float(rng.uniform(0.2, 1.2))
    first = last + side * speed * (end - start)
    child = (Waypoint(start, s, first), Waypoint(end, s + 0.4, last))
    ahead = -side * float(rng.uniform(1.1, 1.7))
    rolling = (Waypoint(start, s - 0.3, first + ahead), Waypoint(end, s - 0.3, last + ahead))
    return (
        Actor(
            _track_name(scenario, "ball-child"),
            "pedestrian",
            "child",
            child,
            None,
            _random_look(rng),
        ),
        Actor(
            _track_name(scenario, "ball-child", 1),
            OBSTACLE,
            "ball",
            rolling,
            None,
            _random_look(rng),
        ),
    )


_HAZARD_ACTORS: dict[str, EventActors] = {
    "debris": _debris,
    "truck-across": _truck_across,
    "wrong-way": _wrong_way,
    "filtering-motorcycle": _filtering_motorcycle,
    "cyclist-in-fog": _cyclist_in_fog,
    "ball-child": _ball,
}


# ---- Rare events: what an active search should find in a pool of ordinary driving.
#
# Each lasts ``EVENT_SECONDS`` in view, so that a handful of frames of one drive show it.


EVENT_SECONDS = 1.5
EVENTS = ("animal", "cut-in", "occluded-pedestrian", "construction")
"""Those of the built-in profiles."""
LONG_TAIL_EVENTS = (*EVENTS, "animal-at-night", *_HAZARD_ACTORS)
"""All there are."""


@dataclass(frozen=True)
class EventSetting:
    """What an event needs around it; None leaves the drive as it is."""

    place: str | None = None
    light: str | None = None
    weather: str | None = None
    parking: bool = False


_EVENT_SETTINGS = {
    "animal": EventSetting("country"),
    "cut-in": EventSetting("avenue", "night", "clear"),
    "occluded-pedestrian": EventSetting("town", "day", parking=True),
    "construction": EventSetting("avenue"),
    "animal-at-night": EventSetting("country", "night"),
    "debris": EventSetting("avenue"),
    "truck-across": EventSetting("country"),
    "wrong-way": EventSetting("avenue"),
    "filtering-motorcycle": EventSetting("avenue", "night", "clear"),
    "cyclist-in-fog": EventSetting("country", "dusk", "fog"),
    "ball-child": EventSetting("town", "day"),
}


def event_setting(event: str | None) -> EventSetting:
    if event is None:
        return EventSetting()
    if event not in _EVENT_SETTINGS:
        raise ParameterError(
            "unknown rare event", where=event, hint=f"Known are {', '.join(LONG_TAIL_EVENTS)}"
        )
    return _EVENT_SETTINGS[event]


def add_event(event: str, scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """``scenario`` with the event at a random moment of it."""
    latest = max(scenario.duration_s - EVENT_SECONDS, 0.0)
    frame = round(float(rng.uniform(0.15, 0.85)) * latest * scenario.frame_rate)
    start = frame / scenario.frame_rate
    end = start + EVENT_SECONDS - 0.5 / scenario.frame_rate
    actors = _EVENT_ACTORS[event](scenario, rng, start, end)
    marked = Event(event, start, end, actors[0].track)
    kept = _cleared_actors(scenario, event, start, end)
    return replace(
        scenario,
        actors=(*kept, *actors),
        events=(*scenario.events, marked),
        construction=event == "construction",
    )


def _event_track(scenario: Scenario, event: str, number: int = 0) -> str:
    return f"{scenario.drive}/{event}-{number}"


def _animal_crossing(
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
    return (Actor(_event_track(scenario, "animal"), "animal", "deer", path, None, look),)


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
    return (Actor(_event_track(scenario, "cut-in"), "car", "hatchback", path, None, look),)


def _occluded_pedestrian(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A child steps out from behind a parked van."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(9, 14))
    kerb = -(scenario.road.edge_m - 1.2)
    path = (Waypoint(start, s, kerb + 0.95), Waypoint(end, s, kerb + 2.5))
    look = int(rng.integers(1 << 30))
    child = Actor(
        _event_track(scenario, "occluded-pedestrian"), "pedestrian", "child", path, None, look
    )
    spot = (Waypoint(0.0, s - 3.4, kerb),)
    return child, Actor(_event_track(scenario, "occluder"), "car", "van", spot, 0.0, look + 1)


def _construction(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """Cones that taper towards a barrier on the right of the ego lane."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(14, 18))
    d = scenario.ego_d_m - scenario.road.lane_width_m / 2
    placed = [("barrier", s + 9.0, d + 0.9)]
    placed += [("cone", s + 2.2 * k, d - 1.2 + 0.42 * k) for k in range(4)]
    return tuple(
        Actor(
            _event_track(scenario, "works", number),
            "construction",
            shape,
            (Waypoint(start, along, across), Waypoint(end, along, across)),
            0.0,
            int(rng.integers(1 << 30)),
        )
        for number, (shape, along, across) in enumerate(placed)
    )


_EVENT_ACTORS: dict[str, EventActors] = {
    **_HAZARD_ACTORS,
    "animal-at-night": _animal_crossing,
    "animal": _animal_crossing,
    "cut-in": _cut_in,
    "occluded-pedestrian": _occluded_pedestrian,
    "construction": _construction,
}


def _cleared_actors(scenario: Scenario, event: str, start: float, end: float) -> tuple[Actor, ...]:
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
