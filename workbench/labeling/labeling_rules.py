"""Per-slice labeling rules: labelers per frame, priority, minimum time."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from workbench.core.errors import ParameterError
from workbench.records.base import Digest
from workbench.records.frames import UNKNOWN, Frame, LabelSchema, Light, Role, Weather
from workbench.records.types import FrameRequirement


@dataclass(frozen=True)
class LabelingRule:
    """What every frame of a slice gets.

    Args:
        slice: One of `slices_of`'s names, or ``all``.
        labelers: So many have to answer each frame.
        priority: Higher comes sooner.
        least_s: An answer that took fewer seconds is sent back.
    """

    slice: str
    labelers: int = 1
    priority: int = 0
    least_s: float | None = None

    def __post_init__(self) -> None:
        known = _known_slices()
        if self.slice in known or self.slice.startswith("event="):
            return
        close = difflib.get_close_matches(self.slice, known, n=1)
        raise ParameterError(
            f"no slice named {self.slice!r}",
            hint=f"Did you mean {close[0]}?" if close else f"There are {', '.join(known)}, event=…",
        )


@dataclass(frozen=True)
class LabelingOptions:
    """What a batch asks beyond one answer a frame.

    Args:
        attention: Which slices get more labelers, an earlier turn or a longer look.
        gold: So many frames whose labels are trusted are mixed in, to measure labelers by.
        gold_labelers: How many labelers answer each of them.
    """

    attention: tuple[LabelingRule, ...] = ()
    gold: int = 0
    gold_labelers: int = 2


_RULES_FORMAT = (
    "Write a list such as [{slice: light=night, labelers: 2, priority: 1, min_seconds: 10}]"
)


class _RuleEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    slice: str
    labelers: int = Field(1, ge=1)
    priority: int = 0
    min_seconds: float | None = Field(None, gt=0)


def load_labeling_rules(path: Path) -> tuple[LabelingRule, ...]:
    """Labeling rules from a YAML file: a list of slice, labelers, priority and min_seconds.

    Raises:
        ParameterError: The file is not such a list, or names an unknown slice.
    """
    try:
        entries = TypeAdapter(list[_RuleEntry]).validate_python(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise ParameterError("invalid YAML", where=path, hint=_RULES_FORMAT) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ParameterError(
            f"invalid labeling rule {field}: {first['msg']}", where=path, hint=_RULES_FORMAT
        ) from error
    return tuple(
        LabelingRule(entry.slice, entry.labelers, entry.priority, entry.min_seconds)
        for entry in entries
    )


def _known_slices() -> list[str]:
    values = [
        *(f"light={one}" for one in Light),
        *(f"weather={one}" for one in Weather),
        *(f"role={one}" for one in Role),
    ]
    return ["all", "vru", "construction", *(one for one in values if UNKNOWN not in one)]


def frame_slices(frame: Frame, classes: Iterable[str], schema: LabelSchema) -> tuple[str, ...]:
    """Slices a frame is in: by light, weather, role, road works, events, and ``vru``.

    Args:
        classes: Of what is in the frame, as far as anybody knows.
    """
    about = frame.conditions
    names = [f"light={about.light}"] if about.light != UNKNOWN else []
    names += [f"weather={about.weather}"] if about.weather != UNKNOWN else []
    names += ["construction"] if about.construction else []
    names += [f"role={frame.role}"] if frame.role else []
    names += [f"event={event}" for event in frame.events]
    names += ["vru"] if set(classes) & set(schema.vulnerable) else []
    return tuple(names)


def frame_needs(
    care: LabelingOptions,
    frames: Iterable[tuple[Frame, Iterable[str]]],
    schema: LabelSchema,
    gold: Iterable[Digest] = (),
) -> tuple[FrameRequirement, ...]:
    """What frames ask beyond the rule: of several slices' wishes, the greatest.

    Args:
        frames: Each with the classes that are predicted in it.
        gold: Frames that measure labelers.
    """
    measured = set(gold)
    found = []
    for frame, classes in frames:
        names = (*frame_slices(frame, classes, schema), "all")
        wished = [rule for rule in care.attention if rule.slice in names]
        labelers = max(
            [rule.labelers for rule in wished] + [care.gold_labelers if frame.id in measured else 1]
        )
        priority = max((rule.priority for rule in wished), default=0)
        least = max((rule.least_s for rule in wished if rule.least_s), default=None)
        if labelers > 1 or priority or least:
            slices = tuple(sorted({rule.slice for rule in wished}))
            found.append(
                FrameRequirement(
                    frame=frame.id,
                    labelers=labelers,
                    priority=priority,
                    least_s=least,
                    slices=slices,
                )
            )
    return tuple(found)
