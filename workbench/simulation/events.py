"""Rare events that a search for interesting frames should find.

Each is in view for `EVENT_SECONDS`, so a few frames of one drive show it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from workbench.core.errors import ParameterError
from workbench.core.text import did_you_mean
from workbench.simulation.scenario import OBSTACLE, Actor, Event, Path, Scenario, Waypoint

__all__ = ()

EVENT_SECONDS = 1.5


@dataclass(frozen=True)
class _EventSetting:
    """What an event needs around it; None leaves the drive unchanged."""

    road_type: str | None = None
    light: str | None = None
    weather: str | None = None
    parking: bool = False


def event_setting(event: str | None) -> _EventSetting:
    """The setting of an event, or an empty one for None.

    Raises:
        ParameterError: The event is unknown.
    """
    if event is None:
        return _EventSetting()
    if event not in _EVENTS:
        raise ParameterError(
            f"unknown rare event {event!r}", hint=did_you_mean(event, LONG_TAIL_EVENTS)
        )
    return _EVENTS[event][1]


def add_event(event: str, scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """``scenario`` with the event at a random time; actors in its way are removed."""
    latest = max(scenario.duration_s - EVENT_SECONDS, 0.0)
    frame = round(float(rng.uniform(0.15, 0.85)) * latest * scenario.frame_rate)
    start = frame / scenario.frame_rate
    end = start + EVENT_SECONDS - 0.5 / scenario.frame_rate
    actors = _EVENTS[event][0](scenario, rng, start, end)
    return replace(
        scenario,
        actors=(*_unobstructing(scenario, event, end), *actors),
        events=(*scenario.events, Event(event, start, end, actors[0].track)),
        construction=event == "construction",
    )


def _unobstructing(scenario: Scenario, event: str, end: float) -> tuple[Actor, ...]:
    """The actors that are not in the way of the event."""
    kept = []
    for actor in scenario.actors:
        first = actor.path[0]
        standing = len(actor.path) == 1
        in_lane = abs(first.d_m - scenario.ego_d_m) < scenario.road.lane_width_m / 2
        beside = event == "cut-in" and (
            abs(first.d_m - scenario.ego_d_m - scenario.road.lane_width_m) < 1.6
        )
        if not standing and (in_lane or beside):
            continue
        near = abs(first.s_m - scenario.ego_speed_mps * end - 10.0) < 14.0
        right = first.d_m < scenario.ego_d_m - 1.0
        if standing and near and right and event == "occluded-pedestrian" and actor.cls == "car":
            continue
        kept.append(actor)
    return tuple(kept)


def _actor(
    scenario: Scenario,
    name: str,
    cls: str,
    shape: str,
    path: Path,
    rng: np.random.Generator,
    *,
    heading_deg: float | None = None,
    number: int = 0,
) -> Actor:
    track = f"{scenario.drive}/{name}-{number}"
    return Actor(track, cls, shape, path, heading_deg, int(rng.integers(1 << 30)))


def _debris(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """Crates that fell off a truck lie in the ego lane; no class of the schema fits."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(9, 14))
    d = scenario.ego_d_m + float(rng.uniform(-0.9, 0.9))
    path = (Waypoint(start, s, d), Waypoint(end, s, d))
    heading = float(rng.uniform(-40, 40))
    return (_actor(scenario, "debris", OBSTACLE, "load", path, rng, heading_deg=heading),)


def _truck_across(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A jackknifed truck stands across the road."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(13, 20))
    d = scenario.ego_d_m + float(rng.uniform(-0.8, 1.6))
    path = (Waypoint(start, s, d), Waypoint(end, s, d))
    heading = (90.0 if rng.random() < 0.5 else -90.0) + float(rng.uniform(-18, 18))
    return (_actor(scenario, "truck-across", "truck", "box-truck", path, rng, heading_deg=heading),)


def _wrong_way(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A car comes towards the ego vehicle in its own lane."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(9, 14))
    speed = float(rng.uniform(4, 7))
    d = scenario.ego_d_m + float(rng.uniform(-0.5, 0.5))
    path = (Waypoint(start, s + speed * (end - start), d), Waypoint(end, s, d))
    shape = str(rng.choice(["sedan", "hatchback", "suv"]))
    return (_actor(scenario, "wrong-way", "car", shape, path, rng),)


def _filtering_motorcycle(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A motorcycle passes at night, between the ego lane and the lane to its left."""
    ahead = scenario.ego_speed_mps * start + float(rng.uniform(5.5, 7.0))
    speed = scenario.ego_speed_mps + float(rng.uniform(2.5, 4.5))
    d = scenario.ego_d_m + 0.47 * scenario.road.lane_width_m
    path = (Waypoint(start, ahead, d), Waypoint(end, ahead + speed * (end - start), d))
    return (_actor(scenario, "filtering-motorcycle", "motorcycle", "motorcycle", path, rng),)


def _cyclist_in_fog(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A cyclist ahead on a country road, in fog at dusk."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(8, 12))
    speed = float(rng.uniform(4, 6))
    d = scenario.ego_d_m - float(rng.uniform(0.2, 1.0))
    path = (Waypoint(start, s - speed * (end - start), d), Waypoint(end, s, d))
    return (_actor(scenario, "cyclist-in-fog", "cyclist", "bicycle", path, rng),)


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
    ball = (Waypoint(start, s - 0.3, first + ahead), Waypoint(end, s - 0.3, last + ahead))
    return (
        _actor(scenario, "ball-child", "pedestrian", "child", child, rng),
        _actor(scenario, "ball-child", OBSTACLE, "ball", ball, rng, number=1),
    )


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
    return (_actor(scenario, "animal", "animal", "deer", path, rng),)


def _cut_in(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A car changes from the lane to the left into the ego lane, close ahead."""
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
    return (_actor(scenario, "cut-in", "car", "hatchback", path, rng),)


def _occluded_pedestrian(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A child steps out from behind a parked van."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(9, 14))
    kerb = -(scenario.road.edge_m - 1.2)
    path = (Waypoint(start, s, kerb + 0.95), Waypoint(end, s, kerb + 2.5))
    child = _actor(scenario, "occluded-pedestrian", "pedestrian", "child", path, rng)
    spot = (Waypoint(0.0, s - 3.4, kerb),)
    van = Actor(f"{scenario.drive}/occluder-0", "car", "van", spot, 0.0, child.look + 1)
    return child, van


def _construction(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """Cones that taper towards a barrier on the right of the ego lane."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(14, 18))
    d = scenario.ego_d_m - scenario.road.lane_width_m / 2
    positions = [("barrier", s + 9.0, d + 0.9)]
    positions += [("cone", s + 2.2 * k, d - 1.2 + 0.42 * k) for k in range(4)]
    return tuple(
        _actor(
            scenario,
            "works",
            "construction",
            shape,
            (Waypoint(start, along, across), Waypoint(end, along, across)),
            rng,
            heading_deg=0.0,
            number=number,
        )
        for number, (shape, along, across) in enumerate(positions)
    )


_EventActors = Callable[[Scenario, np.random.Generator, float, float], tuple[Actor, ...]]

_EVENTS: dict[str, tuple[_EventActors, _EventSetting]] = {
    "animal": (_animal, _EventSetting("country")),
    "cut-in": (_cut_in, _EventSetting("avenue", "night", "clear")),
    "occluded-pedestrian": (_occluded_pedestrian, _EventSetting("town", "day", parking=True)),
    "construction": (_construction, _EventSetting("avenue")),
    "animal-at-night": (_animal, _EventSetting("country", "night")),
    "debris": (_debris, _EventSetting("avenue")),
    "truck-across": (_truck_across, _EventSetting("country")),
    "wrong-way": (_wrong_way, _EventSetting("avenue")),
    "filtering-motorcycle": (_filtering_motorcycle, _EventSetting("avenue", "night", "clear")),
    "cyclist-in-fog": (_cyclist_in_fog, _EventSetting("country", "dusk", "fog")),
    "ball-child": (_ball, _EventSetting("town", "day")),
}
LONG_TAIL_EVENTS = tuple(_EVENTS)
"""All events."""
EVENTS = LONG_TAIL_EVENTS[:4]
"""Events of the built-in profiles."""
