"""Random scenarios: ordinary traffic, one drive, or a fleet with mixed conditions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from workbench.core.errors import ParameterError
from workbench.simulation.events import (
    EVENT_SECONDS,
    EVENTS,
    LONG_TAIL_EVENTS,
    add_event,
    event_setting,
)
from workbench.simulation.scenario import Actor, Camera, Path, Road, Scenario, Waypoint

__all__ = ()

_VIEW_M = 80.0
"""Visible distance: actors farther ahead than this are not created."""


@dataclass(frozen=True)
class _RoadType:
    """Cross-section and traffic of a kind of road; people, cyclists and signs per 100 m."""

    lanes: tuple[int, ...]
    speed_mps: tuple[float, float]
    gap_m: float
    people: float
    cyclists: float
    signs: float
    lights: float
    parking: float


_ROAD_TYPES = {
    "town": _RoadType((1,), (7.0, 11.0), 26.0, 5.5, 1.2, 2.0, 1.0, 0.75),
    "avenue": _RoadType((2,), (10.0, 14.0), 24.0, 3.0, 0.8, 2.0, 1.4, 0.35),
    "country": _RoadType((1,), (14.0, 20.0), 45.0, 0.3, 0.4, 1.4, 0.0, 0.0),
    "motorway": _RoadType((2, 3), (21.0, 28.0), 34.0, 0.0, 0.0, 1.5, 0.0, 0.0),
}


def _ordinary_traffic(
    rng: np.random.Generator, scenario: Scenario, road_type: _RoadType
) -> Iterator[Actor]:
    """Vehicles, people, signs and traffic lights of a drive."""
    actors = (
        *_moving_vehicles(rng, scenario, road_type),
        *_parked_vehicles(rng, scenario),
        *_people_beside_road(rng, scenario, road_type),
        *_signs_and_lights(rng, scenario, road_type),
    )
    for number, actor in enumerate(actors, start=1):
        yield replace(actor, track=f"{scenario.drive}/{number}")


_VEHICLE_KINDS = (
    (0.66, "car", ("sedan", "hatchback", "suv", "van")),
    (0.18, "truck", ("box-truck", "tractor")),
    (0.07, "bus", ("bus",)),
    (0.09, "motorcycle", ("motorcycle",)),
)


def _random_vehicle(rng: np.random.Generator, path: Path, *, parked: bool) -> Actor:
    weights = np.array([v[0] for v in _VEHICLE_KINDS]) * (
        [1, 0.12, 0, 0] if parked else [1, 1, 1, 1]
    )
    _, cls, bodies = _VEHICLE_KINDS[int(rng.choice(len(_VEHICLE_KINDS), p=weights / weights.sum()))]
    look = int(rng.integers(1 << 30))
    heading = None if len(path) > 1 else float(rng.normal(0, 1.0))
    return Actor("", cls, str(rng.choice(bodies)), path, heading, look)


def _constant_speed_path(scenario: Scenario, s_m: float, d_m: float, speed: float) -> Path:
    end = scenario.duration_s
    return (Waypoint(0.0, s_m, d_m), Waypoint(end, s_m + speed * end, d_m))


def _moving_vehicles(
    rng: np.random.Generator, scenario: Scenario, road_type: _RoadType
) -> Iterator[Actor]:
    """Vehicles in all lanes; those of one lane have equal speed, so they never collide."""
    road, ego, time = scenario.road, scenario.ego_speed_mps, scenario.duration_s
    own = round(-scenario.ego_d_m / road.lane_width_m - 0.5)
    for lane in range(road.lanes):
        d = -(lane + 0.5) * road.lane_width_m
        speed = max(ego + float(rng.normal(0, 0.6) if lane == own else rng.uniform(-2, 4)), 3.0)
        behind, ahead = max(0.0, (speed - ego) * time), max(0.0, (ego - speed) * time)
        s = (14.0 + ahead if lane == own else 6.0 - behind) + rng.exponential(road_type.gap_m)
        while s < _VIEW_M + ahead:
            path = _constant_speed_path(scenario, s, d + float(rng.normal(0, 0.12)), speed)
            yield _random_vehicle(rng, path, parked=False)
            s += 17.0 + rng.exponential(road_type.gap_m)
    for lane in range(road.lanes):
        d = (lane + 0.5) * road.lane_width_m
        speed = ego * float(rng.uniform(0.8, 1.15))
        s = 4.0 + rng.exponential(road_type.gap_m)
        while s < _VIEW_M + (ego + speed) * time:
            path = _constant_speed_path(scenario, s, d + float(rng.normal(0, 0.12)), -speed)
            yield _random_vehicle(rng, path, parked=False)
            s += 18.0 + rng.exponential(1.3 * road_type.gap_m)


def _parked_vehicles(rng: np.random.Generator, scenario: Scenario) -> Iterator[Actor]:
    road = scenario.road
    if not road.parking:
        return
    end = scenario.ego_speed_mps * scenario.duration_s + _VIEW_M
    for side in (-1.0, 1.0):
        s = float(rng.uniform(3, 12))
        d = side * (road.edge_m - 1.2)
        while s < end:
            spot = (Waypoint(0.0, s, d + float(rng.normal(0, 0.1))),)
            actor = _random_vehicle(rng, spot, parked=True)
            away = 180.0 if side > 0 else 0.0
            yield replace(actor, heading_deg=(actor.heading_deg or 0.0) + away)
            s += (9.5 if actor.cls == "truck" else 6.0) + rng.exponential(9.0)


def _spread_positions(
    rng: np.random.Generator, way_m: float, per_100_m: float, start_m: float, apart_m: float = 2.0
) -> Iterator[float]:
    """Positions at a mean density along a drive of ``way_m`` and the distance visible beyond."""
    if per_100_m <= 0:
        return
    s = start_m + rng.exponential(100.0 / per_100_m)
    while s < way_m + _VIEW_M:
        yield float(s)
        s += apart_m + rng.exponential(max(100.0 / per_100_m - apart_m, 1.0))


def _people_beside_road(
    rng: np.random.Generator, scenario: Scenario, road_type: _RoadType
) -> Iterator[Actor]:
    """People on both pavements, some crossing far ahead, and cyclists at the edge of the road."""
    road, time = scenario.road, scenario.duration_s
    way = scenario.ego_speed_mps * time
    for s in _spread_positions(rng, way, road_type.people, 4.0):
        look = int(rng.integers(1 << 30))
        shape = "child" if rng.random() < 0.12 else "adult"
        if rng.random() < 0.16:
            zebra = min(road.crossings_m, key=lambda at, s=s: abs(at - s), default=s)  # type: ignore[misc]
            at = zebra + float(rng.uniform(-1, 1)) if abs(zebra - s) < 30 else s
            yield Actor("", "pedestrian", shape, _crossing_path(rng, scenario, at), None, look)
            continue
        side = 1.0 if rng.random() < 0.45 else -1.0
        d = side * (road.edge_m + float(rng.uniform(0.6, 2.6)))
        speed = float(rng.choice([-1.0, 1.0]) * rng.uniform(0.9, 1.6))
        if rng.random() < 0.2:
            path: Path = (Waypoint(0.0, s, d),)
            yield Actor("", "pedestrian", shape, path, float(rng.uniform(0, 360)), look)
        else:
            path = _constant_speed_path(scenario, s, d, speed)
            yield Actor("", "pedestrian", shape, path, None, look)
    for s in _spread_positions(rng, way, road_type.cyclists, 12.0):
        ahead = rng.random() < 0.7
        d = (-1.0 if ahead else 1.0) * (road.lanes * road.lane_width_m + 0.1)
        speed = float(rng.uniform(3.5, 6.0)) * (1.0 if ahead else -1.0)
        path = _constant_speed_path(scenario, s - (0.0 if ahead else speed * time / 2), d, speed)
        yield Actor("", "cyclist", "bicycle", path, None, int(rng.integers(1 << 30)))


def _crossing_path(rng: np.random.Generator, scenario: Scenario, s: float) -> Path:
    """Path across the whole road that ends before the ego vehicle arrives."""
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


def _signs_and_lights(
    rng: np.random.Generator, scenario: Scenario, road_type: _RoadType
) -> Iterator[Actor]:
    """Signs, most on the right, and traffic lights on both sides of crossings."""
    road = scenario.road
    way = scenario.ego_speed_mps * scenario.duration_s
    for s in _spread_positions(rng, way, road_type.signs, 8.0):
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


_RARE_SHARE = 0.005
"""Target share of a fleet's frames for each kind of rare event."""


@dataclass(frozen=True)
class FleetProfile:
    """Size and content of a fleet of drives.

    Attributes:
        frame_rate: Frames per second.
        width: Of the images, in pixels.
        height: Of the images, in pixels.
        rare: Whether there are rare events.
        events: Kinds of rare events.
        rare_share: Target share of all frames for each kind.
    """

    name: str
    drives: int
    frames_per_drive: int
    frame_rate: float = 2.0
    width: int = 480
    height: int = 288
    rare: bool = True
    events: tuple[str, ...] = EVENTS
    rare_share: float = _RARE_SHARE

    @property
    def frames(self) -> int:
        """Number of frames of all drives."""
        return self.drives * self.frames_per_drive


STANDARD_PROFILE = FleetProfile("standard", drives=60, frames_per_drive=15)
TINY_PROFILE = FleetProfile("tiny", drives=12, frames_per_drive=6)
LONG_TAIL_PROFILE = FleetProfile(
    "long-tail", drives=200, frames_per_drive=30, events=LONG_TAIL_EVENTS, rare_share=0.0015
)
PROFILES = {
    profile.name: profile for profile in (STANDARD_PROFILE, TINY_PROFILE, LONG_TAIL_PROFILE)
}


_ROAD_TYPE_WEIGHTS = (0.42, 0.3, 0.16, 0.12)


def random_fleet(profile: FleetProfile, seed: int = 0) -> tuple[Scenario, ...]:
    """Drives with mixed light, weather, roads and vehicles, some with a rare event.

    Each kind of rare event has at least one drive if there are enough drives, so a profile with few
    frames exceeds its ``rare_share``.

    Args:
        profile: Size and content.
        seed: The same profile and seed give the same drives.

    Raises:
        ParameterError: The profile has no drives or frames, or its images are too small.
    """
    _check_profile(profile)
    rng = np.random.default_rng([seed, 1])
    lights = _deal_shares(rng, profile.drives, {"day": 0.6, "dusk": 0.18, "night": 0.22})
    weathers = _deal_shares(rng, profile.drives, {"clear": 0.62, "rain": 0.2, "fog": 0.18})
    vehicles = _deal_shares(rng, profile.drives, {"car": 0.7, "truck": 0.3})
    events = _assign_events(rng, profile)
    return tuple(
        random_drive(
            int(np.random.SeedSequence([seed, 2, number]).generate_state(1)[0]),
            drive=f"sim-{seed}-{number:04d}",
            light=lights[number],
            weather=weathers[number],
            vehicle_type=vehicles[number],
            event=events.get(number),
            profile=profile,
        )
        for number in range(profile.drives)
    )


def random_drive(
    seed: int,
    *,
    drive: str = "sim",
    light: str = "day",
    weather: str = "clear",
    vehicle_type: str = "car",
    event: str | None = None,
    profile: FleetProfile = STANDARD_PROFILE,
) -> Scenario:
    """One drive with ordinary traffic, and a rare event if one is named.

    Args:
        seed: Of everything random in the drive.
        drive: Id of the drive.
        light: ``day``, ``dusk`` or ``night``; a rare event may override it.
        weather: ``clear``, ``rain`` or ``fog``; a rare event may override it.
        vehicle_type: ``car`` or ``truck``: height and pitch of the camera.
        event: One of `workbench.simulation.events.LONG_TAIL_EVENTS`, or None.
        profile: Length of the drive and size of the images.

    Raises:
        ParameterError: The event is unknown.
    """
    rng = np.random.default_rng([seed, 3])
    setting = event_setting(event)
    kind = setting.road_type or str(rng.choice(list(_ROAD_TYPES), p=_ROAD_TYPE_WEIGHTS))
    road_type = _ROAD_TYPES[kind]
    parking = setting.parking or rng.random() < road_type.parking
    lanes = int(rng.choice(road_type.lanes))
    speed = float(rng.uniform(*road_type.speed_mps))
    way = speed * profile.frames_per_drive / profile.frame_rate
    curvature = 0.0 if rng.random() < 0.5 else float(rng.normal(0, 0.0012))
    road = Road(
        lanes=lanes,
        shoulder_m=0.6 if kind in ("town", "avenue") else 1.6,
        parking=parking,
        surroundings=kind,
        curvature=0.0 if abs(curvature) < 2e-4 else float(np.clip(curvature, -0.003, 0.003)),
        crossings_m=tuple(_spread_positions(rng, way, road_type.lights, 20.0, apart_m=45.0)),
    )
    lane = lanes - 1
    scenario = Scenario(
        drive=drive,
        seed=seed,
        vehicle=f"sim-{vehicle_type}-{int(rng.integers(1, 9)):02d}",
        vehicle_type=vehicle_type,
        camera=_random_camera(rng, vehicle_type, profile),
        light=setting.light or light,
        weather=setting.weather or weather,
        road=road,
        ego_speed_mps=speed,
        ego_d_m=-(lane + 0.5) * road.lane_width_m + float(rng.normal(0, 0.1)),
        duration_s=profile.frames_per_drive / profile.frame_rate,
        frame_rate=profile.frame_rate,
    )
    ordinary = tuple(_ordinary_traffic(rng, scenario, road_type))
    scenario = replace(scenario, actors=ordinary)
    return scenario if event is None else add_event(event, scenario, rng)


def _check_profile(profile: FleetProfile) -> None:
    if profile.drives < 1 or profile.frames_per_drive < 1:
        raise ParameterError(
            "profile must have at least one drive with one frame",
            where=f"drives={profile.drives} frames_per_drive={profile.frames_per_drive}",
            hint="Start from the profile 'tiny' or 'standard'",
        )
    if profile.width < 64 or profile.height < 48:
        raise ParameterError(
            "image size is too small",
            where=f"{profile.width}x{profile.height}",
            hint="Use at least 64x48 pixels; the default is 480x288",
        )


def _deal_shares(rng: np.random.Generator, count: int, shares: dict[str, float]) -> list[str]:
    """``count`` names in exactly the given shares, shuffled, so that small fleets are mixed too."""
    bounds = np.cumsum(list(shares.values())) / sum(shares.values())
    names = list(shares)
    dealt = [names[int(np.searchsorted(bounds, (i + 0.5) / count))] for i in range(count)]
    return [dealt[i] for i in rng.permutation(count)]


def _assign_events(rng: np.random.Generator, profile: FleetProfile) -> dict[int, str]:
    """Rare event of each drive that has one."""
    if not profile.rare:
        return {}
    event_frames = EVENT_SECONDS * profile.frame_rate
    each = max(1, round(profile.rare_share * profile.frames / event_frames))
    names = [name for name in profile.events for _ in range(each)]
    drives = rng.permutation(profile.drives)[: len(names)]
    return {int(drive): name for drive, name in zip(drives, names, strict=False)}


def _random_camera(rng: np.random.Generator, vehicle_type: str, profile: FleetProfile) -> Camera:
    """A camera behind the mirror of a car, or higher and with more pitch in a truck."""
    truck = vehicle_type == "truck"
    scale = profile.width / 480.0
    focal = float(rng.choice([395.0, 410.0, 425.0])) * scale
    return Camera(
        height_m=round(float(rng.uniform(2.35, 2.65) if truck else rng.uniform(1.2, 1.4)), 3),
        pitch_deg=round(float(rng.uniform(4.0, 6.0) if truck else rng.uniform(0.5, 2.0)), 3),
        fx=focal,
        fy=focal,
        cx=profile.width / 2 + round(float(rng.normal(0, 2)), 2),
        cy=profile.height * 0.46 + round(float(rng.normal(0, 2)), 2),
        width=profile.width,
        height=profile.height,
    )
