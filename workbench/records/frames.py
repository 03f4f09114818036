"""Drives, frames, labels and label schemas."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from workbench.core import digest
from workbench.records.base import Digest, FrozenModel

__all__ = [
    "ANY_CLASS",
    "CONDITION_VALUES",
    "UNKNOWN",
    "Box",
    "Calibration",
    "Conditions",
    "Drive",
    "Frame",
    "Label",
    "LabelEdit",
    "LabelSchema",
    "Light",
    "Origin",
    "Point",
    "Question",
    "Role",
    "RotatedBox",
    "Shape",
    "Weather",
    "condition_values",
    "optional_field",
]

UNKNOWN = "unknown"

ANY_CLASS = "*"
"""Class of an ignore region that covers objects of every class (KITTI's DontCare)."""

Point = tuple[float, float]
"""x (right) and y (down) in pixels of the frame, from its top left corner."""

Shape = Literal["box", "turned", "polygon"]


def optional_field(default: Any) -> Any:
    """A field that was added to a model later: not stored while it has its default.

    Older rows therefore keep their bytes, and the digests of the records that hold them.
    """
    return Field(default=default, exclude_if=lambda value: value == default)


class VehicleType(StrEnum):
    """Vehicle that carries the camera."""

    CAR = "car"
    TRUCK = "truck"
    UNKNOWN = UNKNOWN


class Light(StrEnum):
    """Light at the time of a frame."""

    DAY = "day"
    DUSK = "dusk"
    NIGHT = "night"
    UNKNOWN = UNKNOWN


class Weather(StrEnum):
    """Weather at the time of a frame."""

    CLEAR = "clear"
    RAIN = "rain"
    FOG = "fog"
    SNOW = "snow"
    UNKNOWN = UNKNOWN


class Role(StrEnum):
    """Purpose of a frame: ``seed`` and ``train`` train a model, ``safety`` decides gates."""

    SEED = "seed"
    POOL = "pool"
    TRAIN = "train"
    VAL = "val"
    SAFETY = "safety"
    BLIND = "blind"


class Origin(StrEnum):
    """Where a label comes from."""

    IMPORTED = "imported"
    RENDERED = "rendered"
    HUMAN = "human"
    HUMAN_EDITED = "human_edited"
    HUMAN_ACCEPTED = "human_accepted"
    REPLAYED = "replayed"
    MODEL = "model"

    @property
    def is_simulated(self) -> bool:
        """Whether no person and no real sensor was involved."""
        return self in (Origin.REPLAYED, Origin.RENDERED)

    @property
    def is_ground_truth(self) -> bool:
        """Whether the label may be evaluated against; a model's own boxes may not."""
        return self is not Origin.MODEL


class Calibration(FrozenModel):
    """Pinhole intrinsics in pixels of the stored frame; ``id`` names the calibration run."""

    id: str = UNKNOWN
    fx: float | None = None
    fy: float | None = None
    cx: float | None = None
    cy: float | None = None


class Drive(FrozenModel):
    """One ordered recording by one camera on one vehicle.

    What a source does not say is ``unknown`` or None, never guessed.

    Attributes:
        camera_height_m: Height above the road, m.
        camera_pitch_deg: Degrees, positive when the camera looks down.
        started_at: ISO 8601 time, or ``unknown``.
        time_source: What the frames' timestamps count from.
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
    """Conditions of a frame."""

    light: Light = Light.UNKNOWN
    weather: Weather = Weather.UNKNOWN
    construction: bool = False


class Frame(FrozenModel):
    """One image of a drive.

    Attributes:
        id: SHA-256 of the encoded image file.
        index: Position in the drive.
        timestamp_us: Microseconds from the start of the drive or the Unix epoch, as
            ``Drive.time_source`` says.
        width: Pixels.
        height: Pixels.
        suffix: File suffix of the image, such as ``.jpg``.
        redaction: How faces and number plates were removed.
        events: Names of events, such as ``cut_in``.
        attributes: Answers about the whole frame for which `Conditions` has no field.
        position: Latitude and longitude of the vehicle in degrees (WGS 84), if known.
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
    """The values of one condition of a frame; empty if the source does not say.

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
    """Axis-aligned box in pixels: origin top left, x right, y down, continuous coordinates.

    ``x`` and ``y`` are the top left corner, ``w`` and ``h`` the sides.
    """

    x: float
    y: float
    w: float
    h: float

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """Top left and bottom right corner: x0, y0, x1, y1."""
        return (self.x, self.y, self.x + self.w, self.y + self.h)


class RotatedBox(FrozenModel):
    """A rectangle rotated by ``degrees`` about its centre ``(cx, cy)``, clockwise on the image.

    In pixels; ``w`` and ``h`` are the sides before the rotation.
    """

    cx: float
    cy: float
    w: float
    h: float
    degrees: float


class LabelEdit(FrozenModel):
    """The predicted box that a person edited, and what they changed.

    ``iou`` is the overlap of the box before and after.
    """

    cls: str
    box: Box
    score: float
    iou: float
    changed: tuple[Literal["class", "position"], ...]


class Label(FrozenModel):
    """One annotated object on one frame, and who annotated it.

    Attributes:
        box: The object's box; of a rotated box or polygon, its bounding box.
        occluded: Hidden fraction in [0, 1], if known.
        truncated: Fraction outside the image in [0, 1], if known.
        ignore: Whether the region counts neither as right nor as wrong in an evaluation.
        track: Id of the object over the frames of a drive.
        score: Confidence in [0, 1]; only for ``origin == model``.
        source: Reference to the record the label came with: a batch or a checkpoint.
        turned: A rotated box.
        polygon: Corners of a polygon.
        attributes: Answers to the schema's own questions about a box.
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
        """Digest of the whole label."""
        return digest.of_json(self.model_dump(mode="json"))


class Question(FrozenModel):
    """A multiple-choice question to labelers about a box or a whole frame.

    ``asked`` is the text that they read.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
    answers: tuple[str, ...]
    asked: str = ""


class LabelSchema(FrozenModel):
    """The classes of a dataset and what labelers are asked.

    Attributes:
        classes: Class names; a model numbers them in this order.
        vulnerable: Classes of vulnerable road users.
        mapping: Names that sources use (in lower case) to a class, ``ignore`` (an ignore region)
            or ``drop`` (left out).
        shapes: How objects may be drawn.
        box_questions: Questions about a box beside class, occlusion and truncation.
        frame_questions: Questions about a whole frame.
        tracks: Whether labelers give each object a track id.
        definitions: For each class, what belongs to it, in words for labelers.
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
        """The class, ``ignore`` or ``drop`` for a source's name; None if it is unknown.

        Upper case, and spaces for underscores, make no difference.
        """
        name = _normalized(source_name)
        classes = {_normalized(cls): cls for cls in self.classes}
        return classes.get(name) or self.mapping.get(name)


def _normalized(name: str) -> str:
    return name.strip().lower().replace(" ", "_")
