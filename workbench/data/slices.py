"""Named predicates over frames and labels: the only definition of a slice.

Frames outside a slice are left out whole. Labels outside it, on frames inside, become ignored
truth in COCO's sense: finding them is neither right nor wrong. A prediction that matches nothing
cannot be said to belong to a slice of labels, so it counts against every such slice on its frame
(except for sizes, where COCO leaves out unmatched predictions of other sizes too, and for slices
of classes). In a slice of labels, read recall first.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workbench.core.errors import ParameterError
from workbench.records.frames import Frame, Label, LabelSchema, Light, Weather

ALL_AREAS = (0.0, 1e5**2)
"""Square pixels; COCO's own "all" range."""

SMALL_AREA, MEDIUM_AREA = 32.0**2, 96.0**2
"""COCO's limits between small, medium and large: box area in pixels of the frame as stored."""

MIN_OCCLUSION = 0.4
"""From this hidden fraction on a label counts as occluded."""


@dataclass(frozen=True)
class Slice:
    """A named part of the truth.

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

    def class_names(self, schema: LabelSchema) -> tuple[str, ...]:
        return schema.classes if self.classes is None else self.classes(schema)


def _light_slice(light: Light) -> Slice:
    return Slice(
        f"light={light}", f"frames taken by {light}", lambda frame: frame.conditions.light is light
    )


def _weather_slice(weather: Weather) -> Slice:
    return Slice(
        f"weather={weather}",
        f"frames taken in {weather} weather",
        lambda frame: frame.conditions.weather is weather,
    )


def _vulnerable_classes(schema: LabelSchema) -> tuple[str, ...]:
    return tuple(name for name in schema.classes if name in schema.vulnerable)


def _is_night(frame: Frame) -> bool:
    return frame.conditions.light is Light.NIGHT


ALL_FRAMES = Slice("all", "every frame, every label")

STANDARD_SLICES: tuple[Slice, ...] = (
    ALL_FRAMES,
    *(_light_slice(light) for light in (Light.DAY, Light.DUSK, Light.NIGHT)),
    *(_weather_slice(kind) for kind in (Weather.CLEAR, Weather.RAIN, Weather.FOG, Weather.SNOW)),
    Slice("size=small", "boxes up to 32x32 px of the stored frame", area=(0.0, SMALL_AREA)),
    Slice(
        "size=medium",
        "boxes from 32x32 to 96x96 px of the stored frame",
        area=(SMALL_AREA, MEDIUM_AREA),
    ),
    Slice(
        "size=large", "boxes from 96x96 px of the stored frame", area=(MEDIUM_AREA, ALL_AREAS[1])
    ),
    Slice(
        "occluded",
        f"labels hidden to {MIN_OCCLUSION:.0%} or more, where that is known",
        label=lambda label: label.occluded is not None and label.occluded >= MIN_OCCLUSION,
    ),
    Slice("vru", "vulnerable road users", classes=_vulnerable_classes),
    Slice(
        "night_vru", "vulnerable road users by night", frame=_is_night, classes=_vulnerable_classes
    ),
    Slice("construction", "frames at road works", lambda frame: frame.conditions.construction),
)
"""The slices that every model is judged on."""


def slices_named(
    names: Sequence[str], known: Sequence[Slice] = STANDARD_SLICES
) -> tuple[Slice, ...]:
    """The slices of these names, in the order given; raises `ParameterError` for another name."""
    by_name = {part.name: part for part in known}
    for name in names:
        if name not in by_name:
            raise ParameterError(
                f"no slice named {name!r}",
                where="slices",
                hint=nearest_name_hint(name, list(by_name)),
            )
    return tuple(by_name[name] for name in names)


def nearest_name_hint(word: str, known: Sequence[str]) -> str:
    """A hint that names what was probably meant: ``night`` means ``light=night``."""
    near = [name for name in known if name.partition("=")[2] == word]
    near += difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}"
