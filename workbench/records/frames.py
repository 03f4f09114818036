"""Drives, frames and labels: what was recorded, where, by what, and what people say is in it."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Annotated

from pydantic import Field, StringConstraints

from workbench import digest
from workbench.records.base import Digest, Row

UNKNOWN = "unknown"

ANY_CLASS = "*"
"""Class of an ignore region that covers objects of every class (KITTI's DontCare)."""


class VehicleType(StrEnum):
    CAR = "car"
    TRUCK = "truck"
    UNKNOWN = UNKNOWN


class Light(StrEnum):
    DAY = "day"
    DUSK = "dusk"
    NIGHT = "night"
    UNKNOWN = UNKNOWN


class Weather(StrEnum):
    CLEAR = "clear"
    RAIN = "rain"
    FOG = "fog"
    SNOW = "snow"
    UNKNOWN = UNKNOWN


class Role(StrEnum):
    """What a frame is for. ``seed`` and ``train`` are learned from; ``safety`` decides gates."""

    SEED = "seed"
    POOL = "pool"
    TRAIN = "train"
    VAL = "val"
    SAFETY = "safety"
    BLIND = "blind"


class Origin(StrEnum):
    """Where a label comes from. ``replayed`` and ``rendered`` are simulated."""

    IMPORTED = "imported"
    RENDERED = "rendered"
    HUMAN = "human"
    HUMAN_EDITED = "human_edited"
    HUMAN_ACCEPTED = "human_accepted"
    REPLAYED = "replayed"
    MODEL = "model"

    @property
    def is_simulated(self) -> bool:
        return self in (Origin.REPLAYED, Origin.RENDERED)

    @property
    def is_ground_truth(self) -> bool:
        """A model's own boxes are never evidence of what is there."""
        return self is not Origin.MODEL


class Calibration(Row):
    """Pinhole intrinsics in pixels of the frame as stored; ``id`` names the calibration run."""

    id: str = UNKNOWN
    fx: float | None = None
    fy: float | None = None
    cx: float | None = None
    cy: float | None = None


class Drive(Row):
    """One ordered recording of one camera on one vehicle.

    ``camera_height_m`` is above the road, ``camera_pitch_deg`` positive when looking down.
    What a source does not tell is ``unknown`` or None, never guessed.
    """

    id: str
    vehicle: str = UNKNOWN
    vehicle_type: VehicleType = VehicleType.UNKNOWN
    camera_height_m: float | None = None
    camera_pitch_deg: float | None = None
    sensor: str = UNKNOWN
    firmware: str = UNKNOWN
    calibration: Calibration = Calibration()
    started_at: str = UNKNOWN
    time_source: str = UNKNOWN
    simulated: bool = False


class Conditions(Row):
    light: Light = Light.UNKNOWN
    weather: Weather = Weather.UNKNOWN
    construction: bool = False


class Frame(Row):
    """One image of a drive.

    ``id`` is the SHA-256 of the encoded image file, so the bytes can always be checked against
    the name. ``timestamp_us`` counts microseconds from the start of the drive or from the Unix
    epoch, as ``Drive.time_source`` says. ``width`` and ``height`` are pixels.
    """

    id: Digest
    drive: str
    index: int
    timestamp_us: int | None = None
    width: int
    height: int
    suffix: Annotated[str, StringConstraints(pattern=r"^\.[a-z0-9]+$")]
    conditions: Conditions = Conditions()
    redaction: str = "none"
    role: Role | None = None
    events: tuple[str, ...] = ()


class Box(Row):
    """Axis-aligned box in pixels: origin top left, x right, y down, continuous coordinates."""

    x: float
    y: float
    w: float
    h: float

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        return (self.x, self.y, self.x + self.w, self.y + self.h)


class Label(Row):
    """One box on one frame, and who says so.

    ``occluded`` and ``truncated`` are fractions in [0, 1] where the source knows them.
    ``ignore`` marks a region whose content is neither right nor wrong when scoring.
    ``score`` is set for ``origin == model`` only. ``source`` is the record a label came with:
    a batch for human work, a checkpoint for a model's.
    """

    frame: Digest
    cls: str
    box: Box
    origin: Origin
    annotator: str = UNKNOWN
    occluded: float | None = None
    truncated: float | None = None
    ignore: bool = False
    track: str | None = None
    score: float | None = Field(default=None, ge=0, le=1)
    source: str | None = None
    labeled_at: str | None = None

    @cached_property
    def id(self) -> Digest:
        return digest.of_json(self.model_dump(mode="json"))


class LabelSchema(Row):
    """The classes a dataset is labelled with, in the order a model numbers them.

    ``mapping`` turns the names that sources use (compared in lower case) into classes; a name
    that maps to ``ignore`` becomes an ignore region, one that maps to ``drop`` is left out.
    """

    name: str
    version: int
    classes: tuple[str, ...]
    vulnerable: tuple[str, ...] = ()
    mapping: dict[str, str] = {}

    def class_of(self, source_name: str) -> str | None:
        """Class, ``ignore`` or ``drop`` for a source's name; None when it is unknown."""
        name = source_name.strip().lower().replace(" ", "_")
        if name in self.classes:
            return name
        return self.mapping.get(name)
