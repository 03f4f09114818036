"""Conditions and slices: named predicates over frames and labels, defined here only.

A **condition** is one fact of a frame, written ``KEY=VALUE``: ``light=night``, ``weather=rain``,
``construction=yes``, ``event=cut_in``, ``role=val``, ``drive=ID`` or one of the frame's own
attributes. What the source does not tell (``unknown``) meets no condition.

A **slice** is a part of an evaluation set: a predicate over frames times a predicate over labels.
Frames outside a slice are left out whole. Labels outside it, on frames inside, become ignored
truth in COCO's sense: finding them is neither right nor wrong. A prediction that matches nothing
cannot be said to belong to a slice of labels, so it counts against every such slice on its frame
(except for sizes, where COCO leaves out unmatched predictions of other sizes too, and for slices
of classes). In a slice of labels, read recall first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from workbench.core.errors import ParameterError
from workbench.core.text import did_you_mean, short_repr
from workbench.records.frames import (
    CONDITION_VALUES,
    UNKNOWN,
    Frame,
    Label,
    LabelSchema,
    Light,
    Weather,
    condition_values,
)

__all__ = ["STANDARD_SLICES", "Slice"]

ALL_AREAS = (0.0, 1e5**2)
"""Square pixels; COCO's own "all" range."""

_SMALL_AREA, _MEDIUM_AREA = 32.0**2, 96.0**2
"""COCO's limits between small, medium and large: box area in pixels of the frame as stored."""

_MIN_OCCLUSION = 0.4
"""From this hidden fraction on a label counts as occluded."""

VULNERABLE = "vru"
"""Name of the slice of vulnerable road users."""

_ALL = "all"
_KEYS = ("light", "weather", "construction", "event")
_KEYS_WITH_ROLE = ("light", "weather", "construction", "role", "event")


def frame_conditions(frame: Frame, keys: Collection[str] = _KEYS) -> tuple[str, ...]:
    """Names of the conditions that a frame meets.

    Args:
        keys: Which kinds of conditions, in the order of the result.

    Returns:
        Such as ``("light=night", "weather=rain", "construction", "event=cut_in")``.
    """
    names: list[str] = []
    for key in keys:
        values = condition_values(frame, key)
        if key == "construction":
            names += ["construction"] if "yes" in values else []
        else:
            names += [f"{key}={value}" for value in values if value != UNKNOWN]
    return tuple(names)


def frame_slices(frame: Frame, classes: Iterable[str], schema: LabelSchema) -> tuple[str, ...]:
    """Names of the slices a frame is in: its conditions, its role, and ``vru``.

    Args:
        classes: Classes of the objects in the frame, as far as they are known.
    """
    names = frame_conditions(frame, _KEYS_WITH_ROLE)
    return (*names, VULNERABLE) if set(classes) & set(schema.vulnerable) else names


def check_slice_name(name: str, keys: Collection[str] = _KEYS_WITH_ROLE) -> None:
    """Refuse a name that `frame_slices` never gives.

    Args:
        keys: Kinds of conditions that may be named; with ``event``, ``all``, ``vru`` and
            ``construction`` may be, too.

    Raises:
        ParameterError: No frame can be in such a slice.
    """
    if "event" in keys and name.startswith("event="):
        return
    known = [_ALL, VULNERABLE, "construction"] if "event" in keys else []
    for key in ("light", "weather", "role"):
        if key in keys:
            known += [f"{key}={value}" for value in CONDITION_VALUES[key] if value != UNKNOWN]
    if name not in known:
        raise ParameterError(f"unknown slice {name!r}", hint=did_you_mean(name, known))


def describe_conditions(frame: Frame, unknown: str = UNKNOWN) -> str:
    """Light, weather and road works in words, such as ``night, rain``.

    Args:
        unknown: The answer where the source tells none of them.
    """
    conditions = frame.conditions
    words = [str(value) for value in (conditions.light, conditions.weather) if value != UNKNOWN]
    words += ["road works"] if conditions.construction else []
    return ", ".join(words) or unknown


def light_and_weather(frame: Frame) -> str:
    """The stratum by which frames are spread evenly, such as ``night/rain``."""
    return f"{frame.conditions.light}/{frame.conditions.weather}"


def parse_conditions(text: str, schema: LabelSchema) -> tuple[tuple[str, str], ...]:
    """Read ``KEY=VALUE``, several of them joined by ``+``; ``class`` is a key, too.

    Returns:
        Pairs of key and value, in the order written.

    Raises:
        ParameterError: No condition, or a class, light or weather that does not exist.
    """
    conditions = []
    for part in text.split("+"):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise ParameterError(
                f"invalid condition {part!r}", where=text, hint=f"Write {CONDITION_SYNTAX}"
            )
        known = schema.classes if key == "class" else CONDITION_VALUES.get(key)
        if known and value not in known:
            raise ParameterError(
                f"unknown {key} {value!r}", where=text, hint=did_you_mean(value, known)
            )
        conditions.append((key, value))
    return tuple(conditions)


CONDITION_SYNTAX = (
    "class=NAME, light=…, weather=…, construction=yes, event=NAME, or ATTRIBUTE=ANSWER"
    " of a frame, joined by +"
)


@short_repr
@dataclass(frozen=True)
class Slice:
    """A named part of an evaluation set.

    Attributes:
        frame: Which frames count; None for all.
        label: Which labels count among the classes that do; None for all.
        classes: Which classes count; None for all.
        area: Box areas that count, in square pixels of the stored frame, both ends included.
    """

    name: str
    description: str
    frame: Callable[[Frame], bool] | None = None
    label: Callable[[Label], bool] | None = None
    classes: Callable[[LabelSchema], tuple[str, ...]] | None = None
    area: tuple[float, float] = ALL_AREAS

    @property
    def judges_all_boxes(self) -> bool:
        """Whether a box that matches nothing counts as clearly as one that matches a label."""
        return self.label is None and self.area == ALL_AREAS

    def may_hold(self, frame: Frame, classes: Iterable[str], schema: LabelSchema) -> bool:
        """Whether a frame with objects of these classes belongs to the slice.

        Args:
            classes: Classes of the objects in the frame, as far as they are known.
        """
        inside = self.frame is None or self.frame(frame)
        return inside and (
            self.classes is None or bool(set(classes) & set(self.class_names(schema)))
        )

    def holds(self, frame: Frame, labels: Iterable[Label], schema: LabelSchema) -> bool:
        """Whether a labeled frame belongs to the slice, as when a model is judged.

        Args:
            labels: Of the frame; for a slice of labels one of them has to count.
        """
        if self.frame is not None and not self.frame(frame):
            return False
        if self.judges_all_boxes and self.classes is None:
            return True
        names, (low, high) = self.class_names(schema), self.area
        return any(
            label.cls in names
            and not label.ignore
            and low <= label.box.w * label.box.h <= high
            and (self.label is None or self.label(label))
            for label in labels
        )

    def class_names(self, schema: LabelSchema) -> tuple[str, ...]:
        """The classes of ``schema`` that count."""
        return schema.classes if self.classes is None else self.classes(schema)


def _meets(condition: str) -> Callable[[Frame], bool]:
    return lambda frame: condition in frame_conditions(frame)


def _vulnerable_classes(schema: LabelSchema) -> tuple[str, ...]:
    return tuple(name for name in schema.classes if name in schema.vulnerable)


ALL_FRAMES = Slice(_ALL, "every frame, every label")

STANDARD_SLICES: tuple[Slice, ...] = (
    ALL_FRAMES,
    *(
        Slice(f"light={light}", f"frames taken by {light}", _meets(f"light={light}"))
        for light in (Light.DAY, Light.DUSK, Light.NIGHT)
    ),
    *(
        Slice(f"weather={kind}", f"frames taken in {kind} weather", _meets(f"weather={kind}"))
        for kind in (Weather.CLEAR, Weather.RAIN, Weather.FOG, Weather.SNOW)
    ),
    Slice("size=small", "boxes up to 32x32 px of the stored frame", area=(0.0, _SMALL_AREA)),
    Slice(
        "size=medium",
        "boxes from 32x32 to 96x96 px of the stored frame",
        area=(_SMALL_AREA, _MEDIUM_AREA),
    ),
    Slice(
        "size=large", "boxes from 96x96 px of the stored frame", area=(_MEDIUM_AREA, ALL_AREAS[1])
    ),
    Slice(
        "occluded",
        f"labels hidden to {_MIN_OCCLUSION:.0%} or more, where that is known",
        label=lambda label: label.occluded is not None and label.occluded >= _MIN_OCCLUSION,
    ),
    Slice(VULNERABLE, "vulnerable road users", classes=_vulnerable_classes),
    Slice(
        "night_vru",
        "vulnerable road users by night",
        frame=_meets("light=night"),
        classes=_vulnerable_classes,
    ),
    Slice("construction", "frames at road works", _meets("construction")),
)
"""The slices that every model is judged on."""
