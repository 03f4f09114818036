"""Ordinary traffic: who drives, parks, walks and stands along a road.

Densities are chosen by eye to look like a town, an avenue, a country road or a motorway; they are
not measured on any real traffic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from workbench.simulation.scenario import Actor, Scenario, Waypoint

VIEW_M = 80.0
"""Nobody is placed farther ahead than this at any time of a drive."""


@dataclass(frozen=True)
class Place:
    """A kind of road: its cross-section and how busy it is (people and signs per 100 m)."""

    lanes: tuple[int, ...]
    speed_mps: tuple[float, float]
    gap_m: float
    people: float
    cyclists: float
    signs: float
    lights: float
    parking: float


PLACES = {
    "town": Place((1,), (7.0, 11.0), 26.0, 5.5, 1.2, 2.0, 1.0, 0.75),
    "avenue": Place((2,), (10.0, 14.0), 24.0, 3.0, 0.8, 2.0, 1.4, 0.35),
    "country": Place((1,), (14.0, 20.0), 45.0, 0.3, 0.4, 1.4, 0.0, 0.0),
    "motorway": Place((2, 3), (21.0, 28.0), 34.0, 0.0, 0.0, 1.5, 0.0, 0.0),
}


def traffic(rng: np.random.Generator, scenario: Scenario, place: Place) -> Iterator[Actor]:
    counter = iter(range(1, 100_000))
    for actor in (
        *_vehicles(rng, scenario, place),
        *_parked(rng, scenario),
        *_people(rng, scenario, place),
        *_signals(rng, scenario, place),
    ):
        yield replace(actor, track=f"{scenario.drive}/{next(counter)}")


_VEHICLES = (
    (0.66, "car", ("sedan", "hatchback", "suv", "van")),
    (0.18, "truck", ("box-truck", "tractor")),
    (0.07, "bus", ("bus",)),
    (0.09, "motorcycle", ("motorcycle",)),
)


def _vehicle(rng: np.random.Generator, path: tuple[Waypoint, ...], *, parked: bool) -> Actor:
    weights = np.array([v[0] for v in _VEHICLES]) * ([1, 0.12, 0, 0] if parked else [1, 1, 1, 1])
    _, cls, bodies = _VEHICLES[int(rng.choice(len(_VEHICLES), p=weights / weights.sum()))]
    look = int(rng.integers(1 << 30))
    heading = None if len(path) > 1 else float(rng.normal(0, 1.0))
    return Actor("", cls, str(rng.choice(bodies)), path, heading, look)


def _steady(scenario: Scenario, s_m: float, d_m: float, speed: float) -> tuple[Waypoint, ...]:
    end = scenario.duration_s
    return (Waypoint(0.0, s_m, d_m), Waypoint(end, s_m + speed * end, d_m))


def _vehicles(rng: np.random.Generator, scenario: Scenario, place: Place) -> Iterator[Actor]:
    """Lanes of vehicles; all in one lane keep one speed, so nobody runs into the next."""
    road, ego, time = scenario.road, scenario.ego_speed_mps, scenario.duration_s
    own = round(-scenario.ego_d_m / road.lane_width_m - 0.5)
    for lane in range(road.lanes):
        d = -(lane + 0.5) * road.lane_width_m
        speed = max(ego + float(rng.normal(0, 0.6) if lane == own else rng.uniform(-2, 4)), 3.0)
        behind, ahead = max(0.0, (speed - ego) * time), max(0.0, (ego - speed) * time)
        s = (14.0 + ahead if lane == own else 6.0 - behind) + rng.exponential(place.gap_m)
        while s < VIEW_M + ahead:
            path = _steady(scenario, s, d + float(rng.normal(0, 0.12)), speed)
            yield _vehicle(rng, path, parked=False)
            s += 17.0 + rng.exponential(place.gap_m)
    for lane in range(road.lanes):
        d = (lane + 0.5) * road.lane_width_m
        speed = ego * float(rng.uniform(0.8, 1.15))
        s = 4.0 + rng.exponential(place.gap_m)
        while s < VIEW_M + (ego + speed) * time:
            path = _steady(scenario, s, d + float(rng.normal(0, 0.12)), -speed)
            yield _vehicle(rng, path, parked=False)
            s += 18.0 + rng.exponential(1.3 * place.gap_m)


def _parked(rng: np.random.Generator, scenario: Scenario) -> Iterator[Actor]:
    road = scenario.road
    if not road.parking:
        return
    end = scenario.ego_speed_mps * scenario.duration_s + VIEW_M
    for side in (-1.0, 1.0):
        s = float(rng.uniform(3, 12))
        d = side * (road.edge_m - 1.2)
        while s < end:
            spot = (Waypoint(0.0, s, d + float(rng.normal(0, 0.1))),)
            actor = _vehicle(rng, spot, parked=True)
            away = 180.0 if side > 0 else 0.0
            yield replace(actor, heading_deg=(actor.heading_deg or 0.0) + away)
            s += (9.5 if actor.cls == "truck" else 6.0) + rng.exponential(9.0)


def spread(
    rng: np.random.Generator, way_m: float, per_100_m: float, start_m: float, apart_m: float = 2.0
) -> Iterator[float]:
    """Places at a mean density along a drive of ``way_m`` and what is seen beyond its end."""
    if per_100_m <= 0:
        return
    s = start_m + rng.exponential(100.0 / per_100_m)
    while s < way_m + VIEW_M:
        yield float(s)
        s += apart_m + rng.exponential(max(100.0 / per_100_m - apart_m, 1.0))


def _people(rng: np.random.Generator, scenario: Scenario, place: Place) -> Iterator[Actor]:
    """People on both pavements, some crossing well ahead, and cyclists at the edge of the road."""
    road, time = scenario.road, scenario.duration_s
    way = scenario.ego_speed_mps * time
    for s in spread(rng, way, place.people, 4.0):
        look = int(rng.integers(1 << 30))
        shape = "child" if rng.random() < 0.12 else "adult"
        if rng.random() < 0.16:
            zebra = min(road.crossings_m, key=lambda at, s=s: abs(at - s), default=s)  # type: ignore[misc]
            at = zebra + float(rng.uniform(-1, 1)) if abs(zebra - s) < 30 else s
            yield Actor("", "pedestrian", shape, _crossing(rng, scenario, at), None, look)
            continue
        side = 1.0 if rng.random() < 0.45 else -1.0
        d = side * (road.edge_m + float(rng.uniform(0.6, 2.6)))
        speed = float(rng.choice([-1.0, 1.0]) * rng.uniform(0.9, 1.6))
        if rng.random() < 0.2:
            path: tuple[Waypoint, ...] = (Waypoint(0.0, s, d),)
            yield Actor("", "pedestrian", shape, path, float(rng.uniform(0, 360)), look)
        else:
            path = _steady(scenario, s, d, speed)
            yield Actor("", "pedestrian", shape, path, None, look)
    for s in spread(rng, way, place.cyclists, 12.0):
        ahead = rng.random() < 0.7
        d = (-1.0 if ahead else 1.0) * (road.lanes * road.lane_width_m + 0.1)
        speed = float(rng.uniform(3.5, 6.0)) * (1.0 if ahead else -1.0)
        path = _steady(scenario, s - (0.0 if ahead else speed * time / 2), d, speed)
        yield Actor("", "cyclist", "bicycle", path, None, int(rng.integers(1 << 30)))


def _crossing(rng: np.random.Generator, scenario: Scenario, s: float) -> tuple[Waypoint, ...]:
    """Across the whole road, done before the ego vehicle is there."""
    edge = scenario.road.edge_m + 1.5
    side = 1.0 if rng.random() < 0.5 else -1.0
    walk_s = 2 * edge / float(rng.uniform(1.2, 1.8))
    end = (s - 9.0) / scenario.ego_speed_mps
    start = end - walk_s
    across = tuple(Waypoint(start + walk_s * k, s, side * edge * (1 - 2 * k)) for k in (0.0, 1.0))
    return (
        Waypoint(min(start, 0.0) - 60.0, s, side * edge + math.copysign(0.01, side)),
        *across,
        Waypoint(scenario.duration_s + 60.0, s, -side * edge - math.copysign(0.01, side)),
    )


def _signals(rng: np.random.Generator, scenario: Scenario, place: Place) -> Iterator[Actor]:
    """Signs on the right (a few on the left) and traffic lights on both sides at crossings."""
    road = scenario.road
    way = scenario.ego_speed_mps * scenario.duration_s
    for s in spread(rng, way, place.signs, 8.0):
        side = 1.0 if rng.random() < 0.15 else -1.0
        spot = (Waypoint(0.0, s, side * (road.edge_m + float(rng.uniform(0.4, 1.0)))),)
        shape = str(rng.choice(["limit", "warning", "stop", "direction", "parking"]))
        look = int(rng.integers(1 << 30))
        yield Actor("", "traffic_sign", shape, spot, float(rng.normal(0, 4)), look)
    for s in road.crossings_m:
        look = int(rng.integers(1 << 30))
        for side in (-1.0, 1.0):
            spot = (Waypoint(0.0, s + 2.6, side * (road.edge_m + 0.5)),)
            yield Actor("", "traffic_light", "signal", spot, float(rng.normal(0, 2)), look)
