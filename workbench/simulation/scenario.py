"""Scenario of a simulated drive as frozen values: enough to render any frame.

Road coordinates are metres along the road (``s_m``) and to the left of its reference line
(``d_m``); the ego vehicle starts at ``s_m`` 0. The reference line lies between the two directions.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field, replace

__all__ = ()

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
"""Class names of rendered boxes, as in the front-camera label schema."""
OBSTACLE = "obstacle"
"""Class of objects outside the schema: drawn, can occlude others, but not labelled."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the ego vehicle's heading.

    Attributes:
        height_m: Above the road.
        pitch_deg: Positive when looking down.
        fx: Intrinsics, also ``fy, cx, cy``: pixels of the image; pixel ``i`` covers ``[i, i + 1)``.
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
    """A position in road coordinates at a time."""

    time_s: float
    s_m: float
    d_m: float


Path = tuple[Waypoint, ...]


@dataclass(frozen=True)
class Pose:
    """Position in road coordinates, heading relative to the road, and speed."""

    s_m: float
    d_m: float
    heading_rad: float
    speed_mps: float
    travelled_m: float = 0.0


@dataclass(frozen=True)
class Actor:
    """An object with a box.

    Attributes:
        shape: Name of its body, see `workbench.simulation.scene.SHAPES`.
        path: With one waypoint the actor stands there for the whole drive; with more it exists from
            the first to the last and moves at constant speed between neighbours.
        heading_deg: Relative to the road, positive to the left; None follows the motion.
        look: Seed of its colours and size.
    """

    track: str
    cls: str
    shape: str
    path: Path
    heading_deg: float | None = None
    look: int = 0

    def pose(self, time_s: float) -> Pose | None:
        """Pose at ``time_s``, or None where the actor does not exist."""
        if len(self.path) == 1:
            only = self.path[0]
            return Pose(only.s_m, only.d_m, math.radians(self.heading_deg or 0.0), 0.0)
        if not self.path[0].time_s <= time_s <= self.path[-1].time_s:
            return None
        pose = pose_on_path(self.path, time_s)
        if self.heading_deg is None:
            return pose
        return replace(pose, heading_rad=math.radians(self.heading_deg))


def pose_on_path(path: Path, time_s: float) -> Pose:
    """Pose at a time on a path of two waypoints or more; beyond its ends as on the last leg."""
    times = [point.time_s for point in path]
    index = min(max(bisect.bisect_right(times, time_s) - 1, 0), len(times) - 2)
    start, end = path[index], path[index + 1]
    span = max(end.time_s - start.time_s, 1e-9)
    share = (time_s - start.time_s) / span
    along, across = end.s_m - start.s_m, end.d_m - start.d_m
    length = math.hypot(along, across)
    heading = math.atan2(across, along) if length > 1e-6 else 0.0
    return Pose(
        start.s_m + share * along,
        start.d_m + share * across,
        heading,
        length / span,
        share * length,
    )


@dataclass(frozen=True)
class Event:
    """A rare event: frames in the interval in which ``track`` is visible carry its name."""

    name: str
    start_s: float
    end_s: float
    track: str


@dataclass(frozen=True)
class Scenario:
    """One drive.

    Attributes:
        seed: Of everything random in its images.
        light: ``day``, ``dusk`` or ``night``.
        weather: ``clear``, ``rain`` or ``fog``.
        ego_d_m: Lateral position of the ego vehicle.
        ego_path: Of an ego vehicle that turns; without it, it drives straight at its speed.
    """

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
    ego_path: Path = ()
    duration_s: float = 15.0
    frame_rate: float = 2.0
    actors: tuple[Actor, ...] = ()
    construction: bool = False
    events: tuple[Event, ...] = ()

    def __hash__(self) -> int:
        # A key of caches: hashing hundreds of waypoints on every look-up would be slow.
        return hash((self.drive, self.seed))

    @property
    def frames(self) -> int:
        """Number of frames: one at time zero, then ``frame_rate`` per second."""
        return max(1, round(self.duration_s * self.frame_rate))

    def time_s(self, index: int) -> float:
        """Time of a frame in seconds."""
        return index / self.frame_rate

    def ego(self, time_s: float) -> Pose:
        """Pose of the ego vehicle."""
        if self.ego_path:
            return pose_on_path(self.ego_path, time_s)
        travelled = self.ego_speed_mps * time_s
        return Pose(travelled, self.ego_d_m, 0.0, self.ego_speed_mps, travelled)
