"""Scenario of a simulated drive as frozen values: enough to render any frame."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field

CLASSES = (
    "car",
    "truck",
    "bus",
    "motorcycle",
    "pedestrian",
    "cyclist",
    "animal",
    "traffic_light",
    "traffic_sign",
    "construction",
)
"""Names that rendered boxes carry; the same ones as the front-camera label schema."""
OBSTACLE = "obstacle"
"""What lies on the road and has no class in the schema: it is drawn and hides others, and the
labels say nothing of it."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera looking along the ego vehicle's heading.

    ``height_m`` is above the road, ``pitch_deg`` positive when looking down, the intrinsics in
    pixels of the rendered image, whose pixel ``i`` covers the interval ``[i, i + 1)``.
    """

    height_m: float = 1.3
    pitch_deg: float = 1.0
    fx: float = 400.0
    fy: float = 400.0
    cx: float = 240.0
    cy: float = 130.0
    width: int = 480
    height: int = 288


@dataclass(frozen=True)
class Road:
    """A road of constant curvature (1/m, positive to the left) with equal lanes each way."""

    lanes: int = 1
    lane_width_m: float = 3.5
    shoulder_m: float = 0.6
    parking: bool = False
    surroundings: str = "town"
    curvature: float = 0.0
    crossings_m: tuple[float, ...] = ()

    @property
    def edge_m(self) -> float:
        """Distance from the reference line to the kerb."""
        parking = 2.4 if self.parking else 0.0
        return self.lanes * self.lane_width_m + self.shoulder_m + parking


@dataclass(frozen=True)
class Waypoint:
    time_s: float
    s_m: float
    d_m: float


@dataclass(frozen=True)
class Pose:
    """Where somebody is: road coordinates, heading against the road's, speed."""

    s_m: float
    d_m: float
    heading_rad: float
    speed_mps: float
    travelled_m: float = 0.0


@dataclass(frozen=True)
class Actor:
    """Something with a box. ``shape`` chooses the body, ``look`` seeds its colours and size.

    One waypoint: it stands there throughout. More: it exists from the first to the last of them
    and moves at constant speed between neighbours. ``heading_deg`` is against the road's direction
    (positive to the left); None follows the motion.
    """

    track: str
    cls: str
    shape: str
    path: tuple[Waypoint, ...]
    heading_deg: float | None = None
    look: int = 0

    def pose(self, time_s: float) -> Pose | None:
        """Pose at ``time_s``, or None while the actor is not there."""
        if len(self.path) == 1:
            only = self.path[0]
            return Pose(only.s_m, only.d_m, math.radians(self.heading_deg or 0.0), 0.0)
        if not self.path[0].time_s <= time_s <= self.path[-1].time_s:
            return None
        times = [point.time_s for point in self.path]
        index = min(max(bisect.bisect_right(times, time_s) - 1, 0), len(times) - 2)
        start, end = self.path[index], self.path[index + 1]
        span = max(end.time_s - start.time_s, 1e-9)
        share = (time_s - start.time_s) / span
        along, across = end.s_m - start.s_m, end.d_m - start.d_m
        length = math.hypot(along, across)
        heading = math.atan2(across, along) if length > 1e-6 else 0.0
        if self.heading_deg is not None:
            heading = math.radians(self.heading_deg)
        return Pose(
            start.s_m + share * along,
            start.d_m + share * across,
            heading,
            length / span,
            share * length,
        )


@dataclass(frozen=True)
class Event:
    """A rare thing: frames within the interval that show ``track`` are marked with ``name``."""

    name: str
    start_s: float
    end_s: float
    track: str


@dataclass(frozen=True)
class Scenario:
    """One drive. ``light`` is day, dusk or night; ``weather`` clear, rain or fog."""

    drive: str
    seed: int
    vehicle: str = "sim-000"
    vehicle_type: str = "car"
    camera: Camera = field(default_factory=Camera)
    light: str = "day"
    weather: str = "clear"
    road: Road = field(default_factory=Road)
    ego_speed_mps: float = 12.0
    ego_d_m: float = -1.75
    duration_s: float = 15.0
    frame_rate: float = 2.0
    actors: tuple[Actor, ...] = ()
    construction: bool = False
    events: tuple[Event, ...] = ()

    def __hash__(self) -> int:
        # Caches look scenarios up; hashing hundreds of waypoints each time would cost more.
        return hash((self.drive, self.seed))

    @property
    def frames(self) -> int:
        """Number of frames: one at time zero, then ``frame_rate`` a second."""
        return max(1, round(self.duration_s * self.frame_rate))

    def time_s(self, index: int) -> float:
        return index / self.frame_rate

    def ego(self, time_s: float) -> Pose:
        travelled = self.ego_speed_mps * time_s
        return Pose(travelled, self.ego_d_m, 0.0, self.ego_speed_mps, travelled)
