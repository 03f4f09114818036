"""Drives, frames and labels: what was recorded, where, by what, and what people say is in it."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from workbench.core import digest
from workbench.records.base import Digest, FrozenModel

UNKNOWN = "unknown"


def optional_field(default: Any) -> Any:
    """A field that younger rows have: left out where it says nothing.

    So rows from before it keep their bytes, and with them the digests of all that holds them.
    """
    return Field(default=default, exclude_if=lambda value: value == default)


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


class Calibration(FrozenModel):
    """Pinhole intrinsics in pixels of the frame as stored; ``id`` names the calibration run."""

    id: str = UNKNOWN
    fx: float | None = None
    fy: float | None = None
    cx: float | None = None
    cy: float | None = None


class Drive(FrozenModel):
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


class Conditions(FrozenModel):
    light: Light = Light.UNKNOWN
    weather: Weather = Weather.UNKNOWN
    construction: bool = False


class Frame(FrozenModel):
    """One image of a drive.

    ``id`` is the SHA-256 of the encoded image file, so the bytes can always be checked against
    the name. ``timestamp_us`` counts microseconds from the start of the drive or from the Unix
    epoch, as ``Drive.time_source`` says. ``width`` and ``height`` are pixels. ``attributes`` are
    answers about the whole frame for which `Conditions` has no field. ``position`` is the
    vehicle's latitude and longitude in degrees (WGS 84), where the source tells it.
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
    attributes: dict[str, str] = optional_field({})
    position: tuple[float, float] | None = optional_field(None)


CONDITION_VALUES: dict[str, tuple[str, ...]] = {
    "light": tuple(Light),
    "weather": tuple(Weather),
    "role": tuple(Role),
    "construction": ("yes", "no"),
}
"""All values of the conditions that take no others."""


def condition_values(frame: Frame, key: str) -> tuple[str, ...]:
    """What a frame has for one condition; nothing where it says nothing.

    Args:
        key: ``light``, ``weather``, ``construction`` (``yes`` or ``no``), ``event``, ``role``,
            ``drive``, ``redaction``, or the name of one of the frame's own attributes.
    """
    if key == "construction":
        return ("yes" if frame.conditions.construction else "no",)
    if key == "event":
        return frame.events
    if key in ("light", "weather"):
        return (str(getattr(frame.conditions, key)),)
    if key in ("drive", "role", "redaction"):
        value = getattr(frame, key)
    else:
        value = frame.attributes.get(key)
    return () if value is None else (str(value),)


class Box(FrozenModel):
    """Axis-aligned box in pixels: origin top left, x right, y down, continuous coordinates."""

    x: float
    y: float
    w: float
    h: float

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        return (self.x, self.y, self.x + self.w, self.y + self.h)


Point = tuple[float, float]
"""x right and y down in pixels of the frame, from its top left corner."""


class RotatedBox(FrozenModel):
    """A rectangle turned about its centre ``(cx, cy)`` by ``degrees``, clockwise as seen.

    Pixels; ``w`` and ``h`` are its sides before turning.
    """

    cx: float
    cy: float
    w: float
    h: float
    degrees: float


class LabelEdit(FrozenModel):
    """The model's box that a person's began as, and what they changed of it.

    ``iou`` is the overlap of the two boxes.
    """

    cls: str
    box: Box
    score: float
    iou: float
    changed: tuple[Literal["class", "position"], ...]


class Label(FrozenModel):
    """One box on one frame, and who says so.

    A turned rectangle stands in ``turned``, a polygon's corners in ``polygon``; ``box`` is then the
    upright box that just holds it. ``attributes`` answer the schema's own questions about a box.
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
    turned: RotatedBox | None = optional_field(None)
    polygon: tuple[Point, ...] | None = optional_field(None)
    attributes: dict[str, str] = optional_field({})
    edit: LabelEdit | None = optional_field(None)

    @cached_property
    def id(self) -> Digest:
        return digest.of_json(self.model_dump(mode="json"))


class Question(FrozenModel):
    """Something that labelers answer by choosing one of ``answers``, for a box or a whole frame."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
    answers: tuple[str, ...]
    asked: str = ""


Shape = Literal["box", "turned", "polygon"]


class LabelSchema(FrozenModel):
    """The classes a dataset is labelled with, in the order a model numbers them.

    ``shapes`` says how objects may be drawn, ``box_questions`` and ``frame_questions`` what is
    asked beside class, occlusion and truncation; ``tracks`` asks for each object's track.
    ``definitions`` tells labelers in words what belongs to a class.

    ``mapping`` turns the names that sources use (compared in lower case) into classes; a name
    that maps to ``ignore`` becomes an ignore region, one that maps to ``drop`` is left out.
    """

    name: str
    version: int
    classes: tuple[str, ...]
    vulnerable: tuple[str, ...] = ()
    mapping: dict[str, str] = {}
    shapes: tuple[Shape, ...] = optional_field(("box",))
    box_questions: tuple[Question, ...] = optional_field(())
    frame_questions: tuple[Question, ...] = optional_field(())
    tracks: bool = optional_field(False)
    definitions: dict[str, str] = optional_field({})

    def class_of(self, source_name: str) -> str | None:
        """Class, ``ignore`` or ``drop`` for a source's name; None when it is unknown."""
        name = source_name.strip().lower().replace(" ", "_")
        if name in self.classes:
            return name
        return self.mapping.get(name)
