"""Scenarios drawn from a seed: one drive, or a fleet of them with mixed conditions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from workbench.errors import ParameterError
from workbench.simulation import crowd, rare
from workbench.simulation.crowd import PLACES
from workbench.simulation.rare import EVENTS
from workbench.simulation.scenario import Camera, Road, Scenario

RARE_SHARE = 0.005
"""Share of a fleet's frames that each kind of rare event aims at."""


@dataclass(frozen=True)
class Profile:
    """How much to render. ``rare`` False leaves the rare events out.

    ``rare_share`` is the share of all frames that each of ``events`` aims at.
    """

    name: str
    drives: int
    frames_per_drive: int
    frame_rate: float = 2.0
    width: int = 480
    height: int = 288
    rare: bool = True
    events: tuple[str, ...] = EVENTS
    rare_share: float = RARE_SHARE

    @property
    def frames(self) -> int:
        return self.drives * self.frames_per_drive


STANDARD = Profile("standard", drives=60, frames_per_drive=15)
TINY = Profile("tiny", drives=12, frames_per_drive=6)
LONG_TAIL = Profile(
    "long-tail", drives=200, frames_per_drive=30, events=rare.LONG_TAIL, rare_share=0.0015
)
PROFILES = {profile.name: profile for profile in (STANDARD, TINY, LONG_TAIL)}


_PLACE_WEIGHTS = (0.42, 0.3, 0.16, 0.12)


def fleet(profile: Profile, seed: int = 0) -> tuple[Scenario, ...]:
    """The drives of a profile: mixed light, weather, roads and vehicles, rare events sprinkled in.

    Each kind of rare event takes about ``rare_share`` of all frames, at least one drive each where
    there are drives enough; a profile of few frames therefore has relatively more of them.

    Raises:
        ParameterError: Fewer than one drive or frame, or an image too small to draw in.
    """
    _check(profile)
    rng = np.random.default_rng([seed, 1])
    lights = _deal(rng, profile.drives, {"day": 0.6, "dusk": 0.18, "night": 0.22})
    weathers = _deal(rng, profile.drives, {"clear": 0.62, "rain": 0.2, "fog": 0.18})
    vehicles = _deal(rng, profile.drives, {"car": 0.7, "truck": 0.3})
    events = _sprinkle(rng, profile)
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
    profile: Profile = STANDARD,
) -> Scenario:
    """One drive with ordinary traffic, and a rare event in it if one is named.

    A rare event may change the road or the light to those it happens in.

    Raises:
        ParameterError: An unknown event.
    """
    rng = np.random.default_rng([seed, 3])
    setting = rare.setting(event)
    kind = setting.place or str(rng.choice(list(PLACES), p=_PLACE_WEIGHTS))
    place = PLACES[kind]
    parking = setting.parking or rng.random() < place.parking
    lanes = int(rng.choice(place.lanes))
    speed = float(rng.uniform(*place.speed_mps))
    way = speed * profile.frames_per_drive / profile.frame_rate
    curvature = 0.0 if rng.random() < 0.5 else float(rng.normal(0, 0.0012))
    road = Road(
        lanes=lanes,
        shoulder_m=0.6 if kind in ("town", "avenue") else 1.6,
        parking=parking,
        surroundings=kind,
        curvature=0.0 if abs(curvature) < 2e-4 else float(np.clip(curvature, -0.003, 0.003)),
        crossings_m=tuple(crowd.spread(rng, way, place.lights, 20.0, apart_m=45.0)),
    )
    lane = lanes - 1
    scenario = Scenario(
        drive=drive,
        seed=seed,
        vehicle=f"sim-{vehicle_type}-{int(rng.integers(1, 9)):02d}",
        vehicle_type=vehicle_type,
        camera=_camera(rng, vehicle_type, profile),
        light=setting.light or light,
        weather=setting.weather or weather,
        road=road,
        ego_speed_mps=speed,
        ego_d_m=-(lane + 0.5) * road.lane_width_m + float(rng.normal(0, 0.1)),
        duration_s=profile.frames_per_drive / profile.frame_rate,
        frame_rate=profile.frame_rate,
    )
    ordinary = tuple(crowd.traffic(rng, scenario, place))
    scenario = replace(scenario, actors=ordinary)
    return scenario if event is None else rare.add(event, scenario, rng)


def _check(profile: Profile) -> None:
    if profile.drives < 1 or profile.frames_per_drive < 1:
        raise ParameterError(
            "a profile needs at least one drive of one frame",
            where=f"drives={profile.drives} frames_per_drive={profile.frames_per_drive}",
            hint="Use 'tiny' or 'standard' to start from",
        )
    if profile.width < 64 or profile.height < 48:
        raise ParameterError(
            "the image is too small to draw a road in",
            where=f"{profile.width}x{profile.height}",
            hint="Render at least 64x48; 480x288 is the standard",
        )


def _deal(rng: np.random.Generator, count: int, shares: dict[str, float]) -> list[str]:
    """``count`` names in the given shares, shuffled: quotas, so that small fleets are mixed too."""
    bounds = np.cumsum(list(shares.values())) / sum(shares.values())
    names = list(shares)
    dealt = [names[int(np.searchsorted(bounds, (i + 0.5) / count))] for i in range(count)]
    return [dealt[i] for i in rng.permutation(count)]


def _sprinkle(rng: np.random.Generator, profile: Profile) -> dict[int, str]:
    """Which drives get which rare event."""
    if not profile.rare:
        return {}
    event_frames = rare.EVENT_SECONDS * profile.frame_rate
    each = max(1, round(profile.rare_share * profile.frames / event_frames))
    wanted = [name for name in profile.events for _ in range(each)]
    drives = rng.permutation(profile.drives)[: len(wanted)]
    return {int(drive): name for drive, name in zip(drives, wanted, strict=False)}


def _camera(rng: np.random.Generator, vehicle_type: str, profile: Profile) -> Camera:
    """A car's camera sits behind the mirror, a truck's above its windscreen, looking down more."""
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
