"""More rare events, for pools with a long tail: what stands, comes or runs where nobody should.

The built-in profiles do without them, so that their bytes stay; `traffic.LONG_TAIL` has them all.
Each function gives its actors, the first of which is the one that marks the event's frames.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workbench.simulation.scenario import OBSTACLE, Actor, Scenario, Waypoint

Happening = Callable[[Scenario, np.random.Generator, float, float], tuple[Actor, ...]]


def _name(scenario: Scenario, event: str, number: int = 0) -> str:
    return f"{scenario.drive}/{event}-{number}"


def _look(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 30))


def _debris(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """Crates that fell off a lorry lie in the ego lane; no class of the schema is theirs."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(9, 14))
    d = scenario.ego_d_m + float(rng.uniform(-0.9, 0.9))
    path = (Waypoint(start, s, d), Waypoint(end, s, d))
    name = _name(scenario, "debris")
    return (Actor(name, OBSTACLE, "load", path, float(rng.uniform(-40, 40)), _look(rng)),)


def _truck_across(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A lorry has jackknifed and stands across the road."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(13, 20))
    d = scenario.ego_d_m + float(rng.uniform(-0.8, 1.6))
    path = (Waypoint(start, s, d), Waypoint(end, s, d))
    heading = (90.0 if rng.random() < 0.5 else -90.0) + float(rng.uniform(-18, 18))
    return (
        Actor(_name(scenario, "truck-across"), "truck", "box-truck", path, heading, _look(rng)),
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
    return (Actor(_name(scenario, "wrong-way"), "car", shape, path, None, _look(rng)),)


def _filtering_motorcycle(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A motorcycle rides past at night, between the ego lane and the one to its left."""
    ahead = scenario.ego_speed_mps * start + float(rng.uniform(5.5, 7.0))
    speed = scenario.ego_speed_mps + float(rng.uniform(2.5, 4.5))
    d = scenario.ego_d_m + 0.47 * scenario.road.lane_width_m
    path = (Waypoint(start, ahead, d), Waypoint(end, ahead + speed * (end - start), d))
    name = _name(scenario, "filtering-motorcycle")
    return (Actor(name, "motorcycle", "motorcycle", path, None, _look(rng)),)


def _cyclist_in_fog(
    scenario: Scenario, rng: np.random.Generator, start: float, end: float
) -> tuple[Actor, ...]:
    """A cyclist ahead on a country road, in fog at dusk."""
    s = scenario.ego_speed_mps * end + float(rng.uniform(8, 12))
    speed = float(rng.uniform(4, 6))
    d = scenario.ego_d_m - float(rng.uniform(0.2, 1.0))
    path = (Waypoint(start, s - speed * (end - start), d), Waypoint(end, s, d))
    name = _name(scenario, "cyclist-in-fog")
    return (Actor(name, "cyclist", "bicycle", path, None, _look(rng)),)


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
        Actor(_name(scenario, "ball-child"), "pedestrian", "child", child, None, _look(rng)),
        Actor(_name(scenario, "ball-child", 1), OBSTACLE, "ball", rolling, None, _look(rng)),
    )


ACTORS: dict[str, Happening] = {
    "debris": _debris,
    "truck-across": _truck_across,
    "wrong-way": _wrong_way,
    "filtering-motorcycle": _filtering_motorcycle,
    "cyclist-in-fog": _cyclist_in_fog,
    "ball-child": _ball,
}
