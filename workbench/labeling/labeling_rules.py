"""Per-slice labeling rules: labelers per frame, priority, minimum time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from workbench.core.errors import ParameterError
from workbench.data.slices import check_slice_name, frame_slices
from workbench.records.base import Digest
from workbench.records.frames import Frame, LabelSchema
from workbench.records.types import FrameRequirement


@dataclass(frozen=True)
class LabelingRule:
    """What every frame of a slice gets.

    Args:
        slice: One of the names that `frame_slices` gives, or ``all``.
        labelers: So many have to answer each frame.
        priority: Higher comes sooner.
        least_s: An answer that took fewer seconds is sent back.
    """

    slice: str
    labelers: int = 1
    priority: int = 0
    least_s: float | None = None

    def __post_init__(self) -> None:
        check_slice_name(self.slice)


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
